"""What is on disk, and when it is complete.

Every durable thing in `data/` is a folder with its files and, written last, a `record.json` with
the size and sha256 of each. A folder is complete if and only if that record is in it and every file
matches; "the file exists" is never enough. Only this module renames or fsyncs.

The commit rule, kept by `commit`: write the files in `X.tmp/`, fsync each, write the record, fsync
it and the folder, rename `X.tmp` to `X`, fsync the parent. Nothing is overwritten in place, so a
kill or a power cut at any moment leaves either no `X` or a whole one.
"""

import errno
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from slm.errors import CorruptionError, InUse, NewerFormat, SlmError, UserError, first_invalid
from slm.records import FileEntry, Made, Record

try:
    import fcntl
except ImportError as error:
    raise UserError(
        "slm runs on Linux and macOS: this system has no flock, by which its results are locked; "
        "on Windows install and run it inside WSL"
    ) from error

logger = logging.getLogger(__name__)

RECORD = "record.json"
MADE = "made.json"  # next to it: how the result was made; no hash covers it, nothing needs it
FORMAT = 8
"""The format number of `record.json`, `config.json`, `plan.json` and `decision.json`; none means 1.

It goes up when a field of one of them is added, dropped or renamed. An older file is migrated in
memory; a newer one is refused, and never touched.
"""
PLAIN_FORMAT = 7  # of records of what is no mixture: they are written as before there were any
# The names of what interrupted work leaves, and of what was quarantined as corrupt.
LEFTOVER = re.compile(r".+\.tmp|.+\.corrupt-\d+|\..+\.old(-\d+)?|\..+\.units|\.probe-.+")
R = TypeVar("R", bound=Record)


# ---- hashes and keys --------------------------------------------------------------------------


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8. What keys are made from."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a value's `canonical_json`."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes; within `hashing_once`, read once."""
    return _digest(path, _known_digests.get())


Digests = dict[tuple[int, int, int, int], str]
_known_digests: ContextVar[Digests | None] = ContextVar("digests", default=None)


@contextmanager
def hashing_once(*, anew: bool = False) -> Iterator[None]:
    """Within the block a file is hashed once, however often it is checked. Also a decorator.

    Every stage call and every command is such a block, and the next one hashes again. A file that
    changes is hashed again at once. `anew`: forgets what the blocks around have hashed, for what
    is promoted.
    """
    known = None if anew else _known_digests.get()
    token = _known_digests.set({} if known is None else known)
    try:
        yield
    finally:
        _known_digests.reset(token)


def _digest(path: Path, known: Digests | None) -> str:
    with path.open("rb") as file:
        if known is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in known:
            known[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return known[identity]


def content_hash(record: Record) -> str:
    """One hash over the files of a record: what the next stage's key takes as its input.

    Files that only explain the others to people are left out.
    """
    files = record.files.items()
    return sha256_json({name: e.sha256 for name, e in files if name not in record.no_content})


# ---- fault points -----------------------------------------------------------------------------

_passes: dict[str, int] = {}


def fault_point(name: str) -> None:
    """A place where a test may make this process fail: `SLM_FAULT=NAME:N:kill|enospc|eio|raise`.

    The fault fires at the N-th pass of that name (`*` counts every name). Unset, it costs one
    lookup in the environment.
    """
    fault = os.environ.get("SLM_FAULT")
    if not fault:
        return
    target, count, kind = fault.split(":")
    if target not in ("*", name):
        return
    _passes[target] = _passes.get(target, 0) + 1
    if _passes[target] != int(count):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise RuntimeError(f"fault injected at {name}")
    number = {"enospc": errno.ENOSPC, "eio": errno.EIO}[kind]
    raise OSError(number, os.strerror(number), name)


def reset_fault_points() -> None:
    """Start to count the passes of every fault point anew."""
    _passes.clear()


# ---- files ------------------------------------------------------------------------------------


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


def _rename(source: Path, target: Path) -> None:
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
            _rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_path(path.parent)
    return True


def replace_file(path: Path, *parts: bytes) -> None:
    """Write one file, whole or not at all, but not durably: for what is made again if it is lost.

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


def describe_files(folder: Path, paths: Iterable[Path]) -> dict[str, FileEntry]:
    """Size and sha256 of files, by their path relative to `folder`; hashed in parallel."""
    ordered = sorted(paths)
    known = _known_digests.get()  # threads do not inherit it
    if len(ordered) == 1:  # threads take longer to start than a small file to hash
        digests = [_digest(ordered[0], known)]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(lambda path: _digest(path, known), ordered))
    return {
        path.relative_to(folder).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(ordered, digests, strict=True)
    }


