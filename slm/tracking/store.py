"""Our own SQLite store, which MLflow makes and migrates in a copy that is put in place whole.

MLflow makes its tables one by one, and a newer MLflow migrates them one way. Killed meanwhile it
would leave a store that no command can open.
"""

import logging
import os
import sqlite3
import time
from contextlib import closing
from importlib.metadata import version as installed
from pathlib import Path

from slm import storage
from slm.records import LATEST
from slm.tracking import relocation

logger = logging.getLogger(__name__)


def file_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path)


def prepare(file: Path) -> Path | None:
    """Make a store that is not there, or repair one that another MLflow or another folder left.

    Returns the copy of what `migrate` has changed; see there and `relocation.follow`.
    """
    backup = migrate(file)
    relocation.follow(file)
    return backup


def migrate(file: Path) -> Path | None:
    """Make a store that is not there, and let the installed MLflow migrate one of another MLflow.

    `<file>.version` notes the MLflow that a store is ready for. A store whose tables are changed is
    first copied to `<file>.before-<version>`, which the MLflow before it can open; returns that
    copy, None where nothing was changed. A file that is no SQLite database is left to MLflow, which
    reports what is wrong with it.
    """
    note = file.with_name(f"{file.name}.version")
    mlflow_version = installed("mlflow")
    if _is_ready(file, note, mlflow_version):
        return None
    storage.make_folder(file.parent)
    with storage.lock(file.with_name(f"{file.name}.lock")):
        if _is_ready(file, note, mlflow_version):  # another process was first
            return None
        for left in file.parent.glob(f"{file.name}.next-*"):  # by a process that was killed
            left.unlink()
        try:
            before = _content(file) if file.exists() else None
        except sqlite3.DatabaseError:
            return None
        after = _migrated(file, before)
        backup = None
        if before is not None and after != before:
            backup = file.with_name(f"{file.name}.before-{mlflow_version}")
            storage.write_file(backup, before)
            logger.warning("MLflow has changed the tables of %s; %s is as it was", file, backup)
        if after != before:
            storage.write_file(file, after)
        storage.write_file(note, mlflow_version + "\n")
    return backup


def _is_ready(file: Path, note: Path, mlflow_version: str) -> bool:
    if not file.exists():
        return False
    if not os.access(file.parent, os.W_OK):  # another user's: nothing can be changed there
        return True
    return note.is_file() and note.read_text("utf-8").strip() == mlflow_version


def _migrated(file: Path, content: bytes | None) -> bytes:
    """A store of this content, or a new one, as MLflow makes it ready when a client opens it."""
    from mlflow import MlflowClient

    # A name of its own: MLflow keeps what it knows of an address for as long as the process lives.
    side = file.with_name(f"{file.name}.next-{os.getpid()}-{time.time_ns()}")
    try:
        if content is not None:
            storage.write_file(side, content)
        MlflowClient(f"sqlite:///{side.resolve()}").search_registered_models(max_results=1)
        return _content(side)
    finally:
        side.unlink(missing_ok=True)


def _content(file: Path) -> bytes:
    """A store between two transactions."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
        return store.serialize()


# ---- read without MLflow ----------------------------------------------------------------------


def version_number(file: Path, model: str, chosen: str | None) -> str | None:
    """The number of the version that an alias, `latest` or a number names, read without MLflow.

    `chosen`: None: the champion, or else the newest. None where there is no such version, or the
    file is no store that can be read.
    """
    alias = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
    newest = (
        "SELECT version FROM model_versions WHERE name = ? "
        "AND current_stage != 'Deleted_Internal' ORDER BY version DESC LIMIT 1"
    )
    if chosen and chosen.isdigit():
        return chosen
    address = f"{file.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as store:
            row = None
            if chosen != LATEST:
                row = store.execute(alias, (model, chosen or "champion")).fetchone()
            if row is None and chosen in (None, LATEST):
                row = store.execute(newest, (model,)).fetchone()
            return str(row[0]) if row else None
    except sqlite3.Error:
        return None


def version_aliases(file: Path) -> dict[tuple[str, str], list[str]]:
    """The aliases of every version by model and number, read without MLflow.

    Raises sqlite3.Error where the file is no store that can be read.
    """
    versions = (
        "SELECT v.name, v.version, a.alias FROM model_versions v "
        "LEFT JOIN registered_model_aliases a ON a.name = v.name AND a.version = v.version "
        "WHERE v.current_stage != 'Deleted_Internal' ORDER BY a.alias"
    )
    aliases: dict[tuple[str, str], list[str]] = {}
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
        for name, version, alias in store.execute(versions):
            aliases.setdefault((name, str(version)), []).extend([alias] if alias else [])
    return aliases


def version_tags(file: Path, model: str, number: str) -> dict[str, str] | None:
    """The tags of a model version, read without MLflow, whose import takes seconds.

    Empty where the store has no such version, or its run was deleted; None where the file is no
    store that can be read.
    """
    alive = (
        "SELECT 1 FROM model_versions v JOIN runs r ON r.run_uuid = v.run_id WHERE v.name = ? "
        "AND v.version = ? AND v.current_stage != 'Deleted_Internal' "
        "AND r.lifecycle_stage = 'active'"
    )
    tags = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
    address = f"{file.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as store:
            if store.execute(alive, (model, number)).fetchone() is None:
                return {}
            return dict(store.execute(tags, (model, number)).fetchall())
    except sqlite3.Error:
        return None
