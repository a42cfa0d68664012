"""Which MLflow server, how long to wait for it, and its errors in one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.tracking import entities, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(config: PipelineConfig, root: Path) -> str:
    """The config's server, else MLFLOW_TRACKING_URI, else a SQLite file under the data folder."""
    return config.registry.tracking_uri or default_uri(root)


def default_uri(root: Path) -> str:
    """The server where no config names one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or store_uri(root)


def store_uri(root: Path) -> str:
    """The project's own store, under the data folder."""
    return f"sqlite:///{(root / 'mlflow' / 'mlflow.db').resolve()}"


def connect(uri: str) -> "MlflowClient":
    """A client of the server that gives up within half a minute instead of four."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if file := store.file_of(uri):
        store.prepare(file)
    return MlflowClient(uri)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what MLflow and its transport raise into one SlmError, without passwords.

    Also a decorator.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
            raise
        raise SlmError(f"MLflow: {first_line(error)}") from None  # its traceback has the address


def first_line(error: Exception) -> str:
    return entities.public_uri(str(error)).partition("\n")[0][:300]


@contextmanager
def as_default(client: "MlflowClient") -> Iterator[None]:
    """Make a client's server the process's own: some of MLflow's functions take no other."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def experiment_id(client: "MlflowClient", config: PipelineConfig, root: Path) -> str:
    """The id of the experiment that holds all runs of the config's registered model."""
    from mlflow.exceptions import MlflowException

    name = config.model_name
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        remote = urlsplit(client.tracking_uri).scheme in ("http", "https")
        artifacts = None if remote else (root / "mlflow" / "artifacts").resolve().as_uri()
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # else: GenAI's pages
            return str(client.create_experiment(name, artifact_location=artifacts, tags=kind))
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted: restore it, or choose another name "
            "with --set registry.model=…"
        )
    return str(experiment.experiment_id)
