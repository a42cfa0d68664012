"""The best checkpoint of a finished run by another cadence than the run's own; nothing is trained.

The cadence is `train.evaluate_every` and `train.evaluate_documents`. It changes no weight, but the
checkpoint with the lowest held-out loss is the best of those that it scores. What training by the
other cadence would have chosen is chosen here, from the losses in the journal where they are on the
same documents, and from the saved checkpoints scored again; where it needs others, it is refused.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.scoring import score
from slm.model.saved import load_model
from slm.progress import Progress
from slm.records import Plan, Run, Selection, Shards
from slm.run_folder import CHECKPOINTS, SELECTION, RunFolder
from slm.storage import reading, run_stage
from slm.tokens.shards.reading import documents, read_shards
from slm.training.checkpoint import checkpoint_name
from slm.training.plan import autocast_dtype
from slm.training.process import torch_as_in

SELECT_VERSION = 1
MAX_STEPS = 5  # that a message lists


@dataclass(frozen=True)
class Cadence:
    """When a training scores its weights, and on how many documents."""

    steps: tuple[int, ...]
    documents: int

    @classmethod
    def of(cls, config: PipelineConfig, last: int, shards: Shards) -> Self:
        """Every `evaluate_every` steps and at the last; on no more documents than there are."""
        every = config.train.evaluate_every
        documents = min(config.train.evaluate_documents, shards.splits["val"].documents)
        return cls((*range(every, last, every), last), documents)


def select(run: RunFolder, record: Run, config: PipelineConfig, progress: Progress) -> Run:
    """The record of a finished run, with the best checkpoint by the cadence of a config.

    By another cadence than the run's own it is chosen once, and kept next to the run's other
    results. Raises UserError, which names what is missing, where the weights that it needs were
    not kept.
    """
    plan, shards = run.plan, run.shards
    assert plan is not None, "a finished run has one"
    fields = keys.stage_fields("select", config)
    if fields == keys.stage_fields("select", run.config):
        return record
    if shards is None:
        raise UserError(
            f"{_chosen_by(run, run.config)}, and its shards are gone, without which it cannot be "
            f"chosen by {_settings(config)}: `slm encode {config.recipe}` makes them"
        )
    own, other = (Cadence.of(each, record.step, shards) for each in (run.config, config))
    if own == other:
        return record
    key = keys.stage_key("select", SELECT_VERSION, fields, {"weights": record.weights_sha256})

    def build(staging: Path) -> Selection:
        known = _journal_scores(run) if own.documents == other.documents else {}
        scores = _scores(run, config, other, known, shards, plan, progress)
        best = min(scores, key=lambda step: scores[step])  # the first of equal ones, as in training
        _check_kept(run, config, [best])
        return Selection(
            key=key,
            run=run.name,
            best=checkpoint_name(best),
            val_bpb={str(step): val_bpb for step, val_bpb in scores.items()},
            **fields,
        )

    with reading(shards.path):
        selection = run_stage(run.result_folder(SELECTION, key), Selection, key, build)
    if run.checkpoint(selection.best, verify=True) is None:
        raise CorruptionError(f"{run.path / CHECKPOINTS / selection.best} is gone")
    return record.model_copy(update={"best": selection.best})


def _journal_scores(run: RunFolder) -> dict[int, float]:
    """The val_bpb of every step at which the run itself was scored."""
    entries = (entry for entry in run.journal if entry["event"] == "evaluate")
    return {entry["step"]: entry["val_bpb"] for entry in entries if entry.get("val_bpb")}


def _scores(
    run: RunFolder,
    config: PipelineConfig,
    cadence: Cadence,
    known: dict[int, float],
    shards: Shards,
    plan: Plan,
    progress: Progress,
) -> dict[int, float]:
    """The val_bpb of every step of a cadence: the known one, or that of the saved checkpoint."""
    missing = [step for step in cadence.steps if step not in known]
    _check_kept(run, config, missing)
    held_out = list(islice(documents(read_shards(shards.path), "val"), cadence.documents))
    scores = dict(known)
    with torch_as_in(run):
        for count, step in enumerate(missing):
            progress("saved checkpoints scored", count, len(missing))
            model, tokenizer = load_model(
                run.path / CHECKPOINTS / checkpoint_name(step), plan.device
            )
            scored = score(
                model,
                held_out,
                tokenizer.eot,
                tokenizer.token_bytes,
                autocast=autocast_dtype(plan),
            )
            scores[step] = scored.val_bpb
    return {step: scores[step] for step in cadence.steps}


def _check_kept(run: RunFolder, config: PipelineConfig, steps: list[int]) -> None:
    """Raises UserError where the checkpoint of a step was not kept."""
    missing = [step for step in steps if run.checkpoint(checkpoint_name(step)) is None]
    if missing:
        listed = ", ".join(map(str, missing[:MAX_STEPS])) + (" …" if missing[MAX_STEPS:] else "")
        raise UserError(
            f"{_chosen_by(run, run.config)}. To choose it by {_settings(config)}, the checkpoints "
            f"of {len(missing)} more steps ({listed}) are needed, which were not kept. "
            f"{_remedy(run)}"
        )


# ---- messages ---------------------------------------------------------------------------------


def unfinished_message(run: RunFolder, config: PipelineConfig) -> str:
    """Why a run that is not finished cannot be resumed by the cadence of a config."""
    return (
        f"{run.name} is not finished, and chooses its best checkpoint by {_settings(run.config)}; "
        f"it cannot resume by {_settings(config)}. {_remedy(run)}"
    )


def _chosen_by(run: RunFolder, config: PipelineConfig) -> str:
    return f"the best checkpoint of {run.name} was chosen by {_settings(config)}"


def _settings(config: PipelineConfig) -> str:
    fields = keys.stage_fields("select", config)
    return " and ".join(f"train.{name}={value}" for name, value in fields.items())


def _remedy(run: RunFolder) -> str:
    fields = keys.stage_fields("select", run.config)
    given = " ".join(f"--set train.{name}={value}" for name, value in fields.items())
    return (
        f"Keep its settings (`slm train {run.name}`, or {given}), or train another run: another "
        "train.seed or recipe name"
    )
