"""Locks of results, by flock: exclusive to build or delete one, shared to read it."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slm.errors import InUse
from slm.storage.files import cannot_write


def lock_of(folder: Path) -> Path:
    """The lock of a stage's result: exclusive to build or delete it, shared to read it."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def reading(*folders: Path) -> Iterator[None]:
    """Keep results from being deleted while a stage reads them, by holding their locks shared."""
    with lock_shared(*map(lock_of, folders)):
        yield


@contextmanager
def lock_shared(*locks: Path) -> Iterator[None]:
    """Hold locks shared. In a data folder that this user cannot write to, nothing is locked."""
    with ExitStack() as held:
        for path in locks:
            try:
                file = held.enter_context(path.open("a"))
            except OSError:
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def lock(path: Path, *, wait: bool = True, patience: float = 0.0) -> Iterator[None]:
    """Hold a file's flock, which the kernel frees when the process ends, however it ends.

    With `wait=False` a lock that another process holds raises InUse, after `patience` seconds. One
    that cannot be written, such as another user's, raises UserError.
    """
    try:
        file = path.open("a")
    except PermissionError as error:
        raise cannot_write(path, error) from error
    with file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise InUse(f"{path.parent} is in use by another process") from error
                time.sleep(0.01)
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds this lock exclusively now. It need not be writable to ask."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False
