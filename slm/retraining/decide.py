"""Whether there is a reason to train again, and how much: the decision of the scheduled flow.

The evidence is gathered from the champion's chain and the dataset as it is now; the decision is a
pure function of it and of the recipe's thresholds. Continuing from a model whose data has grown is
cheaper than training from scratch and, with the rate warmed up again and the old documents among
the new, about as good (Ibrahim et al. 2024, arXiv:2403.08763). It keeps the old vocabulary, so
documents of another language call for training from scratch.

From scratch is from the seed, or from what `train.init_from` names. Another model there, by its
hash, is a reason to train again. A version of the config's own model is none: else the champion
that a training has just made would be the reason for the next one.

Each source of a mixture is compared with itself, and is held to the thresholds as the whole is: one
that crosses a threshold is enough, and the reason names it.
"""

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from slm import keys
from slm.config import LIMITS, PipelineConfig, RetrainConfig, data_root
from slm.errors import CorruptionError
from slm.history.sweeps import trials_of
from slm.progress import Progress, silent
from slm.records import Frozen, Parent, Source, model_uri
from slm.registry.versions import (
    ModelVersion,
    as_parent,
    champion_and_challenger,
    linked_version,
)
from slm.retraining import drift
from slm.retraining.drift import Changes, Drift, SourceDrift
from slm.run_folder import DataRoot
from slm.storage import canonical_json, reading
from slm.tokens.encode import encode_key
from slm.tokens.vocabulary import known_vocabulary

STAGES = ("tokenizer", "encode", "train")  # whose settings a version is compared by
SEED = "the seed"  # what a training starts from without `train.init_from`
KEEP = "to retrain with them, write {} into the recipe"  # the settings that a sweep chose
Action = Literal["nothing", "skip", "continue", "retrain"]
WORDS: dict[Action, str] = {
    "nothing": "Nothing to do",
    "skip": "Nothing to do yet",
    "continue": "Continue from the champion",
    "retrain": "Train from scratch",
}


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


class Decision(Frozen):
    """What to do about a dataset as it is now, and why."""

    recipe: str
    dataset: str
    revision: str
    action: Action
    reason: str
    evidence: Evidence
    limits: RetrainConfig

    @property
    def trains(self) -> bool:
        return self.action in ("continue", "retrain")

    @property
    def drifted(self) -> bool:
        """Whether new documents, of the whole or of a source, are of another language."""
        measured = self.evidence.every_drift.values()
        return any(drift.excess >= self.limits.drift_threshold for drift in measured)


def decide(
    config: PipelineConfig,
    source: Source,
    initial: Parent | None = None,
    *,
    root: Path | None = None,
    progress: Progress = silent,
) -> Decision:
    """Compare the source and the config with what the champion was made of.

    Where nothing has changed, no document is read. Raises CorruptionError where the champion's
    files are damaged.

    `initial`: what `train.init_from` names, and the config has its shape: see
    `slm.registry.initial`; None: the seed.
    """
    with reading(source.path):
        evidence = gather(config, source, initial, root or data_root(), progress)
    action, reason = choose(evidence, config.retrain)
    return Decision(
        recipe=config.recipe,
        dataset=source.dataset,
        revision=source.revision,
        action=action,
        reason=reason,
        evidence=evidence,
        limits=config.retrain,
    )


def choose(evidence: Evidence, limits: RetrainConfig) -> tuple[Action, str]:
    """What to do, and the reason: the first line that holds."""
    if evidence.made_already:
        reason = f"{evidence.made_already} was trained on the same data and config"
        if evidence.cadence:
            names = " and ".join(evidence.cadence)
            reason += f", its best checkpoint chosen by another {names}: `slm run` chooses again"
        return "nothing", reason
    if evidence.champion is None:
        return "retrain", "there is no champion yet"
    if other := _other_model(evidence):
        return "retrain", other
    return _by_data(evidence, limits)


