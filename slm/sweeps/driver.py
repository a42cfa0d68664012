"""The driver of a sweep: it runs what is proposed until enough is done, from wherever it was.

What is done is what has a record in the sweep's folder, and nothing else is remembered. A driver
that was killed proposes the same batches again, from the same results, and runs what has no record
yet; a training that had begun resumes, and one that had finished is reused.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from threading import Event

from slm.config import PipelineConfig
from slm.errors import (
    Interrupted,
    InUse,
    NewerFormat,
    SlmError,
    TrainingError,
    Untrainable,
    UserError,
)
from slm.progress import Progress, silent
from slm.records import Evaluation, Run
from slm.run_folder import DataRoot
from slm.sweeps.definition import Sweep, parse_budget
from slm.sweeps.folder import SweepFolder
from slm.sweeps.halving import rank_correlations
from slm.sweeps.proposals import Proposal, propose, versions
from slm.sweeps.records import SeedRun, SweepResult, Trial, ranking
from slm.sweeps.stop import clear_request, unless_asked

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a training whose process is killed: each resumes the one before
IN_USE_SECONDS = 1.0  # between two looks at a run that another process trains
RunTrial = Callable[[PipelineConfig], tuple[Run, Evaluation]]
OnTrial = Callable[[Trial], None]


def run_sweep(
    sweep: Sweep,
    root: DataRoot | Path | None,
    *,
    run_trial: RunTrial,
    workers: int = 1,
    progress: Progress = silent,
    on_trial: OnTrial = lambda trial: None,
) -> SweepResult:
    """Run the trials of a sweep that have no record yet, batch by batch; return what came of all.

    Args:
        run_trial: trains and evaluates a config, or reuses what is complete. It raises Untrainable
            where the settings are refused or diverge: the trial has failed, and the next begins.
        workers: trainings of a batch that run at a time. The trials are the same for any number.
        on_trial: called with each trial that this call has run, when its record is written.

    Raises InUse where another process runs this sweep, and whatever else stops it: interrupted, it
    resumes.
    """
    if workers < 1:
        raise UserError(f"workers={workers}: give at least 1")
    folder = SweepFolder.of(sweep, root)
    with folder.locked():
        folder.write_sweep(sweep, versions())
        clear_request(folder)
        run_trial = unless_asked(folder, run_trial)
        known = {trial.number: trial for trial in folder.trials}
        batches: list[list[Trial]] = []
        while not _budget_is_spent(sweep, batches):
            proposals = propose(sweep, [[trial.result for trial in batch] for batch in batches])
            if not proposals:
                break
            _check_known(folder, proposals, known)
            missing = [proposal for proposal in proposals if proposal.number not in known]
            if missing:
                folder.unmark_complete()

            def ended(trial: Trial) -> None:
                folder.write_trial(trial)
                known[trial.number] = trial
                on_trial(trial)
                progress(f"trial {trial.number}", len(known), sweep.trials)

            _run_batch(sweep, missing, run_trial, workers, ended)
            batches.append([known[proposal.number] for proposal in proposals])
        result = summary(sweep, [trial for batch in batches for trial in batch])
        folder.write_result(result)
        return result


def _check_known(folder: SweepFolder, proposals: list[Proposal], known: dict[int, Trial]) -> None:
    """Raises SlmError where a trial that is done is not what is proposed now."""
    for proposal in proposals:
        trial = known.get(proposal.number)
        if trial and (trial.overrides, trial.rung) != (proposal.overrides, proposal.rung):
            then, now = folder.versions, versions()
            changed = [f"{name} {then[name]}" for name in then if then[name] != now.get(name)]
            reason = (
                f"it was proposed with {', '.join(changed)}: install that, or begin another sweep "
                "with --seed"
                if changed
                else f"its record, or one before it, was changed; see {folder.path}"
            )
            raise SlmError(
                f"trial {proposal.number} of {folder.name} is not what is proposed now; {reason}"
            )


# ---- what came of it --------------------------------------------------------------------------


def _budget_is_spent(sweep: Sweep, batches: list[list[Trial]]) -> bool:
    """Whether the recorded trials have taken what the budget allows.

    A sum over records, which is the same after a restart, and not a clock of this process.
    """
    if sweep.budget is None:
        return False
    budget = parse_budget(sweep.budget)
    trials = [trial for batch in batches for trial in batch]
    spent = {
        "trials": float(len(trials)),
        "seconds": sum(trial.seconds for trial in trials),
        "tokens": float(sum(trial.tokens for trial in trials)),
    }
    return spent[budget.kind] >= budget.amount


def summary(sweep: Sweep, trials: list[Trial]) -> SweepResult:
    """What came of the trials of a sweep, all those that it will run."""
    best = next(iter(ranking(trials)), None)
    if len(trials) >= sweep.trials:
        ended = "trials"
    else:
        ended = "budget" if _budget_is_spent(sweep, [trials]) else "space"
    results = [trial.result for trial in trials]
    return SweepResult(
        name=sweep.name,
        key=sweep.key,
        ended=ended,
        best=best.number if best else None,
        seconds=round(sum(trial.seconds for trial in trials), 3),
        tokens=sum(trial.tokens for trial in trials),
        correlations=tuple(rank_correlations(sweep.halving, results)) if sweep.halving else (),
        trials=tuple(trials),
    )


# ---- a batch ----------------------------------------------------------------------------------


def _run_batch(
    sweep: Sweep, proposals: list[Proposal], run_trial: RunTrial, workers: int, ended: OnTrial
) -> None:
    """Run the trials of these proposals; `ended` is called when the last seed of one is done."""
    if workers == 1:
        for proposal in proposals:
            seeds = [_train(sweep, proposal, i, run_trial) for i in range(sweep.seeds)]
            ended(_trial(proposal, seeds))
        return
    done: dict[int, dict[int, SeedRun]] = {proposal.number: {} for proposal in proposals}
    with _in_threads(workers) as submit:
        pending = {
            submit(partial(_train, sweep, proposal, index, run_trial)): (proposal, index)
            for proposal in proposals
            for index in range(sweep.seeds)
        }
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                proposal, index = pending.pop(future)
                of_trial = done[proposal.number]
                of_trial[index] = future.result()
                if len(of_trial) == sweep.seeds:
                    ended(_trial(proposal, [of_trial[i] for i in range(sweep.seeds)]))


def _trial(proposal: Proposal, seeds: list[SeedRun]) -> Trial:
    return Trial(**proposal.model_dump(), seeds=tuple(seeds))


def _train(sweep: Sweep, proposal: Proposal, index: int, run_trial: RunTrial) -> SeedRun:
    """One training of a trial, or why it failed. Raises what stops the sweep."""
    seed = sweep.config().train.seed + index
    try:
        config = sweep.config_of(proposal.overrides, index)
        seed = config.train.seed
    except UserError as error:
        if isinstance(error, NewerFormat):
            raise
        return SeedRun(seed=seed, state="failed", reason=str(error))
    try:
        run, evaluation = _patiently(run_trial, config)
    except Untrainable as error:
        return SeedRun(seed=seed, state="failed", reason=str(error))
    return SeedRun(
        seed=seed,
        state="finished",
        run=run.name,
        key=run.key,
        shards_key=run.shards_key,
        val_bpb=evaluation.val_bpb,
        documents=evaluation.documents,
        bytes=evaluation.bytes,
        weights_sha256=evaluation.weights_sha256,
        seconds=run.seconds,
        tokens=run.tokens,
        step=run.step,
        reused=run.reused,
    )


def _patiently(run_trial: RunTrial, config: PipelineConfig) -> tuple[Run, Evaluation]:
    """`run_trial`, again where its process was killed, and once it is free where it is in use.

    It is in use for some seconds after a driver was killed: its trainer saves and ends.
    """
    attempt = 1
    while True:
        check_stopping()
        try:
            return run_trial(config)
        except InUse as error:
            logger.info("%s; waiting for it", error)
            time.sleep(IN_USE_SECONDS)
        except Untrainable:
            raise
        except TrainingError as error:
            if attempt == MAX_ATTEMPTS:
                raise
            logger.warning("%s; resuming it, attempt %d of %d", error, attempt + 1, MAX_ATTEMPTS)
            attempt += 1


# ---- threads ----------------------------------------------------------------------------------

_stopping: ContextVar[Event | None] = ContextVar("stopping", default=None)


def check_stopping() -> None:
    """Raises Interrupted where the sweep is ending: a training in a thread calls it now and then.

    Signals reach the main thread alone.
    """
    event = _stopping.get()
    if event and event.is_set():
        raise Interrupted("the sweep is ending")


@contextmanager
def _in_threads(workers: int) -> Iterator[Callable[[Callable[[], SeedRun]], Future[SeedRun]]]:
    """Runs calls in threads; whatever ends the block early ends them, after they have saved."""
    stopping = Event()
    token = _stopping.set(stopping)
    pool = ThreadPoolExecutor(workers)
    try:
        yield lambda call: pool.submit(copy_context().run, call)
    except BaseException:
        stopping.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        _stopping.reset(token)
