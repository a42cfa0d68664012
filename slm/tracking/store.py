"""Our own SQLite store, made ready before MLflow opens it: it is made and changed beside its place.

MLflow makes its tables one by one, and a newer MLflow changes them one way. Killed meanwhile it
leaves a store that no command can open. So this happens to a copy, which is put in place whole.
"""

import logging
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from slm import storage

logger = logging.getLogger(__name__)


def file_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path)


def reading(file: Path) -> closing[sqlite3.Connection]:
    """A store that is there, opened to be read and nothing else."""
    return closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True))


def prepare(file: Path) -> Path | None:
    """Makes a store that is not there, and gives one of an older MLflow this one's tables.

    Returns the copy of the older one, `<file>.before-<revision>`, which an older MLflow opens;
    None where there was nothing to change. A file that is no store of MLflow's is left alone.
    """
    if not _is_behind(file):
        return None
    storage.make_folder(file.parent)
    with storage.lock(file.with_name(f"{file.name}.lock")):
        if not _is_behind(file):  # another process was first
            return None
        copy = None
        side = file.with_name(f"{file.name}.next")
        side.unlink(missing_ok=True)  # of a process that was killed
        if file.exists():
            copy = file.with_name(f"{file.name}.before-{_revision(file)}")
            before = _content(file)
            storage.write_file(copy, before)
            storage.write_file(side, before)
            logger.warning("MLflow changes the tables of %s; %s is as it was", file, copy)
        _migrate(side)
        storage.write_file(file, _content(side))
        side.unlink()
    return copy


def _is_behind(file: Path) -> bool:
    """Whether a store is missing or of another MLflow."""
    if not file.exists():
        return True
    revision = _revision(file)
    return revision is not None and revision != _newest()


def _migrate(file: Path) -> None:
    """Lets MLflow make or change the tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{file.resolve()}", (file.parent / "artifacts").as_uri())
    store.engine.dispose()


def _content(file: Path) -> bytes:
    """A store as it stands between two transactions."""
    with reading(file) as store:
        return store.serialize()


def _revision(file: Path) -> str | None:
    """The form of a store's tables, by the name that MLflow gives it; None where it has none."""
    try:
        with reading(file) as store:
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