def _other_model(evidence: Evidence) -> str | None:
    """Why a training of today's recipe is not the champion's on more data; None where it is."""
    if evidence.chosen and evidence.settings:
        others = [
            n for n in evidence.settings if n not in {c.split("=")[0] for c in evidence.chosen}
        ]
        changed = f", and has changed: {', '.join(others)}" if others else ""
        return (
            f"the recipe has not the settings of the champion, {evidence.trial}{changed}: "
            f"{KEEP.format(', '.join(evidence.chosen))}"
        )
    if evidence.settings:
        return f"the recipe has changed: {', '.join(evidence.settings)}"
    if evidence.start:
        before, now = evidence.start
        return f"what training starts from has changed: {before} → {now}"
    if evidence.missing:
        return f"no training can continue from the champion: {', '.join(evidence.missing)}"
    return None


def _by_data(evidence: Evidence, limits: RetrainConfig) -> tuple[Action, str]:
    """What to do about the documents that are new, changed or gone."""
    changes, measured = evidence.changes, evidence.drift
    assert changes is not None, "what has changed is counted wherever the champion's data is here"
    for source, each in evidence.every_changes.items():
        if each.gone_fraction > limits.max_gone_fraction:
            return "retrain", (
                f"{each.gone_fraction:.1%} of the champion's documents{_of(source)} are gone, more "
                f"than {limits.max_gone_fraction:.1%}"
            )
    grown = [
        (source, each)
        for source, each in evidence.every_changes.items()
        if each.new_fraction >= limits.min_new_fraction
    ]
    if grown and measured is None and changes.new + changes.changed:
        return "retrain", (
            f"the new documents{_of(grown[-1][0])} cannot be compared: none of its own is held out"
        )
    if not grown or measured is None:
        each_source = ", in all and of each source" if evidence.sources else ""
        return "skip", (
            f"{changes.new_fraction:.2%} of the documents are new or changed, fewer than "
            f"{limits.min_new_fraction:.2%}{each_source}"
        )
    if drifted := _other_language(evidence, limits):
        return "retrain", drifted
    source, each = grown[0]
    return "continue", (
        f"{each.new_fraction:.1%} of the documents{_of(source)} are new or changed, and of the "
        f"champion's language ({measured.excess:.3f} bits of drift, {measured.rise:+.3f} bits per "
        "byte)"
    )


def _other_language(evidence: Evidence, limits: RetrainConfig) -> str | None:
    """Why the new documents are too unlike the champion's; None where they are not."""
    for source, drifted in evidence.every_drift.items():
        if drifted.excess >= limits.drift_threshold:
            return (
                f"the new documents{_of(source)} are of another language: {drifted.excess:.3f} "
                f"bits of divergence beyond the usual, at least {limits.drift_threshold:g}"
            )
    for source, risen in evidence.every_drift.items():
        if risen.rise >= limits.bpb_rise:
            return (
                f"the champion needs {risen.rise:.3f} bits per byte more on the new documents"
                f"{_of(source)}, at least {limits.bpb_rise:g}"
            )
    return None


def _of(source: str) -> str:
    """Part of a reason: the source, where it is of one alone."""
    return f" of the source {source}" if source else ""


def training(
    config: PipelineConfig,
    decision: Decision,
    initial: Parent | None = None,
    *,
    root: Path | None = None,
) -> tuple[PipelineConfig, Parent | None]:
    """The config to train by, and the model to start from; None: from the seed.

    `initial`: as of `decide`.
    """
    if decision.action != "continue":
        return config, initial
    assert decision.evidence.champion is not None
    return continued(config), as_parent(decision.evidence.champion, config, root or data_root())


