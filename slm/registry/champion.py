"""The run of the present champion, for reports to compare with."""

import sqlite3
from contextlib import suppress
from pathlib import Path

from slm.config import PipelineConfig, data_root
from slm.errors import SlmError
from slm.registry import local_store
from slm.registry.finding import CHAMPION
from slm.run_folder import DataRoot, RunFolder
from slm.tracking.server import connect, explained, tracking_uri


def champion_run(config: PipelineConfig, root: Path | None = None) -> RunFolder | None:
    """The run of the champion of `config.model_name`; None where it is not here.

    A comparison is an ornament: a registry that is down or has no champion costs the report
    nothing else.
    """
    root = root or data_root()
    uri = tracking_uri(config, root)
    name = config.model_name
    with suppress(SlmError, OSError, sqlite3.Error):
        ours = local_store.is_ours(uri)
        run = local_store.run_of(uri, name, CHAMPION) if ours else _in_store(uri, name)
        if run is not None and (folder := DataRoot(root).named_run(run)).exists:
            return folder
    return None


@explained()
def _in_store(uri: str, name: str) -> str | None:
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        run: str | None = client.get_model_version_by_alias(name, CHAMPION).tags.get("slm.run")
        return run
    return None
