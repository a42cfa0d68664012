"""The run of the present champion, for reports to compare with."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import SlmError
from slm.registry import CHAMPION
from slm.tracking.server import connect, explained, tracking_uri


def champion_run(config: PipelineConfig, root: Path | None = None) -> Path | None:
    """The run folder of the champion of `config.registry.model`; None where it is not here.

    A comparison is an ornament: a registry that is down or has no champion costs the report
    nothing else. Our own SQLite store is read directly: mlflow takes two seconds to start.
    """
    root = root or data_root()
    uri = tracking_uri(config, root)
    name = config.registry.model
    with suppress(SlmError, OSError, sqlite3.Error):
        run = _in_sqlite(uri, name) if uri.startswith("sqlite:///") else _in_store(uri, name)
        if run is not None and (folder := storage.named(root / "runs", run)).is_dir():
            return folder
    return None


def _in_sqlite(uri: str, name: str) -> str | None:
    file = Path(uri.removeprefix("sqlite:///")).resolve()
    if not file.is_file():
        return None
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as store:
        found = store.execute(
            "SELECT t.value FROM registered_model_aliases a JOIN model_version_tags t "
            "USING (workspace, name, version) WHERE a.name = ? AND a.alias = ? "
            "AND t.key = 'slm.run'",
            (name, CHAMPION),
        ).fetchone()
    return str(found[0]) if found else None


@explained()
def _in_store(uri: str, name: str) -> str | None:
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        run: str | None = client.get_model_version_by_alias(name, CHAMPION).tags.get("slm.run")
        return run
    return None
