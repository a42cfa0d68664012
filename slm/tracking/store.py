"""Our own SQLite store, before MLflow opens it: a newer MLflow changes its tables, one way."""

import logging
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from slm import storage

logger = logging.getLogger(__name__)


def keep_copy(file: Path) -> Path | None:
    """Copies a store whose tables this MLflow is about to change, to `<file>.before-<revision>`.

    Returns the copy, or None where MLflow takes the store as it is. An older MLflow opens the copy.
    """
    revision = _revision(file)
    if revision is None or revision == _newest():
        return None
    copy = file.with_name(f"{file.name}.before-{revision}")
    if not copy.exists():
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
            storage.write_file(copy, store.serialize())
        logger.warning("MLflow changes the tables of %s; as it was it is kept in %s", file, copy)
    return copy


def _revision(file: Path) -> str | None:
    """The form of a store's tables, by the name that MLflow gives it; None where it has none."""
    if not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as store:
            found = store.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:  # MLflow says what is wrong with it
        return None
    return str(found[0]) if found else None


@cache
def _newest() -> str | None:
    """The form that this MLflow works with."""
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return ScriptDirectory(str(folder)).get_current_head()
