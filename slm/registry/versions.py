"""Model versions: how they are found, and where their files are."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, SlmError, UserError, listing, unknown
from slm.model.saved import MODEL_FILES
from slm.records import LATEST, Parent, Version, model_uri, names_version, parse_version
from slm.registry.tags import PREFIX
from slm.registry.version import CHALLENGER, CHAMPION, ModelVersion, from_mlflow
from slm.run_folder import CHECKPOINTS, DataRoot, RunFolder
from slm.tracking.entities import public_uri
from slm.tracking.server import (
    as_default,
    connect,
    default_uri,
    explained,
    recorded_uri,
    tracking_uri,
)
from slm.tracking.store import file_of
from slm.training.checkpoint import latest_checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")


# ---- find -------------------------------------------------------------------------------------


def find_version(client: "MlflowClient", reference: str, default: str = CHAMPION) -> ModelVersion:
    """The version that `models:/NAME@ALIAS`, `NAME@ALIAS` or `models:/NAME/VERSION` names.

    `latest` is an alias of the newest one. `models:/NAME` is the version with the alias `default`,
    or the newest where none has it; a warning names which of them it is. Raises UserError.
    """
    name, chosen = parse_version(reference)
    model = if_exists(client.get_registered_model, name)
    if model is None:
        known = [model.name for model in client.search_registered_models()]
        where = f"the registry is {public_uri(client.tracking_uri)}"
        raise UserError(f"{unknown('model', name, known)}; {where}, MLFLOW_TRACKING_URI changes it")
    if chosen is not None:
        return _version(client, name, chosen, model.aliases)
    has_default = default in model.aliases
    version = _version(client, name, default if has_default else LATEST, model.aliases)
    which = f"its {default}" if has_default else f"its newest version: none is {default}"
    logger.warning("%s is taken as %s, %s", reference, version.uri, which)
    return version


def _version(
    client: "MlflowClient", name: str, chosen: str, aliases: Mapping[str, str]
) -> ModelVersion:
    """The version of a model that an alias, `latest` or a number names. Raises UserError."""
    if chosen == LATEST:
        newest = max(_numbers(client, name), default=None)
        if newest is None:
            raise UserError(f"model {name!r} has no version: `slm register RUN` makes one")
        chosen = str(newest)
    if not chosen.isdigit() and chosen not in aliases:
        raise UserError(
            f"model {name!r}: {unknown('alias', chosen, aliases)} (`slm register` sets "
            f"{CHALLENGER}, promotion makes it {CHAMPION})"
        )
    number = chosen if chosen.isdigit() else str(aliases[chosen])
    entry = if_exists(client.get_model_version, name, number)
    if entry is None and number != chosen:
        raise UserError(
            f"model {name!r}: the alias {chosen!r} is of version {number}, which was deleted; "
            f"`slm promote models:/{name}/VERSION` makes another version the {CHAMPION}"
        )
    if entry is None:
        raise unknown(f"version of model {name!r}", number, map(str, _numbers(client, name)))
    return from_mlflow(entry)


def _numbers(client: "MlflowClient", name: str) -> list[int]:
    return [int(v.version) for v in client.search_model_versions(f"name = '{name}'")]


def candidate(client: "MlflowClient", reference: str | None, root: Path) -> ModelVersion:
    """The version that is to be promoted.

    Args:
        reference: as of `find_version`, where a model's name alone means its challenger; or a run,
            which means the newest version made from it. None: the challenger of the only model.

    Raises UserError.
    """
    if reference is None:
        reference = model_uri(only_model(client), alias=CHALLENGER)
    if names_version(reference):
        return find_version(client, reference, CHALLENGER)
    if if_exists(client.get_registered_model, reference):
        return find_version(client, model_uri(reference), CHALLENGER)
    run = DataRoot(root).run(reference)
    entries = client.search_model_versions(f"tags.`{PREFIX}run` = '{run.name}'")
    newest = max(entries, key=lambda entry: entry.creation_timestamp, default=None)
    if newest is None:
        raise UserError(
            f"no version was made from the run {run.name!r}: `slm register {run.name}` makes one"
        )
    return find_version(client, model_uri(newest.name, str(newest.version)))


def only_model(client: "MlflowClient") -> str:
    """The name of the only registered model. Raises UserError where there are none, or several."""
    names = sorted(model.name for model in client.search_registered_models())
    if not names:
        raise UserError("no model is registered yet: `slm register RUN` makes a version of one")
    if len(names) > 1:
        raise UserError(f"there are {len(names)} models: name one of {listing(names)}")
    return str(names[0])


def find_alias(client: "MlflowClient", name: str, alias: str) -> ModelVersion | None:
    """The champion or challenger of a model; None where there is none, or it was deleted."""
    model = if_exists(client.get_registered_model, name)
    if model is None or alias not in model.aliases:
        return None
    entry = if_exists(client.get_model_version, name, model.aliases[alias])
    return from_mlflow(entry) if entry else None


def is_whole(client: "MlflowClient", version: ModelVersion) -> bool:
    """Whether the MLflow run and the weights of a version are still in the registry.

    Either can be deleted without the version, which then can be neither traced nor served. Files
    that cannot be listed from here, in a bucket, count as being there.
    """
    run = if_exists(client.get_run, version.run_id)
    if run is None or run.info.lifecycle_stage != "active":
        return False
    try:
        return has_file(client, version, f"artifacts/{MODEL_FILES[0]}")
    except Exception:  # of whichever transport
        return True


def if_exists(get: Callable[..., T], *names: str) -> T | None:
    """What a call to the registry returns; None where there is no such thing, or can be none."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


