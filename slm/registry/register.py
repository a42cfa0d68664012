"""The register stage: a run's evaluated checkpoint becomes a version that carries its whole chain.

Every call to the registry can be repeated: what is there already is found by its hashes and reused,
so a call after a killed one completes it. Aliases move last.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, SlmError
from slm.records import Checkpoint, Evaluation, Report, Run, Shards, Version, check_input, model_uri
from slm.registry.packing import logged_model
from slm.registry.tags import (
    PREFIX,
    chain_tags,
    ingredients,
    read_note,
    register_key,
    registered_notes,
)
from slm.registry.version import CHALLENGER, DECISION_TAG, ModelVersion, from_mlflow
from slm.registry.versions import has_store, if_exists, is_whole
from slm.run_folder import CHECKPOINTS, DataRoot, RunFolder
from slm.tracking import mirror
from slm.tracking.entities import public_uri
from slm.tracking.server import (
    as_default,
    connect,
    default_uri,
    explained,
    recorded_uri,
    store_uri,
    tracking_uri,
)
from slm.tracking.store import file_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


@explained()
@storage.hashing_once(anew=True)
def register(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    report: Report | None,
    shards: Shards | None,
    *,
    root: Path | None = None,
) -> Version:
    """Make the evaluated checkpoint of a run a version of `config.model_name`.

    It becomes `challenger`, unless the gate has assessed it; only the gate makes a champion. A run
    that is registered with this chain already gives its version, `reused`.

    Raises CorruptionError where the checkpoint is not the one that was evaluated.
    """
    check_input(run, Run)
    check_input(evaluation, Evaluation)
    root = root or data_root()
    uri = tracking_uri(config, root)
    checkpoint = _evaluated_checkpoint(run, evaluation)
    tags = chain_tags(ingredients(config, run, checkpoint, evaluation, report, shards))
    key = register_key(config, tags, root)
    note = _note(config, run, uri, key, root)
    client = connect(uri)
    if version := _registered(client, config.model_name, run.path, tags):
        return version.record(key, uri).model_copy(update={"reused": True})
    run_id = mirror.sync(RunFolder.of(run), tracking_uri=uri)
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        model = logged_model(client, run_id, checkpoint, root)
        version = _make_version(client, config.model_name, model, {**tags, "run_id": run_id})
        _make_challenger(client, version)
        version = from_mlflow(client.get_model_version(version.name, version.version))
    result = version.record(key, uri)
    noted = result.model_copy(update={"tracking_uri": recorded_uri(uri, root)})
    storage.write_json(note, noted.model_dump(mode="json"))
    return result


def _evaluated_checkpoint(run: Run, evaluation: Evaluation) -> Checkpoint:
    folder = run.path / CHECKPOINTS / evaluation.checkpoint
    checkpoint = RunFolder.of(run).checkpoint(evaluation.checkpoint)
    if checkpoint is None:
        raise CorruptionError(f"{folder} is gone: it was evaluated, and cannot be registered")
    if checkpoint.weights_sha256 != evaluation.weights_sha256:
        raise CorruptionError(
            f"{folder} was exchanged after its evaluation: `slm evaluate {run.name}` again"
        )
    return checkpoint


# ---- notes in the run's folder ----------------------------------------------------------------


def _note(config: PipelineConfig, run: Run, uri: str, key: str, root: Path) -> Path:
    own = RunFolder.of(run).config
    is_own = (config.model_name, uri) == (own.model_name, tracking_uri(own, root))
    return run.path / ("registered.json" if is_own else f"registered-{key[:12]}.json")


def _registered(
    client: "MlflowClient", name: str, run: Path, tags: Mapping[str, str]
) -> ModelVersion | None:
    """The version that a note names, where the registry has it, whole and with this very chain."""
    for noted in filter(None, map(read_note, registered_notes(run))):
        entry = if_exists(client.get_model_version, name, noted.version)
        version = from_mlflow(entry) if entry and noted.model == name else None
        if version and tags.items() <= version.tags.items() and is_whole(client, version):
            return version
    return None


@explained()
def registered_version(
    config: PipelineConfig, run: Run, tags: Mapping[str, str], root: Path
) -> Version | None:
    """The version with this chain that `register` would reuse; the registry is asked."""
    uri = tracking_uri(config, root)
    if not has_store(uri):
        return None
    version = _registered(connect(uri), config.model_name, run.path, tags)
    return version.record(register_key(config, tags, root), uri) if version else None


def deleted_notes(root: Path) -> frozenset[Path]:
    """The notes, in all runs of a data folder, of versions that their registry no longer has.

    A registry that cannot be asked counts as having them.
    """
    held: dict[str, Collection[tuple[str, str]] | None] = {}
    deleted = set()
    for run in DataRoot(root).runs():
        for note in registered_notes(run.path):
            noted = read_note(note)
            if noted is None:
                continue
            uri = _server_of(noted, root)
            if uri not in held:
                held[uri] = _versions_at(uri)
            versions = held[uri]
            if versions is not None and (noted.model, noted.version) not in versions:
                deleted.add(note)
    return frozenset(deleted)


def _server_of(noted: Version, root: Path) -> str:
    """The address of the server that a note names, which has no password in it."""
    file = file_of(noted.tracking_uri)
    if file is not None and not (file.is_absolute() and file.exists()):
        return store_uri(root)  # a store that moved with its data folder
    configured = default_uri(root)
    return configured if public_uri(configured) == noted.tracking_uri else noted.tracking_uri


def _versions_at(uri: str) -> Collection[tuple[str, str]] | None:
    """Model and number of every version that a registry has; None where it cannot be asked."""
    if not has_store(uri):
        return None
    with suppress(SlmError, OSError), explained():
        return {(v.name, str(v.version)) for v in connect(uri).search_model_versions()}
    return None


# ---- versions and aliases ---------------------------------------------------------------------


def _make_version(
    client: "MlflowClient", name: str, model: "LoggedModel", tags: Mapping[str, str]
) -> ModelVersion:
    """The version of these weights of this run, with these tags; made where there is none."""
    from mlflow.exceptions import MlflowException

    prefixed = {PREFIX + tag: value for tag, value in tags.items()}
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    for version in map(from_mlflow, client.search_model_versions(f"name = '{name}'")):
        same = all(version.tags.get(tag) == tags[tag] for tag in ("weights_sha256", "run_key"))
        if same and is_whole(client, version):
            for tag, value in tags.items():
                if version.tags.get(tag) != value:
                    client.set_model_version_tag(name, version.version, PREFIX + tag, value)
            return version
    with as_default(client):
        entry = client.create_model_version(
            name,
            source=model.model_uri,
            run_id=tags["run_id"],
            tags=prefixed,
            model_id=model.model_id,
            description=f"Not assessed yet: `slm promote {model_uri(name, alias=CHALLENGER)}`",
        )
    return from_mlflow(entry)


def _make_challenger(client: "MlflowClient", version: ModelVersion) -> None:
    """Give a version that has no alias that of the challenger, unless the gate has assessed it."""
    aliases = client.get_registered_model(version.name).aliases
    has_alias = version.version in map(str, aliases.values())
    if not has_alias and DECISION_TAG not in version.tags:
        client.set_registered_model_alias(version.name, CHALLENGER, version.version)


@explained()
def annotate(
    version: Version, config: PipelineConfig, tags: Mapping[str, str], *, root: Path | None = None
) -> None:
    """Set tags, given without their prefix, on a version and on the MLflow run that made it."""
    client = connect(tracking_uri(config, root or data_root()))
    run = if_exists(client.get_run, version.run_id)
    is_active = run is not None and run.info.lifecycle_stage == "active"  # else MLflow refuses
    for key, value in tags.items():
        client.set_model_version_tag(version.model, version.version, PREFIX + key, value)
        if is_active:
            client.set_tag(version.run_id, PREFIX + key, value)
