"""Replay: a stretch of a run trained once more and compared bit for bit.

It takes the very steps of training, from the checkpoint before the stretch or from the seed, and
keeps everything in memory: the run is only read.
"""

from contextlib import suppress
from dataclasses import dataclass, field

import safetensors.torch

from slm.errors import CorruptionError, UserError
from slm.model.saved import MODEL
from slm.progress import Progress, automatic, silent
from slm.records import Checkpoint, Plan
from slm.reproduction.comparing import TensorDifference, exact, tensor_differences
from slm.run_folder import PLAN, RunFolder
from slm.storage import read_record, reading, sha256_bytes
from slm.training.checkpoint import OPTIMIZER
from slm.training.journal import process_counts
from slm.training.optim import optimizer_tensors, set_learning_rate
from slm.training.parallel import gather
from slm.training.process import torch_as_in
from slm.training.provenance import environment
from slm.training.session import Session, new_session, open_job, restore
from slm.training.step import train_step


@dataclass
class Replay:
    """A stretch of a run, trained once more, next to what was recorded."""

    run: str
    start: int  # the first step that was asked for
    stop: int
    origin: int  # the step of the checkpoint that it was trained from; 0: from the seed
    level: str  # what is promised bit for bit, by the levels of docs/reliability.md
    steps: int = 0  # compared by their losses
    checkpoints: list[int] = field(default_factory=list)  # compared by sha256
    first_step: int | None = None  # the first whose loss or checkpoint differs
    losses: tuple[float | None, float] | None = None  # of that step, recorded and now
    tensor: TensorDifference | None = None  # the first one of the first differing checkpoint
    changed: list[str] = field(default_factory=list)  # facts of the machine and code: was → is

    @property
    def verdict(self) -> str:
        return "identical" if self.first_step is None else "different"


def verify_steps(
    run: RunFolder,
    start: int | None = None,
    stop: int | None = None,
    progress: Progress = automatic,
) -> Replay:
    """Train the steps `start` to `stop` of a run again; compare losses and checkpoints.

    Args:
        run: nothing is written to its folder.
        start: the first step, from 1. Training starts at the newest checkpoint kept before it, or
            from the seed, and the steps from there on are compared too. None: the step after the
            newest checkpoint before `stop`.
        stop: the last step. None: the newest checkpoint, or the last step of a run without one.

    One process verifies a run of several under `elastic`, whose bits do not depend on their number;
    others are verified by as many processes as trained them.

    Raises UserError for steps that the run does not have, and for a run whose sums no number of
    processes repeats; CorruptionError where shards or journal are damaged.
    """
    stretch = stretch_of(run, start, stop)
    [count] = {1} if stretch.plan.parallel == "elastic" else process_counts(run)
    if count == 1:
        return replay(run, stretch, progress)
    from slm.reproduction.together import replay_together

    progress(f"by {count} processes", 0, None)
    return replay_together(run, stretch.start, stretch.stop, count)


@dataclass(frozen=True)
class Stretch:
    """The steps of a run that are trained again, and what is recorded of them."""

    plan: Plan
    origin: int  # the step of the checkpoint before them; 0: the seed
    start: int
    stop: int
    losses: dict[int, float | None]
    kept: dict[int, Checkpoint]


def stretch_of(run: RunFolder, start: int | None = None, stop: int | None = None) -> Stretch:
    """The steps `start` to `stop` of a run, as of `verify_steps`, which raises the same."""
    plan = _plan(run)
    losses = {e["step"]: e.get("train_loss") for e in run.journal if e["event"] == "step"}
    if not losses:
        raise UserError(f"{run.name} has trained no step yet: there is nothing to repeat")
    kept = _checkpoints(run)
    stop = stop if stop is not None else max(kept, default=max(losses))
    before = [step for step in kept if step < (stop if start is None else start)]
    origin = max(before, default=0)
    start = start if start is not None else origin + 1
    if not 1 <= start <= stop <= max(losses):
        so_far = "" if run.is_finished else " so far"
        raise UserError(
            f"--steps {start}:{stop}: {run.name} has the steps 1 to {max(losses)}{so_far}; give "
            "A:B with A not above B"
        )
    if missing := set(range(origin + 1, stop + 1)) - set(losses):
        raise CorruptionError(f"the journal of {run.name} has no loss of step {min(missing)}")
    return Stretch(plan, origin, start, stop, losses, kept)


