"""Finds what a name means: versions in the registry, and the folder of a model on this machine."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from slm import storage
from slm.config import data_root
from slm.errors import CorruptionError, UserError, unknown
from slm.model.saved import MODEL_FILES
from slm.records import Version
from slm.run_folder import CHECKPOINTS, DataRoot, RunFolder
from slm.tracking.entities import public_uri
from slm.tracking.server import as_default, connect, default_uri, explained
from slm.training.checkpoint import latest_checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
PREFIX = "slm."
T = TypeVar("T")


@explained()
def resolve(text: str, root: Path | None = None, *, uri: str | None = None) -> Path:
    """The folder of a model: `model.safetensors`, `config.json`, `tokenizer.tiktoken`.

    Args:
        text: a run folder or its name under `data/runs`, which gives its best checkpoint, or the
            newest of an unfinished run; or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: of the tracking server that has the model; None: the default one.

    Raises UserError for what does not exist, with the nearest name.
    """
    root = root or data_root()
    if text.startswith("models:"):
        client = connect(uri or default_uri(root))
        return fetch_version(client, find_version(client, text), root)
    run = DataRoot(root).run(text)
    if record := run.record:
        return record.checkpoint("best")
    checkpoint = latest_checkpoint(run.path / CHECKPOINTS)
    if checkpoint is None:
        raise UserError(f"the run {run.name!r} has no checkpoint yet: let it train on")
    return checkpoint.path


def find_version(client: "MlflowClient", text: str) -> "ModelVersion":
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names, or a UserError."""
    parsed = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", text)
    if parsed is None:
        raise UserError(f"{text!r} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = parsed.groups()
    model = existing(client.get_registered_model, name)
    if model is None:
        known = [model.name for model in client.search_registered_models()]
        where = f"the registry is {public_uri(client.tracking_uri)}"
        raise UserError(f"{unknown('model', name, known)}; {where}, MLFLOW_TRACKING_URI changes it")
    if alias:
        if alias not in model.aliases:
            raise unknown(f"alias of model {name!r}", alias, model.aliases)
        number = model.aliases[alias]
    version = existing(client.get_model_version, name, str(number))
    if version is None:
        numbers = [str(v.version) for v in client.search_model_versions(f"name = '{name}'")]
        raise unknown(f"version of model {name!r}", str(number), numbers)
    return version


def existing(get: Callable[..., T], *names: str) -> T | None:
    """What a call to the registry gets; None where there is no such thing, or can be none."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def fetch_version(client: "MlflowClient", entry: "ModelVersion", root: Path) -> Path:
    """The folder of a version's files: those of its run, where they are what was registered, else
    a copy from the registry under `data/mlflow/models`, whose weights are checked.
    """
    wanted = required(entry, "weights_sha256")
    local = checkpoint_folder(entry, root)
    weights = local / MODEL_FILES[0]
    if weights.is_file() and storage.sha256_file(weights) == wanted:
        return local

    def fetch(staging: Path) -> Version:
        from mlflow.artifacts import download_artifacts

        source = f"models:/{entry.name}/{entry.version}"
        with as_default(client):
            got = Path(download_artifacts(source, dst_path=str(staging / "all")))
        for file in MODEL_FILES:
            shutil.copy(got / "artifacts" / file, staging / file)
        shutil.rmtree(staging / "all")
        if storage.sha256_file(staging / MODEL_FILES[0]) != wanted:
            raise CorruptionError(f"the weights of {source} are not those that were registered")
        return Version(
            key=wanted,
            model=entry.name,
            version=str(entry.version),
            aliases=[],
            run_id=entry.run_id or "",
            tracking_uri=public_uri(client.tracking_uri),
        )

    folder = root / "mlflow" / "models" / f"{entry.name}-{entry.version}-{wanted[:12]}"
    return Path(storage.run_stage(folder, Version, wanted, fetch).path)


# ---- what a version tells ---------------------------------------------------------------------


def tags(entry: "ModelVersion") -> dict[str, str]:
    """Our own tags of a version, without their prefix."""
    return {k.removeprefix(PREFIX): v for k, v in entry.tags.items() if k.startswith(PREFIX)}


def required(entry: "ModelVersion", tag: str) -> str:
    """One of our tags. Raises UserError where the version lacks it: it is of another's making."""
    value = tags(entry).get(tag)
    if value is None:
        raise UserError(
            f"models:/{entry.name}/{entry.version} was not registered by slm: "
            f"it has no tag {PREFIX}{tag}"
        )
    return value


def run_folder(entry: "ModelVersion", root: Path) -> RunFolder:
    """The run that a version was made from; it may be gone."""
    return DataRoot(root).named_run(required(entry, "run"))


def checkpoint_folder(entry: "ModelVersion", root: Path) -> Path:
    """The checkpoint that a version was made from, in its run's folder; it may be gone."""
    return storage.named(run_folder(entry, root).path / CHECKPOINTS, required(entry, "checkpoint"))
