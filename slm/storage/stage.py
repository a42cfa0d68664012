"""A stage's result: the complete one, one that is fetched, or what is built now."""

import glob
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from slm.errors import CorruptionError
from slm.records import Record
from slm.storage.files import make_folder, to_json, write_file
from slm.storage.folders import commit, delete_leftovers, quarantine
from slm.storage.locks import lock, lock_of
from slm.storage.record import FORMAT, MADE, R, read_record

logger = logging.getLogger(__name__)


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


def _finished(folder: Path, kind: type[R], key: str) -> R | None:
    record = read_record(folder, kind)
    if record is None or record.key != key:
        return None
    return record.model_copy(update={"reused": True})