@explained()
def list_versions(root: Path | None = None, *, uri: str | None = None) -> list[ModelVersion]:
    """Every version of every model, the newest first; none where there is no store yet.

    Raises SlmError where the registry cannot be reached.
    """
    uri = uri or default_uri(root or data_root())
    if not has_store(uri):
        return []
    client = connect(uri)
    entries = client.search_model_versions()
    names = {entry.name for entry in entries}
    models = {name: if_exists(client.get_registered_model, name) for name in names}
    held = {name: model.aliases if model else {} for name, model in models.items()}
    versions = [
        from_mlflow(entry, [a for a, n in held[entry.name].items() if str(n) == str(entry.version)])
        for entry in entries
    ]
    return sorted(versions, key=lambda version: -version.registered)


@explained()
def champion_and_challenger(
    config: PipelineConfig, root: Path
) -> tuple[ModelVersion | None, ModelVersion | None]:
    """Both, of the config's model."""
    client, name = connect(tracking_uri(config, root)), config.model_name
    return find_alias(client, name, CHAMPION), find_alias(client, name, CHALLENGER)


@explained()
def linked_version(uri: str, config: PipelineConfig, root: Path) -> ModelVersion | None:
    """The version that another one names in its tags; None where it is gone, or was none."""
    with suppress(UserError):
        return find_version(connect(tracking_uri(config, root)), uri)
    return None


def champion_run(config: PipelineConfig) -> RunFolder | None:
    """The run of the champion of the config's model, for a report; None where it is not here.

    A registry that is down, or has no champion, costs the report nothing but this comparison.
    """
    root = data_root()
    uri = tracking_uri(config, root)
    if not has_store(uri):
        return None
    with suppress(SlmError, OSError), explained():
        champion = find_alias(connect(uri), config.model_name, CHAMPION)
        if champion and (run := champion.run(root)).exists:
            return run
    return None


def has_store(uri: str) -> bool:
    """Whether there is anything to ask; a server is taken to be there."""
    file = file_of(uri)
    return file is None or file.exists()


# ---- files ------------------------------------------------------------------------------------


