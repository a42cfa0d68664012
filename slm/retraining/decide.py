"""Whether there is a reason to train again, and how much: the decision of the scheduled flow.

The evidence is gathered from the champion's chain and the dataset as it is now; the decision is a
pure function of it and of the recipe's thresholds. Going on from a model whose data has grown is
cheaper than training it whole and, with the rate warmed up again and the old documents among the
new, about as good (Ibrahim et al. 2024, arXiv:2403.08763); it keeps the old vocabulary, which is
why documents of another language call for a whole training.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from slm import keys
from slm.config import LIMITS, PipelineConfig, RetrainConfig, data_root
from slm.records import Parent, Progress, Source, silent
from slm.registry.origins import Origin, as_parent, champion_and_challenger
from slm.retraining import drift
from slm.retraining.drift import Changes, Drift
from slm.tokens.encode import encode_key

Action = Literal["nothing", "skip", "continue", "retrain"]
WORDS: dict[Action, str] = {
    "nothing": "Nothing to do",
    "skip": "Nothing to do yet",
    "continue": "Go on from the champion",
    "retrain": "Train whole",
}


class Evidence(BaseModel):
    """What the decision rests on; None for what was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str | None = None  # models:/NAME/VERSION
    made_already: str | None = None  # the version that was made of this very data and config
    settings: tuple[str, ...] = ()  # that are not those of the champion
    missing: tuple[str, ...] = ()  # of what the champion was made of
    changes: Changes | None = None
    drift: Drift | None = None


class Decision(BaseModel):
    """What to do about a dataset as it is now, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        """Whether the new documents are of another language than the champion's."""
        found = self.evidence.drift
        return found is not None and found.excess >= self.limits.drift_threshold


def decide(
    config: PipelineConfig,
    source: Source,
    *,
    root: Path | None = None,
    progress: Progress = silent,
) -> Decision:
    """Compares the source and the config with what the champion was made of.

    Where nothing has changed, no document is read. Raises CorruptionError where the champion's
    files are damaged.
    """
    evidence = gather(config, source, root or data_root(), progress)
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
    changes, found = evidence.changes, evidence.drift
    if evidence.made_already:
        return "nothing", f"{evidence.made_already} was made of this very data and config"
    if evidence.champion is None:
        return "retrain", "there is no champion yet"
    if evidence.settings:
        return "retrain", f"the recipe has changed: {', '.join(evidence.settings)}"
    if evidence.missing:
        return "retrain", f"the champion cannot be gone on from: {', '.join(evidence.missing)}"
    assert changes is not None, "what has changed is counted wherever the champion's data is here"
    if changes.gone_fraction > limits.max_gone_fraction:
        return "retrain", (
            f"{changes.gone_fraction:.1%} of the champion's documents are gone, more than "
            f"{limits.max_gone_fraction:.1%}"
        )
    if changes.new_fraction < limits.min_new_fraction or found is None:
        return "skip", (
            f"{changes.new_fraction:.2%} of the documents are new or changed, fewer than "
            f"{limits.min_new_fraction:.2%}"
        )
    if found.excess >= limits.drift_threshold:
        return "retrain", (
            f"the new documents are of another language: {found.excess:.3f} bits of divergence "
            f"beyond the usual, at least {limits.drift_threshold:g}"
        )
    if found.rise >= limits.bpb_rise:
        return "retrain", (
            f"the champion spends {found.rise:.3f} bits a byte more on the new documents, at least "
            f"{limits.bpb_rise:g}"
        )
    return "continue", (
        f"{changes.new_fraction:.1%} of the documents are new or changed, and of the champion's "
        f"language ({found.excess:.3f} bits of drift, {found.rise:+.3f} bits a byte)"
    )


def training(
    config: PipelineConfig, decision: Decision, *, root: Path | None = None
) -> tuple[PipelineConfig, Parent | None]:
    """The config to train by, and the model to go on from; None: from the seed."""
    if decision.action != "continue":
        return config, None
    assert decision.evidence.champion is not None
    return continued(config), as_parent(decision.evidence.champion, config, root=root)


def continued(config: PipelineConfig) -> PipelineConfig:
    """The config with `retrain.continue_fraction` of its training limit.

    The schedule starts again with its warmup, at the same peak, over the fewer steps.
    """
    limit = next(name for name in LIMITS if getattr(config.train, name) is not None)
    whole = getattr(config.train, limit)
    part = whole * config.retrain.continue_fraction
    scaled = max(1, round(part)) if isinstance(whole, int) else part
    train = config.train.model_copy(update={limit: scaled})
    return config.model_copy(update={"train": train})


