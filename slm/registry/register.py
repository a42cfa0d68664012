"""The model registry: a run's evaluated checkpoint becomes a version that carries its whole chain.

Every call to the registry can be repeated: what is there already is found by its hashes and
reused, so a process that is killed between two calls is made up for by the next one. Aliases move
last.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slm import keys, storage
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError
from slm.records import Checkpoint, Evaluation, Parent, Report, Run, Shards, Version
from slm.registry import local_store
from slm.registry.finding import CHALLENGER
from slm.registry.packing import logged_model
from slm.run_folder import CHECKPOINTS, PARENT, RunFolder
from slm.tracking import mirror
from slm.tracking.entities import public_uri
from slm.tracking.server import as_default, connect, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

REGISTER_VERSION = 1
"""Goes up whenever the same run gives another model version."""

REGISTERED = "registered.json"


@explained()
def register(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    report: Report | None,
    shards: Shards | None,
    *,
    root: Path | None = None,
) -> Version:
    """Makes the evaluated checkpoint of a run a version of `config.model_name`.

    It becomes `challenger`, unless it was judged before; only the gate makes a champion. A run that
    is registered already gives its version, `reused`.

    Raises CorruptionError where the checkpoint is not the one that was evaluated.
    """
    root = root or data_root()
    uri = tracking_uri(config, root)
    checkpoint = _evaluated_checkpoint(run, evaluation)
    chain = _chain(config, run, evaluation, report, shards, checkpoint)
    fields = {"model": config.model_name, "tracking_uri": public_uri(uri)}
    key = keys.stage_key("register", REGISTER_VERSION, fields, chain)
    note = run.path / REGISTERED
    if (known := _remembered(note)) and known.key == key:
        aliases = _aliases_now(uri, known, checkpoint.weights_sha256)
        if aliases is not None:
            return known.model_copy(update={"aliases": aliases, "reused": True})
    run_id = mirror.sync(RunFolder.of(run), tracking_uri=uri)
    client = connect(uri)
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        model = logged_model(client, run_id, checkpoint, root)
        entry = _model_version(client, config.model_name, model, {**chain, "slm.run_id": run_id})
        aliases = _first_alias(client, entry)
    result = Version(
        key=key,
        model=entry.name,
        version=str(entry.version),
        aliases=aliases,
        run_id=run_id,
        tracking_uri=public_uri(uri),
    )
    storage.write_json(note, result.model_dump(mode="json"))
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


def _chain(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    report: Report | None,
    shards: Shards | None,
    checkpoint: Checkpoint,
) -> dict[str, str]:
    """Everything that the version was made of, as tags. A link whose files are gone is left out."""
    home = RunFolder.of(run)
    source = home.root.source(shards.source_key) if shards else None
    environment = run.environment
    parent = storage.read_record(run.path / PARENT, Parent, verify=False)
    links = {
        "dataset": source and source.dataset,
        "dataset_revision": source and source.revision,
        "source_key": shards and shards.source_key,
        "tokenizer_sha256": checkpoint.tokenizer_sha256,
        "shards_key": run.shards_key,
        "config_sha256": checkpoint.config_sha256,
        "code_commit": environment.get("commit"),
        "code_dirty": environment.get("dirty"),
        "code_diff_sha256": environment.get("diff_sha256"),
        "environment_sha256": storage.sha256_bytes(storage.canonical_json(environment)),
        "recipe": config.recipe,
        "parent": parent and parent.model,
        "parent_sha256": parent and parent.key,
        "run": run.name,
        "run_key": run.key,
        "checkpoint": checkpoint.name,
        "weights_sha256": checkpoint.weights_sha256,
        "evaluation_key": evaluation.key,
        "evaluation_sha256": storage.content_hash(evaluation),
        "report_sha256": report and storage.content_hash(report),
        "val_loss": evaluation.val_loss,
        "val_bpb": evaluation.val_bpb,
        "determinism_level": run.level,
    }
    return {f"slm.{k}": public_uri(str(v)) for k, v in links.items() if v is not None}


def _remembered(note: Path) -> Version | None:
    with suppress(FileNotFoundError, ValueError):
        return Version.model_validate_json(note.read_bytes())
    return None


def _aliases_now(uri: str, known: Version, weights_sha256: str) -> list[str] | None:
    """The aliases that a version has now, or None where the store does not have the version."""
    if local_store.is_ours(uri):
        with suppress(sqlite3.Error):  # of another form: mlflow is asked
            return local_store.aliases(uri, known.model, known.version, weights_sha256)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        entry = client.get_model_version(known.model, known.version)
        if entry.tags.get("slm.weights_sha256") == weights_sha256:
            return sorted(entry.aliases)
    return None


# ---- versions and aliases ---------------------------------------------------------------------


def _model_version(
    client: "MlflowClient", name: str, model: "LoggedModel", tags: dict[str, str]
) -> "ModelVersion":
    """The version of these weights of this run, with these tags; made where there is none."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    for entry in client.search_model_versions(f"name = '{name}'"):
        if all(entry.tags.get(tag) == tags[tag] for tag in ("slm.weights_sha256", "slm.run_key")):
            for key, value in tags.items():
                if entry.tags.get(key) != value:
                    client.set_model_version_tag(name, entry.version, key, value)
            return entry
    with as_default(client):
        return client.create_model_version(
            name,
            source=model.model_uri,
            run_id=tags["slm.run_id"],
            tags=tags,
            model_id=model.model_id,
            description=f"Not judged yet: `slm promote models:/{name}@{CHALLENGER}`",
        )


def _first_alias(client: "MlflowClient", entry: "ModelVersion") -> list[str]:
    """Makes a version that has no alias the challenger, unless it was judged already."""
    aliases = client.get_registered_model(entry.name).aliases
    held = sorted(alias for alias, number in aliases.items() if str(number) == str(entry.version))
    if held or "slm.verdict" in entry.tags:
        return held
    client.set_registered_model_alias(entry.name, CHALLENGER, entry.version)
    return [CHALLENGER]
