"""The training loop.

Everything that a step does is a function of the config, the shards and the step's number; all
randomness is drawn from (seed, step). So a run that was killed anywhere resumes from its newest
checkpoint with the bits of one that never was. Where the clock decides the cooldown, what it has
decided is an input too.
"""

import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import Interrupted, Untrainable
from slm.evaluation.scoring import MAX_LOSS, Score, score_each
from slm.evaluation.sources import by_source, held_out_sources
from slm.model.saved import CONFIG
from slm.records import Checkpoint, Plan, Run, source_bpb
from slm.run_folder import (
    CHECKPOINTS,
    DECISION,
    JOURNAL,
    PARENT,
    PLAN,
    RunFolder,
    checkpoint_name,
)
from slm.storage import (
    describe_files,
    fault_point,
    hashing_once,
    read_record,
    reading,
    write_record,
)
from slm.tokens.shards.reading import documents
from slm.training.checkpoint import CheckpointWriter, latest_checkpoint
from slm.training.clock import decide_cooldown, note, start_countdown
from slm.training.distributed import all_reduce_max, broadcast_from_rank0
from slm.training.gradients import step_gradient
from slm.training.journal import Journal, process_counts
from slm.training.optim import set_learning_rate
from slm.training.parallel import is_sharded, sharded_again, whole
from slm.training.plan import (
    autocast_dtype,
    check_rows,
    make_plan,
    memory_bytes,
    peak_flops,
    steps_within,
)
from slm.training.provenance import environment
from slm.training.session import (
    Job,
    Session,
    new_session,
    only_trainer,
    open_job,
    open_session,
    save,
    starts_cooldown,
)

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 50  # in a row, in fp16
MIN_SCALE = 2.0**-14
"""The least factor of the loss in fp16, which starts at 2¹⁶ and is halved by every overflow.

Below 1 it makes gradients smaller; the gradients that overflow even here exceed 2³⁰.
"""
STOP_SECONDS = 0.5  # between two questions of several processes whether one is to stop