def continued(config: PipelineConfig) -> PipelineConfig:
    """The config with `retrain.continue_fraction` of its training limit.

    The schedule starts again with its warmup, at the same peak, over the fewer steps. The weights
    are those of the champion, whatever that had started from.
    """
    limit = next(name for name in LIMITS if getattr(config.train, name) is not None)
    whole = getattr(config.train, limit)
    part = whole * config.retrain.continue_fraction
    scaled = max(1, round(part)) if isinstance(whole, int) else part
    passes = config.train.max_passes and config.train.max_passes * config.retrain.continue_fraction
    changes = {limit: scaled, "max_passes": passes, "init_from": None}
    train = config.train.model_copy(update=changes)
    return config.model_copy(update={"train": train})


# ---- evidence ---------------------------------------------------------------------------------


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


# ---- shown ------------------------------------------------------------------------------------


def figures(decision: Decision) -> list[tuple[str, str]]:
    """What was measured, each with its threshold."""
    limits, changes, measured = decision.limits, decision.evidence.changes, decision.evidence.drift
    rows = [("champion", decision.evidence.champion or "none")]
    if decision.evidence.trial:
        rows.append(("the champion is", decision.evidence.trial))
    if decision.evidence.chosen:
        chosen = ", ".join(decision.evidence.chosen)
        rows.append(("its settings that the recipe has not", chosen))
    if changes:
        rows += [
            ("documents of the champion", f"{changes.before:,}"),
            ("documents now", f"{changes.now:,}"),
            ("new", f"{changes.new:,}"),
            ("changed", f"{changes.changed:,}"),
            ("gone", f"{changes.gone:,}"),
            (
                f"new or changed (from {limits.min_new_fraction:.2%} on: train)",
                f"{changes.new_fraction:.2%}",
            ),
            (
                f"gone (above {limits.max_gone_fraction:.1%}: train from scratch)",
                f"{changes.gone_fraction:.2%}",
            ),
        ]
    if measured:
        rows += [
            ("new documents measured", f"{measured.documents:,}"),
            ("divergence from the champion's train, bits", f"{measured.divergence:.4f}"),
            ("the same of held-out documents, bits", f"{measured.usual:.4f}"),
            (
                f"drift (from {limits.drift_threshold:g} on: train from scratch)",
                f"{measured.excess:.4f}",
            ),
            ("the champion on new documents, bits per byte", f"{measured.new_bpb:.4f}"),
            ("the champion on held-out documents, bits per byte", f"{measured.held_out_bpb:.4f}"),
            (f"rise (from {limits.bpb_rise:g} on: train from scratch)", f"{measured.rise:+.4f}"),
        ]
    for name, each in decision.evidence.sources.items():
        rows.append((f"source {name}: new or changed", f"{each.changes.new_fraction:.2%}"))
        rows.append((f"source {name}: gone", f"{each.changes.gone_fraction:.2%}"))
        if each.drift:
            rows.append((f"source {name}: drift", f"{each.drift.excess:.4f}"))
            rows.append((f"source {name}: rise", f"{each.drift.rise:+.4f}"))
    return rows


def describe(decision: Decision) -> str:
    """The decision in Markdown."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures(decision))
    return (
        f"# {WORDS[decision.action]}\n\n{decision.reason}.\n\n"
        f"Recipe `{decision.recipe}`, dataset `{decision.dataset}`, revision "
        f"`{decision.revision}`.\n\n| figure | value |\n|---|---|\n{rows}\n"
    )


def tags(decision: Decision) -> dict[str, str]:
    """The decision in a few short values, for whoever lists runs and versions."""
    changes, measured = decision.evidence.changes, decision.evidence.drift
    values = {"retrain": decision.action, "retrain_reason": decision.reason}
    if changes:
        values["new_documents"] = f"{changes.new_fraction:.2%}"
    if measured:
        values |= {"drift_bits": f"{measured.excess:.4f}", "bpb_rise": f"{measured.rise:+.4f}"}
    for name, each in decision.evidence.sources.items():
        if each.drift:
            values[f"drift_bits.{name}"] = f"{each.drift.excess:.4f}"
            values[f"bpb_rise.{name}"] = f"{each.drift.rise:+.4f}"
    return values
