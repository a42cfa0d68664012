"""A data folder that was moved or copied: its MLflow store follows it.

MLflow stores where each artifact is as an absolute address, and can serve nothing else to other
programs. `<store>.folder` notes the folder that these addresses begin with. Where the store is in
another one now, they are rewritten in one transaction, after a copy of the store.

    file:///old/data/mlflow/artifacts/7d1…/artifacts   a run's, in a store that is in /new/data now
    file:///new/data/mlflow/artifacts/7d1…/artifacts   after the next command
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from slm import storage

logger = logging.getLogger(__name__)

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(file: Path) -> Path | None:
    """Let the addresses in a store follow it to the folder that it is in now.

    An address whose files are only in the old folder stays. Returns a copy of the store as it was;
    None where nothing was changed. Only a data folder's own store, `mlflow/mlflow.db`, has its
    artifacts next to it; any other is left alone.
    """
    folder = file.resolve().parent
    note = file.with_name(f"{file.name}.folder")
    if folder.name != "mlflow" or not os.access(folder, os.W_OK) or _noted(note) == str(folder):
        return None
    backup = None
    with storage.lock(file.with_name(f"{file.name}.lock")):
        try:
            with closing(sqlite3.connect(file, timeout=20)) as store:
                olds = {_noted(note)} if note.exists() else _folders(store)
                backup = _move(store, file, sorted(olds - {str(folder), ""}), folder)
        except sqlite3.DatabaseError:  # no store: MLflow reports what is wrong with it
            return None
        storage.write_file(note, f"{folder}\n")
    return backup


def _noted(note: Path) -> str:
    return note.read_text("utf-8").rstrip("\n") if note.is_file() else ""


def _folders(store: sqlite3.Connection) -> set[str]:
    """The folders with artifacts that the experiments of a store without a note are in."""
    addresses = store.execute("SELECT artifact_location FROM experiments").fetchall()
    matches = (re.match(r"(/.+/mlflow)/artifacts(/|$)", _local(a) or "") for (a,) in addresses)
    return {match[1] for match in matches if match}


def _move(store: sqlite3.Connection, file: Path, olds: list[str], folder: Path) -> Path | None:
    """Rewrite the addresses in the old folders; returns a copy of the store as it was."""
    changes, left = [], 0
    for table, column, row, address, old in _addresses_in(store, olds):
        path = _local(address) or ""
        moved = Path(f"{folder}{path.removeprefix(old)}")
        if table != "experiments" and Path(path).exists() and not moved.exists():
            left += 1
        else:
            new = moved.as_uri() if address.startswith("file:") else str(moved)
            changes.append((f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (new, row)))
    if not changes:
        return None
    backup = file.with_name(f"{file.name}.before-move")
    storage.write_file(backup, store.serialize())
    with store:  # one transaction
        for statement, values in changes:
            store.execute(statement, values)
    rest = f"; the files of {left} runs and models are only in the old folder" if left else ""
    logger.warning(
        "the data folder was moved: MLflow's addresses now begin with %s, not with %s; the store "
        "as it was is %s%s", folder, ", ".join(olds), backup, rest,
    )  # fmt: skip
    return backup


def _addresses_in(
    store: sqlite3.Connection, olds: list[str]
) -> Iterator[tuple[str, str, int, str, str]]:
    """Each address in one of the old folders: its table, column and row, itself, and the folder."""
    for table, column in _ADDRESSES:
        for row, address in store.execute(f'SELECT rowid, "{column}" FROM "{table}"').fetchall():
            path = _local(address) or ""
            for old in olds:
                if path.startswith(f"{old}/"):
                    yield table, column, row, address, old


def _local(address: str | None) -> str | None:
    """The path of a local address, `/path` or `file:///path`; None for any other."""
    if address and address.startswith("/"):
        return address
    parts = urlsplit(address or "")
    is_local = parts.scheme == "file" and parts.netloc in ("", "localhost")
    return unquote(parts.path) if is_local else None