def train(
    run: RunFolder,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Run | None:
    """Train the run whose folder `prepare` made, from its newest checkpoint if it has any.

    Args:
        run: the run folder; `config.json` in it holds the config and names the shards.
        should_stop: called after every step and while the final weights are scored; True saves a
            checkpoint and raises Interrupted.
        clock: seconds, for a limit in seconds.

    Returns the run's record. Of several processes rank 0 alone returns it, or raises the reason why
    there is none.

    Raises:
        Untrainable: training diverged: a loss, gradient, weight or moment that is not finite, or
            a loss beyond `MAX_LOSS`; the last checkpoint is kept.
        Interrupted: stopped, state saved.
        InUse: another process trains this run.
    """
    reported = nullcontext() if os.environ.get("RANK", "0") == "0" else suppress(Interrupted)
    with reported, only_trainer(run):
        if record := run.record:  # of a process that held the lock until now
            return record
        job = open_job(run)
        with reading(job.shards.path):
            return train_locked(job, should_stop, clock)
    return None


def train_locked(
    job: Job, should_stop: Callable[[], bool], clock: Callable[[], float]
) -> Run | None:
    """`train`, while no other process trains the run."""
    config = job.config
    with (
        Journal(job.run, enabled=job.rank == 0) as journal,
        CheckpointWriter(job.run.path / CHECKPOINTS, job.tokenizer) as writer,
    ):
        session = open_session(job, fix_plan(job, clock))
        model, plan = session.model, session.plan
        machine = environment()
        journal.write(
            "resume" if session.step else "start",
            step=session.step,
            max_steps=plan.max_steps,
            parameters=model.parameter_count(),
            processes=job.world_size,
        )
        held_out = held_out_slice(session)
        if session.is_done:
            score_early_end(session, writer, journal, held_out, machine)
        model.train()
        compile_ahead(session)
        batches = session.loader.batches(session.step)
        countdown = start_countdown(session, clock)
        loss, saved_step = 0.0, session.step
        scored: Score | None = None
        next_question = 0  # the step after which the processes next agree on whether to stop
        asking = True
        while not session.is_done:
            # ---- the cooldown, where the clock decides it
            if countdown:
                decide_cooldown(session, countdown, journal, asking)
                if session.step == starts_cooldown(session) and session.step > saved_step:
                    journal.sync()
                    save(session, writer, journal, loss, scored, machine)

            # ---- one optimizer step
            begin = time.perf_counter()
            factor = session.learning_rate_factor
            set_learning_rate(session.optimizers, factor)
            loss, grad_norm = train_step(session, *next(batches))
            session.step += 1
            seconds = time.perf_counter() - begin
            fault_point("train.step")

            # ---- the journal
            done = session.is_done
            if done:
                check_some_step(session)
            metrics = step_metrics(session, loss, grad_norm, factor, seconds)
            note(journal, countdown, "step", metrics)

            # ---- held-out loss on the fixed slice
            scored = None
            if done or session.step % config.train.evaluate_every == 0:
                fault_point("train.evaluate")
                scored = evaluate_slice(session, held_out)
                note(journal, countdown, "evaluate", {"step": session.step, **losses(scored)})
            improved = scored is not None and scored.val_bpb < session.best_bpb
            if scored is not None and improved:
                session.best_step, session.best_bpb = session.step, scored.val_bpb

            # ---- stop
            stopping = False
            asking = session.step >= next_question and not done
            if asking:
                stopping = bool(all_reduce_max(should_stop()))
                next_question = session.step + steps_between_questions(job.world_size, seconds)

            # ---- checkpoint
            due = session.step % config.train.checkpoint_every == 0
            due = due or session.step == starts_cooldown(session)
            if done or due or improved or stopping:
                journal.sync()
                save(session, writer, journal, loss, scored, machine)
                saved_step = session.step
            if stopping:
                break
        writer.wait()
        # Rank 0 alone saves, scores the final weights, and reports the end.
        if job.rank > 0 and not (session.is_done and is_sharded(model)):
            return None
        if not session.is_done:
            raise Interrupted(f"stopped after step {session.step}; its checkpoint is saved")
        fault_point("train.finish")
        with interruptible(session, should_stop):
            final = evaluate_slice(session, list(documents(job.shards, "val")))
        return finish(session, journal, machine, final) if job.rank == 0 else None


def steps_between_questions(world_size: int, step_seconds: float) -> int:
    """After how many steps `should_stop` is called again; the same number in all processes.

    Each question is an exchange between them all: they ask every `STOP_SECONDS`. One process alone
    asks at every step.
    """
    if world_size == 1:
        return 1
    return max(1, int(STOP_SECONDS / all_reduce_max(step_seconds)))


# ---- one step ---------------------------------------------------------------------------------


def train_step(session: Session, x: Tensor, y: Tensor) -> tuple[float, float]:
    """One optimizer step over this process's rows of the batch.

    Args:
        x, y: inputs and targets, (rows, T) each.

    Returns:
        The mean loss in nats per token, over all processes, and the gradient's norm before
        clipping. Where the norm is not finite, in fp16, no optimizer has made a step.
    """
    model, config = session.model, session.job.config.train
    total = step_gradient(session, x, y)
    for optimizer in session.optimizers:
        session.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    # The loss is fetched before the optimizers are enqueued, which costs a GPU the time of their
    # launch: whether they may step at all depends on it, for all of them together.
    mean_loss, grad_norm = torch.stack((total, whole(norm))).tolist()
    check_step(session, mean_loss, grad_norm)
    if math.isfinite(grad_norm):  # all optimizers step, or none: they were clipped by one norm
        for optimizer in session.optimizers:
            session.scaler.step(optimizer)
    session.scaler.update()
    model.zero_grad(set_to_none=True)
    return mean_loss, grad_norm


def check_step(session: Session, loss: float, grad_norm: float) -> None:
    """Raises Untrainable before an optimizer changes the weights.

    In fp16 a gradient may overflow: that step is skipped, and the scaler's factor halved until it
    fits. It is an error after `MAX_SKIPPED_STEPS` of them in a row, or below `MIN_SCALE`.
    """
    session.skipped = 0 if math.isfinite(grad_norm) else session.skipped + 1
    if loss <= MAX_LOSS and (math.isfinite(grad_norm) or may_skip(session)):
        return
    rows = described_rows(session)
    raise Untrainable(
        f"step {session.step + 1}: train_loss is {loss}, the gradient's norm {grad_norm}"
        f"{skipped_steps(session)}; no step was made and nothing saved: the weights are those of "
        f"step {session.step}, and the checkpoints up to it are kept; {remedy(session)}. The rows "
        f"of the step start at tokens {rows}"
    )


def described_rows(session: Session) -> str:
    """Part of a message: where the first rows of the next step start."""
    parts, starts = session.loader.rows_at(session.step)
    more = " …" if len(starts) > 8 else ""
    order = session.loader.order
    if order is None:
        return f"{', '.join(map(str, starts[:8]))}{more} of train"
    rows = zip(parts[:8], starts[:8], strict=True)
    return f"{', '.join(f'{start} of {order.names[part]}' for part, start in rows)}{more}"


def may_skip(session: Session) -> bool:
    """Whether a smaller factor of the loss may still bring gradients that overflow into fp16."""
    scaler = session.scaler
    return (
        scaler.is_enabled()
        and session.skipped < MAX_SKIPPED_STEPS
        and scaler.get_scale() >= MIN_SCALE
    )


def check_some_step(session: Session) -> None:
    """Raises Untrainable where fp16 skipped every step of a training that ends before a bound."""
    if not any(optimizer.state for optimizer in session.optimizers):
        raise Untrainable(
            f"step {session.step}, the last: none of the {session.step} steps was made"
            f"{skipped_steps(session)}; the weights are those of the start; {remedy(session)}"
        )


def skipped_steps(session: Session) -> str:
    """Part of a message: how many steps in a row fp16 has not made, if any."""
    if not (session.skipped and session.scaler.is_enabled()):
        return ""
    scale = session.scaler.get_scale()
    return f" (steps skipped in a row in fp16: {session.skipped}; loss scale {scale:.2g})"


def remedy(session: Session) -> str:
    """The end of a message about a training that diverged."""
    other = "set train.precision to bf16 or fp32, or " if session.scaler.is_enabled() else ""
    return f"{other}lower train.learning_rate, which is another run, or check the data"


def step_metrics(
    session: Session, loss: float, grad_norm: float, factor: float, seconds: float
) -> dict[str, Any]:
    """The figures of a step for the journal."""
    tokens = session.job.config.train.tokens_per_step
    rate = tokens / seconds
    flops = session.model.flops_per_token() * rate
    peak = peak_flops(session.plan.device, session.plan.precision)
    speed = {"mfu": flops / peak / session.job.world_size} if peak else {"gflops": flops / 1e9}
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
    return list(islice(documents(session.job.shards, "val"), count))


def evaluate_slice(session: Session, held_out: list[np.ndarray[Any, Any]]) -> Score:
    """Score the first documents of val, as many as are given, in all and by their source.

    Raises Untrainable where the loss is not finite or beyond `MAX_LOSS`.
    """
    model, tokenizer, dtype = session.model, session.job.tokenizer, autocast_dtype(session.plan)
    with sharded_again(model):
        rows = score_each(model, held_out, tokenizer.eot, tokenizer.token_bytes, autocast=dtype)
    scored = Score.total(rows)
    if sources := held_out_sources(session.job.shards, len(rows)):
        groups = by_source(rows, sources)
        scored = replace(scored, by_source={name: Score.total(g) for name, g in groups.items()})
    if not math.isfinite(scored.nats) or scored.val_loss > MAX_LOSS:
        raise Untrainable(
            f"step {session.step}: val_loss is {scored.val_loss}; the checkpoints before it are "
            f"kept; {remedy(session)}"
        )
    return scored


def losses(scored: Score) -> dict[str, float]:
    """The figures of an evaluation for the journal."""
    by_name = {source_bpb(name): each.val_bpb for name, each in scored.by_source.items()}
    return {"val_loss": scored.val_loss, "val_bpb": scored.val_bpb, **by_name}


@contextmanager
def interruptible(session: Session, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Within the block the model raises Interrupted before a batch is scored, if it should stop.

    A sharded one is scored by all processes, and all of them stop.
    """

    def check(*_: object) -> None:
        stops = should_stop()
        if bool(all_reduce_max(stops)) if is_sharded(session.model) else stops:
            raise Interrupted(
                f"stopped after step {session.step}, the last; its checkpoint is saved"
            )

    hook = session.model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


# ---- planning and finishing ---------------------------------------------------------------


def fix_plan(job: Job, clock: Callable[[], float]) -> Plan:
    """The run's plan: the one on disk, or one made now, with a probe if the limit is in seconds.

    Rank 0 decides for all processes: the others' clocks and GPUs may differ from its own.
    """
    text = ""
    if job.rank == 0:
        plan = job.run.plan or make_plan(job.config, job.shards.trained_on, job.world_size)
        text = plan.model_dump_json()
    plan = Plan.model_validate_json(broadcast_from_rank0(text))
    check_rows(plan.parallel, plan.rows, job.world_size)
    if plan.max_steps == 0:
        plan = probe(new_session(job, plan), clock)
    if job.rank == 0 and job.run.plan is None:
        job.run.write_plan(plan)
    return plan


def probe(session: Session, clock: Callable[[], float]) -> Plan:
    """Make some steps on a session that is thrown away; the plan with the steps of its limit.

    All processes count the seconds of the slowest, and so make the same number of steps.
    """
    config = session.job.config.train
    x, y = session.loader.batch(0)
    held_out = held_out_slice(session)
    set_learning_rate(session.optimizers, 0.0)
    session.model.train()
    compile_ahead(session)

    def timed(work: Callable[[], object]) -> float:
        begin = clock()
        work()
        return all_reduce_max(clock() - begin)

    assert config.max_seconds is not None, "the other limits are known without a probe"
    max_steps, measured = steps_within(
        config.max_seconds,
        step=lambda: timed(lambda: train_step(session, x, y)),
        score=lambda: timed(lambda: evaluate_slice(session, held_out)),
        every=config.evaluate_every,
    )
    return session.plan.model_copy(update={"max_steps": max_steps, "probe": measured})


def compile_ahead(session: Session) -> None:
    """Compile, by a gradient that is dropped, before a limit in seconds counts."""
    if session.plan.compile and session.job.config.train.max_seconds and not session.is_done:
        step_gradient(session, *session.loader.batch(session.step))
        session.model.zero_grad(set_to_none=True)


def score_early_end(
    session: Session,
    writer: CheckpointWriter,
    journal: Journal,
    held_out: list[np.ndarray[Any, Any]],
    machine: dict[str, Any],
) -> None:
    """Give the last checkpoint of a run that was ended early the score that any last one has."""
    last = session.job.run.checkpoint(checkpoint_name(session.step))
    if last is None or last.val_bpb is not None:
        return
    check_some_step(session)
    scored = evaluate_slice(session, held_out)
    journal.write("evaluate", step=session.step, **losses(scored))
    if scored.val_bpb < session.best_bpb:
        session.best_step, session.best_bpb = session.step, scored.val_bpb
    journal.sync()
    save(session, writer, journal, last.train_loss, scored, machine)


@hashing_once()
def finish(session: Session, journal: Journal, machine: dict[str, Any], final: Score) -> Run:
    """Write the run's record. `final`: the score of the final weights on all of val."""
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
        level=level(session),
        environment=machine,
    )
    write_record(session.job.run.path, record)
    return record


def level(session: Session) -> str:
    """The plan's; B under ddp and fsdp where other numbers of processes have trained the run."""
    plan, counts = session.plan, process_counts(session.job.run)
    return plan.level if plan.parallel == "elastic" or len(counts) == 1 else "B"


def kept_files(session: Session, last: Checkpoint) -> list[Path]:
    """The files of a finished run for its record to list; its checkpoints are verified first."""
    run = session.job.run.path
    folders = {last.path, last.path.with_name(checkpoint_name(session.best_step))}
    for folder in folders:
        assert read_record(folder, Checkpoint), f"{folder} is gone"
    if session.job.parent:
        folders.add(run / PARENT)
    inside = [path for folder in folders for path in folder.iterdir()]
    decision = [run / DECISION] if session.decision else []
    return [run / CONFIG, run / PLAN, *decision, run / JOURNAL, *inside]
