"""The best checkpoint of a finished run by another cadence than the run's own; nothing is trained.

The cadence is `train.evaluate_every` and `train.evaluate_documents`. It changes no weight, but the
checkpoint with the lowest held-out loss is the best of those that it scores. What training by the
other cadence would have chosen is chosen here, from the losses in the journal where they are on the
same documents, and from the saved checkpoints scored again; where it needs others, it is refused.
PyTorch is imported only to score, so that a plan can ask what a selection would need.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError, UserError
from slm.progress import Progress
from slm.records import Run, Selection, Shards
from slm.run_folder import CHECKPOINTS, SELECTION, RunFolder, checkpoint_name
from slm.storage import reading, run_stage
from slm.training.identity import cadence, has_former_key, run_inputs

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


@dataclass(frozen=True)
class Choice:
    """What choosing the best checkpoint by another cadence than the run's own takes."""

    key: str
    cadence: Cadence
    shards: Shards
    known: dict[int, float]  # step → val_bpb in the journal, where it is on the same documents

    @property
    def missing(self) -> list[int]:
        """The steps whose saved checkpoints have to be scored."""
        return [step for step in self.cadence.steps if step not in self.known]

    def best(self, scores: dict[int, float]) -> str:
        """The checkpoint of the lowest score: the first of equal ones, as in training."""
        return checkpoint_name(min(self.cadence.steps, key=lambda step: scores[step]))


def choice(run: RunFolder, record: Run, config: PipelineConfig) -> Choice | None:
    """How a finished run's best checkpoint is chosen by a config; None: as the run itself did.

    Raises UserError where its shards are gone.
    """
    shards = run.shards
    fields = keys.stage_fields("select", config)
    if fields == keys.stage_fields("select", run.config):
        return None
    if shards is None:
        raise UserError(
            f"{_chosen_by(run, run.config)}, and its shards are gone, without which it cannot be "
            f"chosen by {_settings(config)}: `slm encode {config.recipe}` makes them"
        )
    own, other = (Cadence.of(each, record.step, shards) for each in (run.config, config))
    if own == other:
        return None
    key = keys.stage_key("select", SELECT_VERSION, fields, {"weights": record.weights_sha256})
    known = _journal_scores(run) if own.documents == other.documents else {}
    return Choice(key, other, shards, known)


def select(run: RunFolder, record: Run, config: PipelineConfig, progress: Progress) -> Run:
    """The record of a finished run, with the best checkpoint by the cadence of a config.

    By another cadence than the run's own it is chosen once, and kept next to the run's other
    results. Raises UserError, which names what is missing, where the weights that it needs were
    not kept.
    """
    made = choice(run, record, config)
    if made is None:
        return record

    def build(staging: Path) -> Selection:
        scores = _scores(run, config, made, progress)
        best = made.best(scores)
        check_kept(run, config, [best])
        return Selection(
            key=made.key,
            run=run.name,
            best=best,
            val_bpb={str(step): val_bpb for step, val_bpb in scores.items()},
            **keys.stage_fields("select", config),
        )

    with reading(made.shards.path):
        selection = run_stage(run.result_folder(SELECTION, made.key), Selection, made.key, build)
    if run.checkpoint(selection.best, verify=True) is None:
        raise CorruptionError(f"{run.path / CHECKPOINTS / selection.best} is gone")
    return record.model_copy(update={"best": selection.best})


def _journal_scores(run: RunFolder) -> dict[int, float]:
    """The val_bpb of every step at which the run itself was scored."""
    entries = (entry for entry in run.journal if entry["event"] == "evaluate")
    return {entry["step"]: entry["val_bpb"] for entry in entries if entry.get("val_bpb")}


def _scores(
    run: RunFolder, config: PipelineConfig, made: Choice, progress: Progress
) -> dict[int, float]:
    """The val_bpb of every step of a cadence: the known one, or that of the saved checkpoint."""
    from slm.evaluation.scoring import score
    from slm.model.saved import load_model
    from slm.tokens.shards.reading import documents, read_shards
    from slm.training.plan import autocast_dtype
    from slm.training.process import torch_as_in

    missing, plan = made.missing, run.plan
    assert plan is not None, "a finished run has one"
    check_kept(run, config, map(checkpoint_name, missing))
    held_out = list(islice(documents(read_shards(made.shards.path), "val"), made.cadence.documents))
    scores = dict(made.known)
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
    return {step: scores[step] for step in made.cadence.steps}


def check_kept(run: RunFolder, config: PipelineConfig, names: Iterable[str]) -> None:
    """Raises UserError where one of these checkpoints was not kept."""
    missing = [name for name in names if run.checkpoint(name) is None]
    if missing:
        steps = [str(int(name.rpartition("_")[2])) for name in missing]
        listed = ", ".join(steps[:MAX_STEPS]) + (" …" if steps[MAX_STEPS:] else "")
        raise UserError(
            f"{_chosen_by(run, run.config)}. To choose it by {_settings(config)}, the checkpoints "
            f"of {len(missing)} more steps ({listed}) are needed, which were not kept. "
            f"{_remedy(run)}"
        )


def check_resumable(run: RunFolder, config: PipelineConfig) -> bool:
    """Whether an unfinished run has a key of former settings, which are then fixed.

    Raises UserError where its best checkpoint so far was chosen by another cadence than the
    config's.
    """
    settings, shards = run.settings, run.shards
    former = shards is not None and has_former_key(
        settings, run_inputs(shards, settings.parent_key, settings.derived)
    )
    scored = any(entry["event"] == "evaluate" for entry in run.journal)
    if (former or scored) and cadence(settings.config) != cadence(config):
        raise UserError(
            f"{run.name} is not finished, and chooses its best checkpoint by "
            f"{_settings(run.config)}; it cannot resume by {_settings(config)}. {_remedy(run)}"
        )
    return former


# ---- messages ---------------------------------------------------------------------------------


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
