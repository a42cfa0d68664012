"""Stop a training or a sweep from outside: `slm.stop`.

The driver of a sweep may be a command, a flow or a notebook, which no signal would suit alike. So
it is asked by a file in the sweep's folder, which it looks for before each training; those that
are going on are asked as any training is: they save after their step, and end.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import slm.training.stop
from slm.config import LIMITS
from slm.errors import CorruptionError, Interrupted, NewerFormat, SlmError, UserError
from slm.figures import counted
from slm.keys import SETTINGS
from slm.records import Frozen
from slm.registry.opening import open_run
from slm.run_folder import RunFolder
from slm.sweeps.definition import SEED, Sweep
from slm.sweeps.folder import SweepFolder
from slm.training.stop import PATIENCE_SECONDS, POLL_SECONDS, Stopped, ask_to_stop

if TYPE_CHECKING:
    from slm.registry.opening import Given

STOP = "stop"  # the file in the folder of a sweep that asks its driver to end
A = TypeVar("A")
R = TypeVar("R")


class StoppedSweep(Frozen):
    """What `stop` did, and what is left of the sweep."""

    sweep: str
    was_running: bool
    finished: bool
    trials: int  # that are done
    of: int
    runs: tuple[str, ...] = ()  # that were in training, and saved

    @property
    def sentence(self) -> str:
        """In words."""
        done = f"{self.trials} of {counted(self.of, 'trial')} done"
        if self.finished:
            return f"the sweep {self.sweep} is not running: it is complete, {done}"
        state = "stopped" if self.was_running else "not running"
        saved = f"; {', '.join(self.runs)} saved" if self.runs else ""
        return f"the sweep {self.sweep} is {state}, {done}{saved}"


def stop(
    run: "Given | SweepFolder",
    *,
    root: Path | None = None,
    seconds: float = PATIENCE_SECONDS,
) -> Stopped | StoppedSweep:
    """Ask a training, or a sweep, to save and end, and wait until it has ended.

    >>> slm.stop("quickstart-3693316e0b15").step

    Whoever started it, a command, a flow or a notebook, sees it as interrupted, and it resumes
    later. A run saves after its step; a sweep ends after the running trials have saved. What does
    not run is left alone.

    Args:
        run: as of `slm.open_run`, or a sweep: its folder, its name or the beginning of its key.
        seconds: to wait for the end.

    Raises SlmError where its process cannot be reached from here, or has not ended by then.
    """
    given = run_or_sweep(run, root)
    if isinstance(given, SweepFolder):
        return _stop_sweep(given, seconds)
    return slm.training.stop.stop(given, seconds=seconds)


def run_or_sweep(given: "Given | SweepFolder", root: Path | None = None) -> RunFolder | SweepFolder:
    """The run or the sweep that a reference names. Raises UserError where it is neither."""
    if isinstance(given, SweepFolder):
        return given
    try:
        return open_run(given, root)
    except UserError as error:
        if not isinstance(given, str | Path):
            raise
        try:
            return SweepFolder.open(str(given), root)
        except UserError:
            raise error from None


def _stop_sweep(folder: SweepFolder, seconds: float) -> StoppedSweep:
    if not folder.is_running:
        return _stopped(folder, was_running=False)
    deadline = time.monotonic() + seconds
    asked: dict[Path, str] = {}
    (folder.path / STOP).touch()
    while folder.is_running:
        for run in running_trials(folder):
            if run.path not in asked and ask_to_stop(run):
                asked[run.path] = run.name
        if time.monotonic() > deadline:
            raise SlmError(
                f"the sweep {folder.name} was asked to stop and has not ended within {seconds:g} "
                "s: it ends before its next training"
            )
        time.sleep(POLL_SECONDS)
    clear_request(folder)
    return _stopped(folder, was_running=True, runs=tuple(asked.values()))


def _stopped(folder: SweepFolder, *, was_running: bool, runs: tuple[str, ...] = ()) -> StoppedSweep:
    return StoppedSweep(
        sweep=folder.name,
        was_running=was_running,
        finished=folder.result is not None,
        trials=len(folder.trials),
        of=folder.sweep.trials,
        runs=runs,
    )


def running_trials(folder: SweepFolder) -> list[RunFolder]:
    """The runs in training that are trials of a sweep: they differ from it by its space alone."""
    try:
        sweep = folder.sweep
        expected = sweep.config().flat()
    except (UserError, CorruptionError, NewerFormat, FileNotFoundError):  # its recipe is gone
        return []
    names = _fixed(sweep)
    return [
        run
        for run in folder.root.runs()
        if run.is_training and _is_alike(run, sweep.recipe, expected, names)
    ]


def _fixed(sweep: Sweep) -> list[str]:
    """The settings of training and model in which the trials of a sweep are all alike."""
    varied = {SEED, *sweep.space, *(f"train.{name}" for name in LIMITS)}
    return [name for name in SETTINGS["train"] if name not in varied]


def _is_alike(run: RunFolder, recipe: str, expected: dict[str, object], names: list[str]) -> bool:
    try:
        config = run.config
    except (CorruptionError, NewerFormat):
        return False
    flat = config.flat()
    return config.recipe == recipe and all(flat[name] == expected[name] for name in names)


# ---- in the driver ----------------------------------------------------------------------------


def clear_request(folder: SweepFolder) -> None:
    """Forget that the driver was asked to end, as by one that was killed before it did."""
    (folder.path / STOP).unlink(missing_ok=True)


def unless_asked(folder: SweepFolder, train: Callable[[A], R]) -> Callable[[A], R]:
    """The same call, which raises Interrupted where the driver was asked to end."""

    def call(argument: A) -> R:
        if (folder.path / STOP).exists():
            raise Interrupted(f"the sweep {folder.name} was stopped; the same command resumes it")
        return train(argument)

    return call
