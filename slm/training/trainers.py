"""The processes of this machine that train a run."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from slm.run_folder import RunFolder

MODULE = "slm.training.process"  # that a training process runs
AGENT = "torch.distributed.run"  # which starts several of them, and trains nothing itself


def trainers_of(run: RunFolder) -> list[psutil.Process]:
    """The processes that train a run; a command line names the module and the run's folder."""
    return [process for process in _trainers() if _run_of(process) == run.path.resolve()]


def _trainers() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            command = process.cmdline()
            if MODULE in command[:-1] and AGENT not in command:
                yield process


def _run_of(process: psutil.Process) -> Path | None:
    with suppress(psutil.Error, OSError, IndexError):
        return (Path(process.cwd()) / process.cmdline()[-1]).resolve()
    return None
