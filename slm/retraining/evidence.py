"""The evidence of a decision: what the champion was made of, compared with what is here now."""

from contextlib import suppress
from pathlib import Path

from pydantic import Field

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.history.sweeps import trials_of
from slm.progress import Progress
from slm.records import Frozen, Parent, Source, model_uri
from slm.registry.version import ModelVersion
from slm.registry.versions import as_parent, champion_and_challenger, linked_version
from slm.retraining import drift
from slm.retraining.continued import continued
from slm.retraining.drift import Changes, Drift, SourceDrift
from slm.run_folder import DataRoot
from slm.storage import canonical_json
from slm.tokens.encode import encode_key
from slm.tokens.vocabulary import known_vocabulary

STAGES = ("tokenizer", "encode", "train")  # whose settings a version is compared by
SEED = "the seed"  # what a training starts from without `train.init_from`


class Evidence(Frozen):
    """What the decision is made from; None for what was not measured."""

    champion: str | None = None  # models:/NAME/VERSION
    made_already: str | None = None  # the version that was trained on the same data and config
    cadence: tuple[str, ...] = ()  # settings by which its best checkpoint was chosen otherwise
    settings: tuple[str, ...] = ()  # that are not those of the champion
    trial: str | None = (
        None  # of a sweep that the champion is, such as trial 7 of rates-0123456789ab
    )
    chosen: tuple[str, ...] = ()  # what that sweep chose otherwise than this config, as key=value
    start: tuple[str, str] | None = None  # what the champion and a training now start from
    missing: tuple[str, ...] = ()  # of what the champion was made of
    changes: Changes | None = None
    drift: Drift | None = None
    sources: dict[str, SourceDrift] = Field(default_factory=dict)  # of a mixture; the two: as one

    @property
    def every_changes(self) -> dict[str, Changes]:
        """Of the whole, by an empty name, and of each source of a mixture."""
        whole = {"": self.changes} if self.changes else {}
        return whole | {name: each.changes for name, each in self.sources.items()}

    @property
    def every_drift(self) -> dict[str, Drift]:
        """Likewise, where it was measured; the sources first, since they say more."""
        sources = {name: each.drift for name, each in self.sources.items() if each.drift}
        return sources | ({"": self.drift} if self.drift else {})


def gather(
    config: PipelineConfig,
    source: Source,
    initial: Parent | None,
    root: Path,
    progress: Progress,
) -> Evidence:
    """What is known of the champion and of the source, as much as the decision needs."""
    champion, challenger = champion_and_challenger(config, root)
    evidence = Evidence(champion=champion.uri if champion else None)
    if champion and "sweep" in champion.tags:
        trial = f"trial {champion.tags.get('trial')} of {champion.tags['sweep']}"
        chosen = _chosen(config, champion, root)
        evidence = evidence.model_copy(update={"trial": trial, "chosen": chosen})
    for version in filter(None, (champion, _refused(challenger, champion))):
        if _other_start(version, config, initial, root):
            continue
        if _was_made_of(version, config, source, initial, root):
            cadence = _differences("select", config, version, root)
            return evidence.model_copy(update={"made_already": version.uri, "cadence": cadence})
    if champion is None:
        return evidence
    # Not verified by their hashes, which whoever reads them does.
    old_source = DataRoot(root).source(champion.tags.get("source_key"))
    old_shards = DataRoot(root).shards(champion.tags.get("shards_key"))
    made_by = _config(champion, root)
    parts = {"its documents": old_source, "its shards": old_shards, "its settings": made_by}
    missing = tuple(f"{name} are gone from here" for name, part in parts.items() if part is None)
    settings = _other_settings(config, champion, root)
    start = _other_start(champion, config, initial, root)
    update = {"settings": settings, "missing": missing, "start": start}
    evidence = evidence.model_copy(update=update)
    if settings or start or old_source is None or old_shards is None or made_by is None:
        return evidence
    progress("documents", 0, None)
    if source.parts:
        by_source = drift.compare_sources(
            old_source, source, old_shards, config.retrain.sample_documents,
            lambda: as_parent(champion.uri, config, root).path, progress,
        )  # fmt: skip
        changes, measured = drift.of_mixture(by_source)
        of_mixture = {"changes": changes, "drift": measured, "sources": by_source}
        return evidence.model_copy(update=of_mixture)
    changes, texts = drift.compare(old_source, source, config.retrain.sample_documents)
    measured = None
    if texts:
        model = as_parent(champion.uri, config, root)
        measured = drift.measure(model.path, old_shards, texts, progress)
    return evidence.model_copy(update={"changes": changes, "drift": measured})