def replay(run: RunFolder, stretch: Stretch, progress: Progress = silent) -> Replay:
    """Train a stretch again in this process, or in all of its group; compare it."""
    origin, kept = stretch.origin, stretch.kept
    result = Replay(run.name, stretch.start, stretch.stop, origin, stretch.plan.level)
    with reading(run.path), torch_as_in(run):
        job = open_job(run)
        with reading(job.shards.path):
            session = new_session(job, stretch.plan)
            session.decision = run.decision
            if origin:
                restore(session, kept[origin])
            facts = next((kept[step].environment for step in sorted(kept, reverse=True)), {})
            now = environment()
            result.changed = [
                f"{k}: {facts[k]} → {now.get(k)}" for k in facts if facts[k] != now.get(k)
            ]
            _retrain(session, result, stretch.losses, kept, progress)
    return result


def _plan(run: RunFolder) -> Plan:
    plan = run.plan
    if plan is None:
        raise UserError(f"{run.name} has no {PLAN}: no step of it was trained yet")
    counts = process_counts(run)
    if plan.world_size > 2:
        raise UserError(
            f"{run.name} was trained by {max(plan.world_size, *counts)} processes under an older "
            "slm, whose sums are not repeated here: train it again and compare the checkpoints' "
            "sha256"
        )
    if plan.parallel != "elastic" and len(counts) > 1:
        numbers = ", then ".join(map(str, sorted(counts)))
        raise UserError(
            f"{run.name} was trained by {numbers} processes under train.parallel={plan.parallel}, "
            "whose sums follow their number: no number of them repeats it"
        )
    return plan


def _checkpoints(run: RunFolder) -> dict[int, Checkpoint]:
    """The valid checkpoints of a run by their steps. A damaged one is not used, and not touched."""
    valid = {}
    for _, path in run.checkpoints:
        with suppress(CorruptionError):
            if record := read_record(path, Checkpoint):
                valid[record.step] = record
    return valid


def _retrain(
    session: Session,
    result: Replay,
    losses: dict[int, float | None],
    kept: dict[int, Checkpoint],
    progress: Progress,
) -> None:
    """Train the steps; end at the first checkpoint that differs, whose tensor is then named."""
    session.model.train()
    since = f"from step {result.origin}" if result.origin else "from the seed"
    for x, y in session.loader.batches(session.step):
        set_learning_rate(session.optimizers, session.learning_rate_factor)
        loss, _ = train_step(session, x, y)
        session.step += 1
        result.steps += 1
        recorded = losses[session.step]
        if result.first_step is None and exact(recorded) != exact(loss):
            result.first_step, result.losses = session.step, (recorded, loss)
        if session.step in kept:
            result.checkpoints.append(session.step)
            result.tensor = _first_difference(session, kept[session.step])
            if result.tensor and result.first_step is None:
                result.first_step = session.step
        progress(since, session.step - result.origin, result.stop - result.origin)
        if result.tensor or session.step == result.stop:
            return


def _first_difference(session: Session, checkpoint: Checkpoint) -> TensorDifference | None:
    """The first tensor that is not as in the checkpoint, weights before optimizer state."""
    tensors = {
        MODEL: session.model.state_dict(),
        OPTIMIZER: optimizer_tensors(session.model, session.optimizers),
    }
    whole = {file: gather(current, keep=True)[0] for file, current in tensors.items()}
    for file, copies in whole.items():
        rebuilt = {name: tensor.contiguous() for name, tensor in copies.items()}
        if sha256_bytes(safetensors.torch.save(rebuilt)) != checkpoint.files[file].sha256:
            recorded = safetensors.torch.load_file(checkpoint.path / file)
            if differences := tensor_differences(checkpoint.step, recorded, rebuilt):
                return differences[0]
    return None
