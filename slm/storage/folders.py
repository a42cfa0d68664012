"""The commit rule: a staged folder is put in place whole; others are removed, or set aside, so."""

import glob
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from slm.records import FileEntry
from slm.storage.files import fsync_path, rename
from slm.storage.hashes import describe_files
from slm.storage.record import MADE, RECORD, R, write_record

logger = logging.getLogger(__name__)

# The names of what interrupted work leaves, and of what was quarantined as corrupt.
LEFTOVER = re.compile(r".+\.tmp|.+\.corrupt-\d+|\..+\.old(-\d+)?|\..+\.units|\.probe-.+")


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
    rename(staging, folder)
    fsync_path(folder.parent)
    return complete


def discard(folder: Path) -> None:
    """Remove a folder so that it never looks half-valid: it is renamed first, durably."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    rename(folder, doomed)
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
    rename(folder, target)
    return target
