"""`slm.watch`: what trains, from any process of the data folder."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from slm.errors import UserError
from slm.figures import counted
from slm.progress import clock
from slm.records import Frozen
from slm.run_folder import DataRoot, RunFolder
from slm.sweeps.definition import Sweep, parse_budget
from slm.sweeps.folder import TRIALS, SweepFolder
from slm.sweeps.records import Trial, ranking
from slm.sweeps.stop import run_or_sweep, running_trials
from slm.training.observe import POLL_SECONDS, Observer, RunState, observe

if TYPE_CHECKING:
    from slm.registry.opening import Given

MIN_SECONDS = 0.01


class SweepState(Frozen):
    """A sweep at one moment."""

    sweep: str  # its name
    state: Literal["running", "finished", "stopped"]
    done: int  # trials, failed ones too
    of: int  # as many as its budget allows, as far as that is known
    failed: int
    best: int | None = None  # number of the best trial so far
    best_bpb: float | None = None  # its mean over the seeds
    best_values: dict[str, Any] = Field(default_factory=dict)
    seconds_left: float | None = None  # estimated from the trials so far
    running: tuple[RunState, ...] = ()  # the trials in training now
    trials: tuple[Trial, ...] = ()  # done, that the state before had not

    @property
    def has_ended(self) -> bool:
        """Whether no driver runs it."""
        return self.state != "running"

    @property
    def sentence(self) -> str:
        """How far it is, the best so far, and the time left."""
        parts = [f"{self.state}: {self.done} of {counted(self.of, 'trial')}"]
        parts += [f"{self.failed} failed"] if self.failed else []
        if self.best_bpb is not None:
            values = ", ".join(f"{name}={_shown(v)}" for name, v in self.best_values.items())
            parts.append(f"best trial {self.best}: val_bpb {self.best_bpb:.4f} ({values})")
        parts += [f"about {clock(self.seconds_left)} left"] if self.seconds_left else []
        return ", ".join(parts)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def watch(
    run: "Given | SweepFolder | None" = None,
    *,
    root: Path | None = None,
    seconds: float = POLL_SECONDS,
    wait: bool = False,
) -> Iterator[RunState | SweepState]:
    """Follow a training or a sweep, in whichever process of this data folder it is, until it ends.

    >>> for state in slm.watch("quickstart-3693316e0b15"):
    ...     print(state.step, state.train_loss, state.val_bpb, state.seconds_left)
    >>> state.state, state.sentence

    Yields its state whenever it changes: of a run when its journal has new `entries`, the first
    time all that are in it, and when its process starts, resumes, stalls or ends; of a sweep when
    `trials` are done or those that are `running` change. What does not run has one state. To stop
    watching stops nothing else.

    Args:
        run: as of `slm.open_run`; or a sweep: its folder, its name or the beginning of its key.
            None: all that are in training, each with states of its own, until none is; where
            there is none, the data that are being made, else the newest run.
        seconds: between two looks.
        wait: without a run, for a training that is yet to begin.

    Raises UserError where there is no such run or sweep.
    """
    if seconds < MIN_SECONDS:
        raise UserError(f"seconds={seconds}: at least {MIN_SECONDS} are between two looks")
    given = None if run is None else run_or_sweep(run, root)
    if isinstance(given, SweepFolder):
        return _sweep_changes(given, seconds)
    return _changes(given, DataRoot(root), seconds, wait)


def _changes(
    run: RunFolder | None, root: DataRoot, seconds: float, wait: bool
) -> Iterator[RunState | SweepState]:
    before: dict[str, tuple[str, str]] = {}
    for states in observe(run, root, seconds, wait=wait):
        for state in states:
            seen = state.state, state.message
            if state.entries or before.get(state.run) != seen:
                before[state.run] = seen
                yield state


# ---- a sweep ----------------------------------------------------------------------------------


class SweepObserver:
    """Follows the records of a sweep's trials, and the runs of those that are in training."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self._known: set[int] = set()
        self._runs: dict[Path, Observer] = {}

    def look(self) -> SweepState:
        """The state now; `trials` are those that are new since the last look."""
        folder, sweep = self.folder, self.folder.sweep
        running = folder.is_running  # before the trials: so that the last look has all of them
        trials, finished = folder.trials, folder.result is not None
        runs = running_trials(folder) if running else []
        self._runs = {run.path: self._runs.get(run.path) or Observer(run) for run in runs}
        new = tuple(trial for trial in trials if trial.number not in self._known)
        self._known |= {trial.number for trial in new}
        best = next(iter(ranking(trials)), None)
        of = len(trials) if finished else max(len(trials), total(sweep, trials))
        return SweepState(
            sweep=folder.name,
            state="running" if running else "finished" if finished else "stopped",
            done=len(trials),
            of=of,
            failed=sum(trial.state == "failed" for trial in trials),
            best=best.number if best else None,
            best_bpb=best.val_bpb if best else None,
            best_values=best.values if best else {},
            seconds_left=self._seconds_left(trials, of - len(trials)) if running else None,
            running=tuple(observer.look() for observer in self._runs.values()),
            trials=new,
        )

    def _seconds_left(self, trials: list[Trial], left: int) -> float | None:
        """By the usual time between two records, which has all that a trial takes.

        The median: a sweep that was stopped for a night has one long gap.
        """
        if not trials or left <= 0:
            return None
        paths = (self.folder.path / TRIALS).glob("*.json")
        ends = sorted(path.stat().st_mtime for path in paths)
        gaps = [b - a for a, b in pairwise(ends)]
        each = median(gaps) if gaps else trials[0].seconds
        return max(0.0, left * each - min(each, time.time() - ends[-1]))


def total(sweep: Sweep, trials: list[Trial]) -> int:
    """How many trials a sweep will run, by its budget too, at what those so far have taken."""
    if sweep.budget is None:
        return sweep.trials
    budget = parse_budget(sweep.budget)
    if budget.kind == "trials":
        return min(sweep.trials, round(budget.amount))
    spent = sum(t.seconds if budget.kind == "seconds" else t.tokens for t in trials)
    return min(sweep.trials, round(budget.amount * len(trials) / spent)) if spent else sweep.trials


def observe_sweep(folder: SweepFolder, seconds: float = POLL_SECONDS) -> Iterator[SweepState]:
    """At each `next`, after `seconds`, the state of a sweep until it ends."""
    observer = SweepObserver(folder)
    while True:
        state = observer.look()
        yield state
        if state.has_ended:
            return
        time.sleep(seconds)


def _sweep_changes(folder: SweepFolder, seconds: float) -> Iterator[SweepState]:
    before: tuple[object, object] | None = None
    for state in observe_sweep(folder, seconds):
        seen = state.state, [(run.run, run.state) for run in state.running]
        if state.trials or seen != before:
            before = seen
            yield state
