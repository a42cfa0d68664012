"""Stop a training from outside: whichever process of this machine trains a run saves and ends."""

import time
from contextlib import suppress
from pathlib import Path

import psutil

from slm.errors import SlmError
from slm.records import Frozen, Run
from slm.run_folder import LOCK_PATIENCE_SECONDS, RunFolder
from slm.training.launch import as_folder
from slm.training.peers import STOP_ALL
from slm.training.trainers import trainers_of

PATIENCE_SECONDS = 60.0  # for a step, and its checkpoint
POLL_SECONDS = 0.05


class Stopped(Frozen):
    """What `stop` did, and what is left of the run."""

    run: str
    was_training: bool
    finished: bool
    step: int | None  # of the newest checkpoint; None: there is none yet

    @property
    def sentence(self) -> str:
        """In words, with what can be done next."""
        if self.finished:
            return f"{self.run} is not in training: it is finished, at step {self.step}"
        done = "stopped" if self.was_training else "not in training"
        if self.step is None:
            return f"{self.run} is {done}, before its first checkpoint"
        return f"{self.run} is {done}; its checkpoint of step {self.step} is saved"


def stop(
    run: str | Path | RunFolder | Run,
    *,
    root: Path | None = None,
    seconds: float = PATIENCE_SECONDS,
) -> Stopped:
    """Ask the training of a run to save after its step, and wait until it has ended.

    >>> slm.stop("quickstart-3693316e0b15").step

    Whoever started it, a command, a flow or a notebook, sees it as interrupted. A run that
    is not in training is left alone.

    Args:
        run: its folder or name.
        seconds: to wait for the end.

    Raises SlmError where its process cannot be reached from here, or has not ended by then.
    """
    folder = as_folder(run, root)
    processes = trainers_of(folder)
    if not processes and not folder.is_training:
        return _stopped(folder, was_training=False)
    deadline = time.monotonic() + seconds
    if not processes:  # a command that only looks holds the lock for an instant
        time.sleep(LOCK_PATIENCE_SECONDS)
        processes = trainers_of(folder)
    if not processes and folder.is_training:
        raise SlmError(
            f"{folder.name} is in training by a process that is not visible from here: stop it on "
            "the machine, in the container or as the user that trains it"
        )
    ask_to_stop(folder)
    while folder.is_training or any(map(_is_alive, processes)):
        if time.monotonic() > deadline:
            raise SlmError(
                f"{folder.name} was asked to stop and has not ended within {seconds:g} s: it saves "
                "and ends after the step that it is in"
            )
        time.sleep(POLL_SECONDS)
    return _stopped(folder, was_training=bool(processes))


def ask_to_stop(run: RunFolder) -> list[psutil.Process]:
    """Ask the processes that train a run to save and end; returns them."""
    processes = trainers_of(run)
    for process in processes:
        _ask(process, run)
    return processes


def _ask(process: psutil.Process, run: RunFolder) -> None:
    """Send a signal; psutil refuses a pid that another process has taken over meanwhile.

    SIGINT, which ends a training on several nodes on all of them.
    """
    try:
        process.send_signal(STOP_ALL)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        user = process.username()
        raise SlmError(
            f"{run.name} is trained by the user {user}: only they can stop it"
        ) from error


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stopped(run: RunFolder, *, was_training: bool) -> Stopped:
    last = run.last
    return Stopped(
        run=run.name,
        was_training=was_training,
        finished=run.is_finished,
        step=last.step if last else None,
    )