def _refused(challenger: ModelVersion | None, champion: ModelVersion | None) -> ModelVersion | None:
    """The challenger, where the gate has compared it with this champion and refused it."""
    decision = challenger.gate_decision if challenger else None
    if decision is None or decision.champion != (champion.version if champion else None):
        return None
    return challenger


def _config(version: ModelVersion, root: Path) -> PipelineConfig | None:
    """The config of a version's run; None where that is gone from here."""
    with suppress(CorruptionError):
        return version.run(root).config
    return None


def _other_start(
    version: ModelVersion, config: PipelineConfig, initial: Parent | None, root: Path
) -> tuple[str, str] | None:
    """What a version and a training now start from, where that is not the same model.

    A version that was continued starts from what the first of its line did; None too where that is
    not known, and where the config starts from a version of its own model.
    """
    if initial and initial.model.startswith(f"{model_uri(config.model_name)}/"):
        return None
    first: ModelVersion | None = version
    while first and _is_continued(first):
        first = linked_version(first.tags.get("parent", ""), config, root)
    if first is None:
        return None
    digest = first.tags.get("parent_sha256")
    if digest == (initial.key if initial else None):
        return None
    return first.tags.get("parent", SEED), initial.model if initial else SEED


def _was_made_of(
    version: ModelVersion,
    config: PipelineConfig,
    source: Source,
    initial: Parent | None,
    root: Path,
) -> bool:
    """Whether a version was made of this data by this config.

    Its tags decide where its settings are gone from here.
    """
    tags = version.tags
    if tags.get("source_key") != source.key:
        return False
    if _config(version, root) is not None:
        return not _other_settings(config, version, root)
    is_given = _is_continued(version) or initial
    tokenizer_sha256 = tags.get("tokenizer_sha256") if is_given else None
    if config.data.makes_vocabulary and not is_given:
        own = known_vocabulary(config, source, DataRoot(root))
        if own is None:
            return False
        tokenizer_sha256 = own.tokenizer_sha256
    return tags.get("shards_key") == encode_key(config, source, tokenizer_sha256) and tags.get(
        "config_sha256"
    ) in keys.config_hashes(_as_made(config, version))


def _is_continued(version: ModelVersion) -> bool:
    """Whether its training continued from a champion, and did not start as the recipe does."""
    return "parent_sha256" in version.tags and "init_from" not in version.tags


def _chosen(config: PipelineConfig, champion: ModelVersion, root: Path) -> tuple[str, ...]:
    """What the sweep of a champion chose otherwise than this config, as key=value."""
    now = config.flat()
    return tuple(
        f"{name}={value}"
        for trial in trials_of(champion.run(root))
        if trial.sweep == champion.tags["sweep"] and str(trial.trial) == champion.tags.get("trial")
        for name, value in trial.values.items()
        if name in now and canonical_json(now[name]) != canonical_json(value)
    )


def _as_made(config: PipelineConfig, version: ModelVersion) -> PipelineConfig:
    """The config that a version would be trained by, from scratch or continued as it was."""
    return continued(config) if _is_continued(version) else config


def _other_settings(config: PipelineConfig, version: ModelVersion, root: Path) -> tuple[str, ...]:
    """The dotted keys by which a version was encoded or trained otherwise than by this config.

    Empty where its settings are gone from here.
    """
    stages = (_differences(stage, config, version, root) for stage in STAGES)
    return tuple(sorted({name for names in stages for name in names}))


def _differences(
    stage: str, config: PipelineConfig, version: ModelVersion, root: Path
) -> tuple[str, ...]:
    """The dotted keys of a stage that a version's settings have otherwise than this config."""
    made_by = _config(version, root)
    if made_by is None:
        return ()
    now, then = (keys.with_sources(c.flat()) for c in (_as_made(config, version), made_by))
    names = [*keys.SETTINGS[stage]]
    names += [name for name, (owner, _) in keys.ADDED.items() if owner == stage]
    names += ["data.tokenizer.path"] if stage == "tokenizer" else []
    names += ["data.sources", "data.phases"] if stage == "train" else []
    if stage in keys.OF_SOURCE:  # of a source that was added, its name says all
        names += [name for name in keys.names_of_sources(stage, config) if name in then]
    return tuple(name for name in names if now[name] != then[name])
