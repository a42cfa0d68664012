"""Which MLflow server, how long to wait for it, and its errors in one sentence."""

import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.tracking import entities, pages, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

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


def recorded_uri(uri: str, root: Path) -> str:
    """How a record names a server: without a password, our own store without the data folder."""
    return "sqlite:///mlflow/mlflow.db" if uri == store_uri(root) else entities.public_uri(uri)


def connect(uri: str) -> "MlflowClient":
    """A client of the server that gives up within half a minute instead of four."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # a line at every retry
    if file := store.file_of(uri):
        store.prepare(file)
    return MlflowClient(uri)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what MLflow and its transport raise into one SlmError of one sentence.

    It has no passwords. UserError where an address cannot be one. Also a decorator.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
            raise
        kind = UserError if _names_no_server(error) else SlmError
        raise kind(f"MLflow: {sentence(error)}") from None  # its traceback has the address


def _names_no_server(error: Exception) -> bool:
    """Whether the address is wrong whatever server may run."""
    name = type(error).__name__
    return name == "InvalidUrlException" or name.startswith("UnsupportedModelRegistry")


def sentence(error: Exception) -> str:
    """What went wrong with an MLflow server, and the remedy, without passwords."""
    text = entities.public_uri(" ".join(str(error).split()))
    remedy = "start it, or change MLFLOW_TRACKING_URI"
    if _names_no_server(error):
        address = re.search(r"(?:url: |URI ')([^\s']+)", text)
        shown = address[1].partition("/api/")[0] if address else "its address"
        return f"{shown} is not the address of a tracking server: change MLFLOW_TRACKING_URI"
    if server := re.search(r"API request to (\w+://[^/\s]+)", text):
        return f"the server {server[1]} {_why_unreachable(text)}: {remedy}"
    if refused := re.search(r"request to endpoint (\S+) failed with error code (\d+)", text):
        return (
            f"the server answers {refused[2]} to {refused[1]}: is MLFLOW_TRACKING_URI the address "
            "of an MLflow server, and is access to it allowed?"
        )
    if "not in a valid JSON format" in text:
        return "no MLflow server answers: is MLFLOW_TRACKING_URI the address of one?"
    if database := re.match(
        r"\((?:\w+\.)?\w+(?:Error|Exception)\) (.+?)(?: \[SQL| \(Background|$)", text
    ):
        return f"its store cannot be read or written: {database[1]}"
    return text[:300]


def _why_unreachable(text: str) -> str:
    """Why a request had no answer, from the text of what the transport raised."""
    if "too many" in text and "error responses" in text:
        return "fails at every request; its log has the reason"
    if "NameResolutionError" in text:
        return "cannot be reached (there is no host of that name)"
    if re.search(r"(?i)timed? ?out", text):
        return "does not answer in time"
    system = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return f"cannot be reached ({system[1].lower() if system else 'no connection'})"


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
    """The id of the experiment that holds all runs of the config's registered model.

    It is made where there is none. Raises UserError where it was deleted.
    """
    from mlflow.exceptions import MlflowException

    name = config.model_name
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        remote = urlsplit(client.tracking_uri).scheme in ("http", "https")
        artifacts = None if remote else (root / "mlflow" / "artifacts").resolve().as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=artifacts, tags=pages.TAGS))
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    _check_active(client, experiment)
    for tag, value in pages.TAGS.items():
        if tag not in experiment.tags:  # it was made before that tag was set
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    return str(experiment.experiment_id)


def check_experiment(config: PipelineConfig, root: Path) -> None:
    """Raises UserError where the experiment of the config's model was deleted.

    To be called before work is spent. A server that cannot be reached is no reason to stop: the
    training continues without it.
    """
    uri = tracking_uri(config, root)
    file = store.file_of(uri)
    if file is not None and not file.exists():
        return
    try:
        with explained():
            client = connect(uri)
            experiment = client.get_experiment_by_name(config.model_name)
    except UserError:
        raise
    except SlmError:
        return
    if experiment is not None:
        _check_active(client, experiment)


def training_page(config: PipelineConfig, root: Path) -> str | None:
    """The address of the page with all training runs of the config's model.

    None for a store, which has no page, and for a server that cannot be reached.
    """
    uri = tracking_uri(config, root)
    if not uri.startswith("http"):
        return None
    with suppress(SlmError), explained():
        if experiment := connect(uri).get_experiment_by_name(config.model_name):
            return pages.training_runs(entities.public_uri(uri), experiment.experiment_id)
    return None


def _check_active(client: "MlflowClient", experiment: "Experiment") -> None:
    if experiment.lifecycle_stage != "active":
        address = entities.public_uri(client.tracking_uri)
        raise UserError(
            f"the MLflow experiment {experiment.name!r} was deleted: `MLFLOW_TRACKING_URI="
            f"{shlex.quote(address)} mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}` restores it; or choose another name with --set "
            "registry.model=NAME"
        )