@explained()
def resolve(text: str, root: Path | None = None, *, uri: str | None = None) -> Path:
    """The folder of a model: `model.safetensors`, `config.json`, `tokenizer.tiktoken`.

    Args:
        text: a run, as of `DataRoot.run`, which gives its best checkpoint, or the newest of an
            unfinished run; or a version, as of `find_version`.
        uri: of the tracking server that has the model; None: the default one.

    Raises UserError for what does not exist, with the nearest name.
    """
    root = root or data_root()
    if names_version(text):
        client = connect(uri or default_uri(root))
        return fetch_version(client, find_version(client, text), root)
    run = DataRoot(root).run(text)
    if record := run.record:
        return record.checkpoint("best")
    checkpoint = latest_checkpoint(run.path / CHECKPOINTS)
    if checkpoint is None:
        raise UserError(
            f"the run {run.name!r} has no checkpoint yet: `slm train {run.name}` trains it"
        )
    return checkpoint.path


@explained()
def open_version(reference: str, root: Path | None = None) -> ModelVersion:
    """The version that a reference names, as of `find_version`, in the default registry.

    Raises UserError where there is no such version.
    """
    return find_version(connect(default_uri(root or data_root())), reference)


def fetch_version(client: "MlflowClient", version: ModelVersion, root: Path) -> Path:
    """The folder of a version's files: those of its run, where they are what was registered, else
    a copy from the registry under `data/mlflow/models`, whose weights are checked.
    """
    weights_sha256 = version.required("weights_sha256")
    local = version.checkpoint(root)
    weights = local / MODEL_FILES[0]
    if weights.is_file() and storage.sha256_file(weights) == weights_sha256:
        return local

    def fetch(staging: Path) -> Version:
        with TemporaryDirectory(dir=staging) as temporary:
            downloaded = download(client, version, "artifacts", Path(temporary))
            if downloaded is None:
                raise UserError(
                    f"the files of {version.uri} are gone from the registry "
                    f"{public_uri(client.tracking_uri)}, and from {local}"
                )
            for file in MODEL_FILES:
                shutil.copy(downloaded / file, staging / file)
        if storage.sha256_file(staging / MODEL_FILES[0]) != weights_sha256:
            raise CorruptionError(f"the weights of {version.uri} are not those registered")
        return version.record(weights_sha256, recorded_uri(client.tracking_uri, root))

    name = f"{version.name}-{version.version}-{weights_sha256[:12]}"
    folder = DataRoot(root).mlflow / "models" / name
    return storage.run_stage(folder, Version, weights_sha256, fetch).path


def download(client: "MlflowClient", version: ModelVersion, path: str, folder: Path) -> Path | None:
    """Download a file or folder of a version from the registry; None where it is gone there.

    Raises what MLflow and its transports raise where the registry cannot be reached.
    """
    from mlflow.artifacts import download_artifacts

    if not has_file(client, version, path):
        return None
    with as_default(client):
        return Path(download_artifacts(f"{version.uri}/{path}", dst_path=str(folder)))


def has_file(client: "MlflowClient", version: ModelVersion, path: str) -> bool:
    """Whether the registry has a file or folder of a version. Raises as `download` does."""
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    parent, _, name = f"{version.uri}/{path}".rpartition("/")
    with as_default(client):
        try:
            return name in (Path(info.path).name for info in list_artifacts(parent))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False


def stored_weights_sha256(client: "MlflowClient", version: ModelVersion, root: Path) -> str | None:
    """The hash of a version's weights in the registry itself; None where they are gone there."""
    with TemporaryDirectory(dir=storage.make_folder(DataRoot(root).mlflow)) as temporary:
        weights = download(client, version, f"artifacts/{MODEL_FILES[0]}", Path(temporary))
        return storage.sha256_file(weights) if weights else None


@explained()
def as_parent(reference: str, config: PipelineConfig, root: Path) -> Parent:
    """A version as the model that a training continues from; its files are fetched if need be.

    `reference`: as of `find_version`.
    """
    client = connect(tracking_uri(config, root))
    version = find_version(client, reference)
    folder = fetch_version(client, version, root)
    files = storage.describe_files(folder, [folder / file for file in MODEL_FILES])
    return Parent(
        key=storage.sha256_json({n: e.sha256 for n, e in files.items()}),
        path=folder,
        files=files,
        model=version.uri,
        run=version.required("run"),
        tokenizer_sha256=version.required("tokenizer_sha256"),
    )
