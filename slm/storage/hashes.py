"""Hashes of values, files and folders: what keys are made from, and what is verified."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from slm.records import FileEntry, Record


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