# ---- evidence ---------------------------------------------------------------------------------


def gather(config: PipelineConfig, source: Source, root: Path, progress: Progress) -> Evidence:
    """What is known of the champion and of the source, as much as the decision needs."""
    champion, challenger = champion_and_challenger(config, root=root)
    known = Evidence(champion=champion.name if champion else None)
    for version in filter(None, (champion, _judged(challenger, champion))):
        if _was_made_of(version, config, source):
            return known.model_copy(update={"made_already": version.name})
    if champion is None:
        return known
    settings, missing = _other_settings(config, champion), _missing(champion)
    known = known.model_copy(update={"settings": settings, "missing": missing})
    if settings or missing:
        return known
    assert champion.source is not None
    assert champion.shards is not None
    progress("documents", 0, None)
    changes, texts = drift.compare(champion.source, source, config.retrain.sample_documents)
    found = None
    if texts:
        model = as_parent(champion.name, config, root=root)
        found = drift.measure(model.path, champion.shards, texts, progress)
    return known.model_copy(update={"changes": changes, "drift": found})


def _judged(challenger: Origin | None, champion: Origin | None) -> Origin | None:
    """The challenger, where the gate has refused it beside this champion."""
    if challenger is None or challenger.verdict is None:
        return None
    rival = champion.name.rpartition("/")[2] if champion else None
    return challenger if challenger.verdict.champion == rival else None


def _was_made_of(version: Origin, config: PipelineConfig, source: Source) -> bool:
    """Whether a version was made of this data by this config.

    Its hashes say so where its settings are gone from here.
    """
    if version.source_key != source.key:
        return False
    if version.config is not None:
        return not _other_settings(config, version)
    tokenizer = version.tokenizer_sha256 if version.continued else None
    made = _as_made(config, version)
    return (version.shards_key, version.config_sha256) == (
        encode_key(config, source, tokenizer),
        keys.config_sha256(made),
    )


def _as_made(config: PipelineConfig, version: Origin) -> PipelineConfig:
    """The config that a version would be trained by, whole or continued as it was."""
    return continued(config) if version.continued else config


def _other_settings(config: PipelineConfig, version: Origin) -> tuple[str, ...]:
    """The dotted keys by which a version was encoded or trained otherwise than the config says.

    None are told where its settings are gone from here.
    """
    if version.config is None:
        return ()
    wanted, made = _settings(_as_made(config, version)), _settings(version.config)
    return tuple(sorted(key for key in wanted if wanted[key] != made.get(key)))


def _settings(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the shards and the weights depend on, by their dotted keys."""
    flat = config.flat()
    return {key: flat[key] for key in (*keys.ENCODE_SETTINGS, *keys.TRAIN_SETTINGS)}


def _missing(champion: Origin) -> tuple[str, ...]:
    parts = {
        "its documents": champion.source,
        "its shards": champion.shards,
        "its settings": champion.config,
    }
    return tuple(f"{name} are gone from here" for name, found in parts.items() if found is None)


# ---- telling ----------------------------------------------------------------------------------


def figures(decision: Decision) -> list[tuple[str, str]]:
    """What was measured, beside the threshold that it was held against."""
    limits, changes, found = decision.limits, decision.evidence.changes, decision.evidence.drift
    rows = [("champion", decision.evidence.champion or "none")]
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
                f"gone (above {limits.max_gone_fraction:.1%}: train whole)",
                f"{changes.gone_fraction:.2%}",
            ),
        ]
    if found:
        rows += [
            ("new documents measured", f"{found.documents:,}"),
            ("divergence from the champion's train, bits", f"{found.divergence:.4f}"),
            ("the same of held-out documents, bits", f"{found.usual:.4f}"),
            (f"drift (from {limits.drift_threshold:g} on: train whole)", f"{found.excess:.4f}"),
            ("the champion on new documents, bits a byte", f"{found.new_bpb:.4f}"),
            ("the champion on held-out documents, bits a byte", f"{found.held_out_bpb:.4f}"),
            (f"rise (from {limits.bpb_rise:g} on: train whole)", f"{found.rise:+.4f}"),
        ]
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
    changes, found = decision.evidence.changes, decision.evidence.drift
    told = {"retrain": decision.action, "retrain_reason": decision.reason}
    if changes:
        told["new_documents"] = f"{changes.new_fraction:.2%}"
    if found:
        told |= {"drift_bits": f"{found.excess:.4f}", "bpb_rise": f"{found.rise:+.4f}"}
    return told
