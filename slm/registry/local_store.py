"""Our own SQLite store, asked directly, in a millisecond: mlflow takes two seconds to start.

Raises sqlite3.Error where the store is not there or is of another form.
"""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slm.tracking import store


def is_ours(uri: str) -> bool:
    """Whether a registry is a SQLite file."""
    return store.file_of(uri) is not None


def aliases(uri: str, model: str, version: str, weights_sha256: str) -> list[str] | None:
    """The aliases of a version of these weights; None where the store does not have it."""
    where = (model, int(version))
    with store.reading(_file(uri)) as tables:
        found = tables.execute(
            "SELECT v.storage_location FROM model_versions v JOIN model_version_tags t "
            "USING (workspace, name, version) WHERE v.name = ? AND v.version = ? "
            "AND t.key = 'slm.weights_sha256' AND t.value = ?",
            (*where, weights_sha256),
        ).fetchone()
        if found is None or not _local_path(found[0]).is_dir():
            return None
        rows = tables.execute(
            "SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ?", where
        )
        return sorted(alias for (alias,) in rows)


def run_of(uri: str, model: str, alias: str) -> str | None:
    """The name of the run that the version of an alias was made from, where there is one."""
    with store.reading(_file(uri)) as tables:
        found = tables.execute(
            "SELECT t.value FROM registered_model_aliases a JOIN model_version_tags t "
            "USING (workspace, name, version) WHERE a.name = ? AND a.alias = ? "
            "AND t.key = 'slm.run'",
            (model, alias),
        ).fetchone()
    return str(found[0]) if found else None


def _file(uri: str) -> Path:
    file = store.file_of(uri)
    assert file is not None, f"{uri} is no SQLite store"
    return file


def _local_path(uri: str) -> Path:
    """The path of a `file:` address, or of a path as it is."""
    return Path(url2pathname(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)
