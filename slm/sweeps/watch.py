"""`slm.watch`: what trains, from any process of the data folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slm.errors import UserError
from slm.registry.opening import open_run
from slm.run_folder import DataRoot, RunFolder
from slm.training.observe import POLL_SECONDS, RunState, observe

if TYPE_CHECKING:
    from slm.registry.opening import Given

MIN_SECONDS = 0.01


def watch(
    run: "Given | None" = None,
    *,
    root: Path | None = None,
    seconds: float = POLL_SECONDS,
    wait: bool = False,
) -> Iterator[RunState]:
    """Follow a training, in whichever process of this data folder it is, until it ends.

    >>> for state in slm.watch("quickstart-3693316e0b15"):
    ...     print(state.step, state.train_loss, state.val_bpb, state.seconds_left)
    >>> state.state, state.sentence

    Yields its state whenever it changes: when its journal has new `entries`, the first time all
    that are in it, and when its process starts, resumes, stalls or ends. A run that no process
    trains has one state. To stop watching stops nothing else.

    Args:
        run: as of `slm.open_run`. None: all that are in training, each with states of its own,
            until none is; where there is none, the data that are being made, else the newest run.
        seconds: between two looks.
        wait: without a run, for a training that is yet to begin.

    Raises UserError where there is no such run.
    """
    if seconds < MIN_SECONDS:
        raise UserError(f"seconds={seconds}: at least {MIN_SECONDS} are between two looks")
    return _changes(None if run is None else open_run(run, root), DataRoot(root), seconds, wait)


def _changes(
    run: RunFolder | None, root: DataRoot, seconds: float, wait: bool
) -> Iterator[RunState]:
    before: dict[str, tuple[str, str]] = {}
    for states in observe(run, root, seconds, wait=wait):
        for state in states:
            seen = state.state, state.message
            if state.entries or before.get(state.run) != seen:
                before[state.run] = seen
                yield state
