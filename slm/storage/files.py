"""Files that are written whole or not at all, and durably; JSON; folders that can be written to."""

import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from slm.errors import UserError
from slm.storage.faults import fault_point


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    fault_point("fsync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """`os.fsync`; on macOS, where that leaves the bytes in the disk's cache, its full form."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # of a file system that has none
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file or a folder, between two fault points."""
    fault_point("rename")
    source.rename(target)
    fault_point("renamed")


def write_file(path: Path, data: bytes | str | Iterable[bytes], *, replace: bool = True) -> bool:
    """Write one file, whole or not at all, and durably. Any process may do so at any time.

    A second writer of the same file waits; what a killed writer left is overwritten.

    Args:
        data: the content; or its parts in order, for what does not fit into memory.
        replace: whether a file that is there is replaced; else it stays.

    Returns whether this call wrote it.
    """
    fault_point("write")
    temporary = path.with_name(path.name + ".tmp")
    with _sole_writer(temporary) as file:
        try:
            if not replace and path.exists():
                temporary.unlink(missing_ok=True)
                return False
            text = data.encode() if isinstance(data, str) else data
            for part in [text] if isinstance(text, bytes) else text:
                file.write(part)
            file.flush()
            fsync_path(temporary)
            rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_path(path.parent)
    return True


def replace_file(path: Path, *parts: bytes) -> None:
    """Write one file, whole or not at all, but not durably: for what can be rebuilt.

    Any process may do so at any time, on other machines that share the folder too.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _sole_writer(path: Path) -> Iterator[BinaryIO]:
    """The file of that name, emptied, while no other process writes it."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _inode(path) == os.fstat(file.fileno()).st_ino:  # not renamed while we waited
                file.truncate(0)
                yield file
                return


def _inode(path: Path) -> int | None:
    """The inode of a name; None where there is none, such as just after a rename."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities, for which JSON has no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def to_json(value: Any, **options: Any) -> str:
    """`json.dumps` of a value's `finite` form: JSON that every reader accepts."""
    return json.dumps(finite(value), allow_nan=False, **options)


def write_json(path: Path, value: Any) -> None:
    """`write_file` for a JSON value, readable by people, with a newline at its end."""
    write_file(path, to_json(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def link_file(source: Path, target: Path) -> None:
    """Make a file available under another name: a hard link, or a copy where none can be made."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def named(parent: Path, name: str) -> Path:
    """The entry of a folder by a name from a file or a server. Raises UserError for any other path.

    A name is letters, digits and `_ . -`, and begins with a letter or a digit.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} is not the name of anything in {parent}")
    return parent / name


def make_folder(path: Path) -> Path:
    """Create a folder, durably, and check that it is writable, before any work is spent."""
    probe = path / f".probe-{os.getpid()}-{time.monotonic_ns()}"
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fsync_path(folder.parent)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a folder or lock that cannot be written."""
    return UserError(
        f"cannot write to {path} ({error.strerror}): free some space, change its permissions, "
        "or point SLM_DATA at another folder"
    )
