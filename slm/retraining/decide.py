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

from pathlib import Path
from typing import Literal

from slm.config import PipelineConfig, RetrainConfig, data_root
from slm.progress import Progress, silent
from slm.records import Frozen, Parent, Source
from slm.registry.versions import as_parent
from slm.retraining.continued import continued
from slm.retraining.evidence import Evidence, gather
from slm.storage import reading

KEEP = "to retrain with them, write {} into the recipe"  # the settings that a sweep chose
Action = Literal["nothing", "skip", "continue", "retrain"]


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