def mismatches(folder: Path, files: Mapping[str, FileEntry], *, hashes: bool = True) -> list[str]:
    """What is wrong with the recorded files of a folder, a line each; empty if nothing is.

    `hashes`: whether files are read and hashed; without, only their sizes are compared.
    """
    wrong, present = [], []
    for name, entry in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path}: missing")
        elif path.stat().st_size != entry.bytes:
            wrong.append(f"{path}: {path.stat().st_size} bytes, recorded {entry.bytes}")
        else:
            present.append(path)
    if not hashes:
        return wrong
    try:
        entries = describe_files(folder, present)
    except FileNotFoundError as error:  # another process quarantined the folder, or pruned it
        return [*wrong, f"{error.filename}: removed while it was read"]
    wrong += [
        f"{folder / name}: sha256 {entry.sha256[:12]}…, recorded {files[name].sha256[:12]}…"
        for name, entry in entries.items()
        if entry.sha256 != files[name].sha256
    ]
    return wrong


# ---- records ----------------------------------------------------------------------------------


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json`, with its own hash in it: this makes the folder complete."""
    fields = finite(record.model_dump(mode="json"))
    try:
        type(record).model_validate(fields)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise SlmError(f"{folder} is not complete: {names} of its record is not finite") from error
    if not fields.get("parts"):
        fields.pop("parts", None)
    of_mixture = "parts" in fields or fields.get("kind") == "trimmed"
    fields = {"format": FORMAT if of_mixture else PLAIN_FORMAT, **fields}
    write_json(folder / RECORD, {**fields, "sha256": sha256_json(fields)})


def read_record(folder: Path, kind: type[R], *, verify: bool = True) -> R | None:
    """The record of a complete folder; None where there is none.

    Raises CorruptionError if the record cannot be read or a file does not match it.
    """
    try:
        _, fields = read_versioned(folder / RECORD, sealed=True)
        record = kind.model_validate({**fields, "path": folder})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        reason = first_invalid(error)
        raise CorruptionError(f"{folder / RECORD} cannot be read: {reason}") from error
    except ValueError as error:
        raise CorruptionError(f"{folder / RECORD} cannot be read: {error}") from error
    if verify and (wrong := mismatches(folder, record.files)):
        raise CorruptionError("; ".join(wrong))
    return record


def write_versioned(path: Path, fields: Mapping[str, Any]) -> None:
    """`write_json` for a file that carries the format number."""
    write_json(path, {"format": FORMAT, **fields})


def read_versioned(path: Path, *, sealed: bool = False) -> tuple[int, dict[str, Any]]:
    """The format number of a file, and its fields.

    `sealed`: it holds its own sha256, which in every format is made in the same way.

    Raises FileNotFoundError, CorruptionError where it cannot be read or is not what was written,
    NewerFormat.
    """
    try:
        fields = dict(json.loads(path.read_bytes()))
        if sealed and fields.pop("sha256", None) != sha256_json(fields):
            raise ValueError("its own sha256 does not match")
        number = fields.pop("format", 1)
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"its format is {number!r}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    if number > FORMAT:
        raise NewerFormat(
            f"{path} is of format {number}, and this slm reads formats up to {FORMAT}: use the slm "
            "that wrote it, or point SLM_DATA at another folder; nothing was changed"
        )
    return number, fields


def unmark_complete(folder: Path) -> None:
    """Remove a folder's record, durably, so that it is no longer complete; its files stay."""
    (folder / RECORD).unlink(missing_ok=True)
    fsync_path(folder)


def check_files(folder: Path, names: Collection[str] | None = None) -> int:
    """Hash the files of a folder, or those of `names`, against its record, of whatever kind.

    Returns their number. Raises CorruptionError naming what is not as recorded.
    """
    _, fields = read_versioned(folder / RECORD, sealed=True)
    entries = Record.model_validate({key: fields.get(key) for key in ("key", "files")}).files
    chosen = {name: entries[name] for name in entries if names is None or name in names}
    wrong = [f"{folder / name}: not in the record" for name in set(names or ()) - set(chosen)]
    if wrong := wrong + mismatches(folder, chosen):
        raise CorruptionError("; ".join(wrong))
    return len(chosen)


def commit(
    staging: Path, folder: Path, record: R, files: Mapping[str, FileEntry] | None = None
) -> R:
    """Put a staged folder in place by the commit rule and return its record with the hashes.

    An existing folder of that name is replaced: it was not valid, or of other settings. All files
    get the permissions of the record.

    `files`: those that the record lists, where they were hashed as they were written; None: all.
    """
    inside = sorted(path for path in staging.rglob("*") if path != staging / RECORD)
    for path in inside:
        fsync_path(path)
    paths = [path for path in inside if path.is_file() and path != staging / MADE]
    listed = describe_files(staging, paths) if files is None else dict(files)
    complete = record.model_copy(update={"path": folder, "files": listed, "reused": False})
    write_record(staging, complete)
    mode = (staging / RECORD).stat().st_mode
    for path in paths:  # safetensors closes its files to all other users
        if path.stat().st_mode != mode:
            path.chmod(mode)
    if folder.exists():
        discard(folder)
    _rename(staging, folder)
    fsync_path(folder.parent)
    return complete


def discard(folder: Path) -> None:
    """Remove a folder so that it never looks half-valid: it is renamed first, durably."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    _rename(folder, doomed)
    fsync_path(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def delete_leftovers(folder: Path, name: str) -> None:
    """Remove what killed processes left in a folder under `name`, which may be a glob.

    Only while no other process can be working on them.
    """
    for left in (*folder.glob(f"{name}.tmp"), *folder.glob(f".{name}.old")):
        logger.info("removing %s, left by an interrupted process", left)
        shutil.rmtree(left, ignore_errors=True)


def quarantine(folder: Path) -> Path:
    """Rename a corrupt folder and return its new path: the bytes stay for inspection.

    Only the newest of a name is kept, so that a failing disk does not fill up.
    """
    for older in folder.parent.glob(f"{glob.escape(folder.name)}.corrupt-*"):
        shutil.rmtree(older, ignore_errors=True)
    target = folder.with_name(f"{folder.name}.corrupt-{time.time_ns()}")
    _rename(folder, target)
    return target


def run_stage(
    folder: Path,
    kind: type[R],
    key: str,
    build: Callable[[Path], R],
    made: Mapping[str, Any] | None = None,
) -> R:
    """The result of a stage: the complete one, or what `build` makes now.

    Args:
        folder: where the result belongs, `<root>/<name>-<key>`.
        kind: the record's type.
        key: the stage's key; a record with another key is replaced.
        build: writes the stage's files into an empty staging folder and returns the record.
        made: of `keys.made`, what `made.json` keeps besides the seconds; None: it is not written.

    A corrupt result is quarantined, with a warning, and rebuilt. One process builds at a time: a
    second one waits for the first and then reuses its result. Within `fetching` a result that is
    elsewhere is fetched instead.
    """
    with suppress(CorruptionError):  # rebuilt below, by one process alone
        if record := _finished(folder, kind, key):
            return record
    make_folder(folder.parent)
    with lock(lock_of(folder)):
        try:
            if record := _finished(folder, kind, key):
                return record
        except CorruptionError as error:
            logger.warning("%s; quarantined as %s, rebuilding", error, quarantine(folder).name)
        delete_leftovers(folder.parent, glob.escape(folder.name))
        staging = folder.with_name(folder.name + ".tmp")
        staging.mkdir()
        try:
            if fetched := _fetch_into(staging, folder, kind, key):
                complete = commit(staging, folder, fetched, fetched.files)
                return complete.model_copy(update={"reused": True, "pulled": True})
            begin = time.monotonic()
            record = build(staging)
            if made is not None:
                seconds = round(time.monotonic() - begin, 3)
                fields = {"format": FORMAT, **made, "seconds": seconds}
                write_file(staging / MADE, to_json(fields, indent=1) + "\n")  # any text as ASCII
            return commit(staging, folder, record)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


Fetch = Callable[[Path, Path, type[Record], str], Record | None]
"""Gets a result into a staging folder: that, where it belongs, its kind and key → its record.

None: it cannot be had; what is in the staging folder is dropped.
"""
_fetch: ContextVar[Fetch | None] = ContextVar("fetch", default=None)


@contextmanager
def fetching(fetch: Fetch) -> Iterator[None]:
    """Within the block a stage asks for its result before it computes it."""
    token = _fetch.set(fetch)
    try:
        yield
    finally:
        _fetch.reset(token)


def _fetch_into(staging: Path, folder: Path, kind: type[R], key: str) -> R | None:
    fetch = _fetch.get()
    fetched = fetch(staging, folder, kind, key) if fetch else None
    if isinstance(fetched, kind):
        return fetched
    for left in staging.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return None


def read_made(folder: Path) -> Made | None:
    """How a result was made; None where that was not recorded."""
    try:
        return Made.model_validate(read_versioned(folder / MADE)[1])
    except (OSError, SlmError, ValidationError):
        return None


def _finished(folder: Path, kind: type[R], key: str) -> R | None:
    record = read_record(folder, kind)
    if record is None or record.key != key:
        return None
    return record.model_copy(update={"reused": True})


# ---- folders and locks ------------------------------------------------------------------------


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
        raise _cannot_write(path, error) from error
    return path


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {path} ({error.strerror}): free some space, change its permissions, "
        "or point SLM_DATA at another folder"
    )


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
        raise _cannot_write(path, error) from error
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
