"""The training loop.

Everything that a step does is a function of the config, the shards and the step's number; all
randomness is drawn from (seed, step). So a run that was killed anywhere resumes from its newest
checkpoint with the bits of one that never was. Where the clock decides the cooldown, what it has
decided is an input too.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np

from slm.errors import Interrupted
from slm.evaluation.scoring import Score
from slm.records import Plan, Run
from slm.run_folder import CHECKPOINTS, RunFolder, checkpoint_name
from slm.storage import fault_point, reading
from slm.tokens.shards.reading import documents
from slm.training.checkpoint import CheckpointWriter
from slm.training.clock import decide_cooldown, note, start_countdown
from slm.training.distributed import all_reduce_max, broadcast_from_rank0
from slm.training.finish import finish
from slm.training.gradients import step_gradient
from slm.training.held_out import evaluate_slice, held_out_slice, interruptible, losses
from slm.training.journal import Journal
from slm.training.optim import set_learning_rate
from slm.training.parallel import is_sharded
from slm.training.plan import check_rows, make_plan, steps_within
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
from slm.training.step import check_some_step, step_metrics, train_step

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


# ---- before the first step, and after an early end ---------------------------------------------


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
