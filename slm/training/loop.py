"""The training loop.

Everything that a step does is a function of the config, the shards and the step's number; all
randomness is drawn from (seed, step). So a run that was killed anywhere goes on from its newest
checkpoint with the bits of one that never was.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import Interrupted, TrainingError, UserError
from slm.evaluation.scoring import Score, score
from slm.model.loss import cross_entropy
from slm.model.saved import CONFIG
from slm.records import Checkpoint, Plan, Run
from slm.run_folder import CHECKPOINTS, JOURNAL, PARENT, PLAN, RunFolder
from slm.storage import describe_files, fault_point, read_record, reading, write_record
from slm.tokens.loader import derive_seed
from slm.tokens.shards.reading import documents
from slm.training.checkpoint import CheckpointWriter, checkpoint_name, latest_checkpoint
from slm.training.distributed import all_reduce_max, average_gradients, broadcast_from_rank0
from slm.training.journal import Journal
from slm.training.optim import learning_rate_factor, set_learning_rate
from slm.training.plan import autocast_dtype, make_plan, memory_bytes, peak_flops, steps_in
from slm.training.provenance import environment
from slm.training.session import (
    Job,
    Session,
    new_session,
    only_trainer,
    open_job,
    open_session,
    save,
)

logger = logging.getLogger(__name__)

TRAIN_VERSION = 4  # goes up whenever the same config and shards give other weights


def train(run: RunFolder, *, should_stop: Callable[[], bool] = lambda: False) -> Run | None:
    """Trains the run whose folder was prepared by `launch.prepare`, from wherever it stands.

    Args:
        run: the run folder; `config.json` in it names the config and the shards.
        should_stop: asked after every step; a yes saves a checkpoint and raises Interrupted.

    Returns the run's record; of several processes, the first does, and it alone says how it ended.

    Raises:
        TrainingError: a loss or gradient that is not finite, out of memory; the last checkpoint
            stands.
        Interrupted: stopped, state saved.
        SlmError: another process trains this run.
    """
    with only_trainer(run):
        done = run.record  # of who held the lock a moment ago
        if done:
            return done
        job = open_job(run)
        with reading(job.shards.path):
            return train_locked(job, should_stop)


def train_locked(job: Job, should_stop: Callable[[], bool]) -> Run | None:
    """`train`, while no other process trains the run."""
    config = job.config
    with (
        Journal(job.run, enabled=job.rank == 0) as journal,
        CheckpointWriter(job.run.path / CHECKPOINTS, job.tokenizer) as writer,
    ):
        session = open_session(job, fix_plan(job))
        model, plan = session.model, session.plan
        facts = environment()
        journal.write(
            "resume" if session.step else "start",
            step=session.step,
            max_steps=plan.max_steps,
            parameters=model.parameter_count(),
        )
        held_out = held_out_slice(session)
        forward = torch.compile(model) if plan.compile else model
        model.train()
        batches = session.loader.batches(session.step)
        while session.step < plan.max_steps:
            # ---- one optimizer step
            begin = time.perf_counter()
            factor = learning_rate_factor(session.step, plan.max_steps, config.train)
            set_learning_rate(session.optimizers, factor)
            loss, grad_norm = train_step(session, forward, *next(batches))
            session.step += 1
            seconds = time.perf_counter() - begin
            fault_point("train.step")

            # ---- the journal
            done = session.step == plan.max_steps
            journal.write("step", **step_metrics(session, loss, grad_norm, factor, seconds))

            # ---- held-out loss on the fixed slice
            found: Score | None = None
            if done or session.step % config.train.evaluate_every == 0:
                fault_point("train.evaluate")
                found = evaluate_slice(session, held_out)
                journal.write(
                    "evaluate", step=session.step, val_loss=found.val_loss, val_bpb=found.val_bpb
                )
            improved = found is not None and found.val_bpb < session.best_bpb
            if found is not None and improved:
                session.best_step, session.best_bpb = session.step, found.val_bpb

            # ---- checkpoint
            stopping = bool(all_reduce_max(should_stop())) and not done
            due = session.step % config.train.checkpoint_every == 0
            if done or due or improved or stopping:
                journal.sync()
                save(session, writer, journal, loss, found, facts)
            if stopping:
                break
        writer.wait()
        if job.rank > 0:  # the first process alone saves, scores, and says how it ended
            return None
        if session.step < plan.max_steps:
            raise Interrupted(f"stopped after step {session.step}; its checkpoint is saved")
        return finish(session, journal, facts)


# ---- one step ---------------------------------------------------------------------------------


def train_step(
    session: Session, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[float, float]:
    """One optimizer step over this process's rows of the batch, in micro-steps.

    Args:
        forward: the model, or its compiled form.
        x, y: inputs and targets, (rows, T) each.

    Returns:
        The mean loss in nats a token, over all processes, and the gradient's norm before clipping.
    """
    plan, model, config = session.plan, session.model, session.job.config.train
    torch.manual_seed(derive_seed(config.seed, "dropout", session.step, session.job.rank))
    dtype = autocast_dtype(plan)
    total = torch.zeros((), device=session.device)
    for micro_x, micro_y in zip(
        torch.split(x, plan.micro_batch_size), torch.split(y, plan.micro_batch_size), strict=True
    ):
        with torch.autocast(session.device.type, dtype, enabled=dtype is not None):
            hidden = forward(micro_x)  # (B, T, C)
        hidden = hidden.flatten(0, 1).to(dtype or hidden.dtype)
        loss = cross_entropy(hidden, model.embed.weight, micro_y.flatten()) / plan.grad_accum_steps
        session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        fault_point("train.micro_step")
    if plan.world_size > 1:
        average_gradients(model, total)
    for optimizer in session.optimizers:
        session.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    mean_loss, grad_norm = torch.stack((total, norm)).tolist()
    check_finite(session, mean_loss, grad_norm)
    if math.isfinite(grad_norm):  # all optimizers step, or none: they were clipped by one norm
        for optimizer in session.optimizers:
            session.scaler.step(optimizer)
    session.scaler.update()
    model.zero_grad(set_to_none=True)
    return mean_loss, grad_norm


def check_finite(session: Session, loss: float, grad_norm: float) -> None:
    """Stops before an optimizer touches the weights; in fp16 a gradient that is too large is not
    stepped on, and the scaler's factor falls.
    """
    if math.isfinite(loss) and (math.isfinite(grad_norm) or session.scaler.is_enabled()):
        return
    starts = session.loader.window_starts(session.step)
    raise TrainingError(
        f"step {session.step + 1}: train_loss is {loss}, the gradient's norm {grad_norm}; "
        f"no step was made and nothing saved. The weights of step {session.step} were the last "
        f"good ones. Its rows start at tokens {', '.join(map(str, starts[:8]))}"
        f"{' …' if len(starts) > 8 else ''} of train. Lower train.learning_rate, or check the data"
    )


def step_metrics(
    session: Session, loss: float, grad_norm: float, factor: float, seconds: float
) -> dict[str, Any]:
    """What the journal says of a step."""
    tokens = session.job.config.train.tokens_per_step
    rate = tokens / seconds
    flops = session.model.flops_per_token() * rate
    peak = peak_flops(session.plan.device)
    speed = {"mfu": flops / peak / session.plan.world_size} if peak else {"gflops": flops / 1e9}
    return {
        "step": session.step,
        "train_loss": loss,
        "lr": session.job.config.train.learning_rate * factor,
        "grad_norm": grad_norm,
        "tok_per_sec": rate,
        "tokens": session.step * tokens,
        "memory_bytes": memory_bytes(session.plan.device),
        **speed,
    }


# ---- held-out loss ----------------------------------------------------------------------------


def held_out_slice(session: Session) -> list[np.ndarray[Any, Any]]:
    """The first documents of val: the same ones at every evaluation."""
    count = session.job.config.train.evaluate_documents
    found = documents(session.job.shards, "val")
    return [document for document, _ in zip(found, range(count), strict=False)]


def evaluate_slice(session: Session, held_out: list[np.ndarray[Any, Any]]) -> Score:
    """Scores documents. Raises TrainingError where their loss is not finite."""
    found = score(
        session.model,
        held_out,
        session.job.tokenizer.eot,
        session.job.tokenizer.token_bytes,
        autocast=autocast_dtype(session.plan),
    )
    if not math.isfinite(found.nats):
        raise TrainingError(
            f"step {session.step}: val_loss is {found.val_loss}; the last checkpoint stands. "
            "Lower train.learning_rate, or check the data"
        )
    return found


# ---- planning and finishing ---------------------------------------------------------------


def fix_plan(job: Job) -> Plan:
    """The run's plan: the one on disk, or one made now, with a probe if the limit is in seconds.

    The first process decides for all of them: the others' clocks and GPUs may differ from its.
    """
    first = job.rank == 0
    found = job.run.plan if first else None
    if first and not found:
        found = make_plan(job.config, job.shards.splits["train"], job.world_size)
    plan = Plan.model_validate_json(broadcast_from_rank0(found.model_dump_json() if found else ""))
    if plan.world_size != job.world_size:
        raise UserError(
            f"{job.run.name} was started with {plan.world_size} processes and cannot go on "
            f"with {job.world_size}: the same bits are promised for the same number only"
        )
    if plan.max_steps == 0:
        plan = probe(new_session(job, plan))
    if first and job.run.plan is None:
        job.run.write_plan(plan)
    return plan


def probe(session: Session) -> Plan:
    """Makes some steps on a session that is thrown away; the plan with as many as its limit has.

    All processes count the seconds of the slowest, and so make as many steps.
    """
    config = session.job.config.train
    forward = torch.compile(session.model) if session.plan.compile else session.model
    x, y = session.loader.batch(0)
    held_out = held_out_slice(session)
    set_learning_rate(session.optimizers, 0.0)
    session.model.train()

    def timed(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return all_reduce_max(time.perf_counter() - begin)

    assert config.max_seconds is not None, "the other limits are known without a probe"
    max_steps, why = steps_in(
        config.max_seconds,
        step=lambda: timed(lambda: train_step(session, forward, x, y)),
        score=lambda: timed(lambda: evaluate_slice(session, held_out)),
        every=config.evaluate_every,
    )
    return session.plan.model_copy(update={"max_steps": max_steps, "probe": why})


def finish(session: Session, journal: Journal, facts: dict[str, Any]) -> Run:
    """Scores the final weights on all of val and writes the run's record."""
    fault_point("train.finish")
    held_out = list(documents(session.job.shards, "val"))
    final = evaluate_slice(session, held_out)
    steps = [e for e in session.job.run.journal if e["event"] == "step"]
    tail = steps[-max(1, len(steps) // 10) :]
    tokens = session.job.config.train.tokens_per_step
    last = latest_checkpoint(session.job.run.path / CHECKPOINTS)
    assert last is not None
    assert last.step == session.step
    journal.write("end", step=session.step, val_loss=final.val_loss, val_bpb=final.val_bpb)
    journal.sync()  # the record will hold its hash
    record = Run(
        key=session.job.key,
        path=session.job.run.path,
        files=describe_files(session.job.run.path, kept_files(session, last)),
        shards_key=session.job.shards.key,
        best=checkpoint_name(session.best_step),
        last=last.name,
        step=session.step,
        tokens=session.step * tokens,
        train_loss=statistics.fmean(e["train_loss"] for e in tail),
        val_loss=final.val_loss,
        val_bpb=final.val_bpb,
        tok_per_sec=statistics.median(e["tok_per_sec"] for e in steps),
        seconds=sum(tokens / e["tok_per_sec"] for e in steps),
        parameters=session.model.parameter_count(),
        weights_sha256=last.weights_sha256,
        level=session.plan.level,
        environment=facts,
    )
    write_record(session.job.run.path, record)
    return record


def kept_files(session: Session, last: Checkpoint) -> list[Path]:
    """The files of a finished run that its record vouches for: those that are still sound."""
    run = session.job.run.path
    folders = {last.path, last.path.with_name(checkpoint_name(session.best_step))}
    for folder in folders:
        assert read_record(folder, Checkpoint), f"{folder} is gone"
    if session.job.parent:
        folders.add(run / PARENT)
    inside = [path for folder in folders for path in folder.iterdir()]
    return [run / CONFIG, run / PLAN, run / JOURNAL, *inside]
