"""The model registry: a run's evaluated checkpoint becomes a version that carries its whole chain.

Every call to the registry can be repeated: what is there already is found by its hashes and
reused, so a process that is killed between two calls is made up for by the next one. Aliases move
last.
"""

import json
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slm import storage, tracking
from slm.checkpoint import MODEL_FILES, find_run, latest_checkpoint
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, UserError, unknown
from slm.records import Checkpoint, Evaluation, Parent, Report, Run, Shards, Version
from slm.registry.packing import pack
from slm.session import PARENT
from slm.tracking.entities import find_source, public_uri
from slm.tracking.server import as_default, connect, default_uri, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

REGISTER_VERSION = 1
"""Goes up whenever the same run gives another model version."""

REGISTERED = "registered.json"
CHAMPION, CHALLENGER = "champion", "challenger"


# ---- registering ------------------------------------------------------------------------------


@explained()
def register(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    report: Report | None = None,
    *,
    root: Path | None = None,
) -> Version:
    """Makes the evaluated checkpoint of a run a version of `config.registry.model`.

    It becomes `challenger`; only the gate makes a champion. A run that is registered already gives
    its version, `reused`.

    Raises CorruptionError where the checkpoint is not the one that was evaluated.
    """
    root = root or data_root()
    uri = tracking_uri(config, root)
    checkpoint = _evaluated_checkpoint(run, evaluation)
    chain = _chain(config, run, evaluation, report, checkpoint, root)
    fields = {"model": config.registry.model, "tracking_uri": public_uri(uri)}
    key = storage.stage_key("register", REGISTER_VERSION, fields, chain)
    note = run.path / REGISTERED
    if (known := _remembered(note)) and known.key == key:
        aliases = _aliases_in_store(uri, known, checkpoint.weights_sha256)
        if aliases is not None:
            return known.model_copy(update={"aliases": aliases, "reused": True})
    run_id = tracking.sync(run.path, tracking_uri=uri)
    client = connect(uri)
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        model = _logged_model(client, run_id, checkpoint, root)
        entry = _model_version(
            client, config.registry.model, model, {**chain, "slm.run_id": run_id}
        )
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
    folder = run.path / "checkpoints" / evaluation.checkpoint
    checkpoint = storage.read_record(folder, Checkpoint, verify=False)
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
    checkpoint: Checkpoint,
    root: Path,
) -> dict[str, str]:
    """Everything that the version was made of, as tags. A link whose files are gone is left out."""

    described = json.loads((run.path / "config.json").read_bytes())
    shards = storage.read_record(
        storage.named(root / "shards", described["shards"]), Shards, verify=False
    )
    source = find_source(root, shards) if shards else None
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


def _aliases_in_store(uri: str, known: Version, weights_sha256: str) -> list[str] | None:
    """The aliases that a version has now, or None where the store does not have the version.

    Our own SQLite store is read directly, in a millisecond: mlflow takes two seconds to start.
    Where that fails, for a store of another kind or form, mlflow is asked.
    """
    where = (known.model, int(known.version))
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///")).resolve()
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as store,
        ):
            found = store.execute(
                "SELECT v.storage_location FROM model_versions v JOIN model_version_tags t "
                "USING (workspace, name, version) WHERE v.name = ? AND v.version = ? "
                "AND t.key = 'slm.weights_sha256' AND t.value = ?",
                (*where, weights_sha256),
            ).fetchone()
            if found is None or not _local_path(found[0]).is_dir():
                return None
            rows = store.execute(
                "SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ?", where
            )
            return sorted(alias for (alias,) in rows)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        entry = client.get_model_version(known.model, known.version)
        if entry.tags.get("slm.weights_sha256") == weights_sha256:
            return sorted(entry.aliases)
    return None


def _local_path(uri: str) -> Path:
    """The path of a `file:` address, or of a path as it is."""
    return Path(url2pathname(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


# ---- what is uploaded -------------------------------------------------------------------------


def _logged_model(
    client: "MlflowClient", run_id: str, checkpoint: Checkpoint, root: Path
) -> "LoggedModel":
    """The uploaded model of a checkpoint. One that was left half-way is uploaded again."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    tags = {"slm.weights_sha256": checkpoint.weights_sha256, "slm.step": str(checkpoint.step)}
    found = [
        model
        for model in client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
        if model.name == "model" and tags.items() <= model.tags.items()
    ]
    model = (
        found[0]
        if found
        else client.create_logged_model(
            run.info.experiment_id,
            name="model",
            source_run_id=run_id,
            tags=tags,
            model_type="pyfunc",
        )
    )
    if model.status == "READY":
        return model
    if wrong := storage.mismatches(checkpoint.path, checkpoint.files):
        raise CorruptionError("; ".join(wrong))
    with TemporaryDirectory(dir=root / "mlflow") as temporary:
        packed = Path(temporary) / "model"
        pack(checkpoint.path, packed, model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, str(packed))
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
    return client.finalize_logged_model(model.model_id, "READY")


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
    """Makes a version that has no alias the challenger."""
    aliases = client.get_registered_model(entry.name).aliases
    held = sorted(alias for alias, number in aliases.items() if str(number) == str(entry.version))
    if held:
        return held
    client.set_registered_model_alias(entry.name, CHALLENGER, entry.version)
    return [CHALLENGER]


# ---- finding ----------------------------------------------------------------------------------


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
    path = find_run(text, root)
    run = storage.read_record(path, Run, verify=False)
    if run:
        return run.checkpoint("best")
    checkpoint = latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise UserError(f"the run {path.name!r} has no checkpoint yet: let it train on")
    return checkpoint.path


def find_version(client: "MlflowClient", text: str) -> "ModelVersion":
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names, or a UserError."""
    parsed = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", text)
    if parsed is None:
        raise UserError(f"{text!r} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = parsed.groups()
    known = {model.name: model for model in client.search_registered_models()}
    if name not in known:
        where = f"the registry is {public_uri(client.tracking_uri)}"
        raise UserError(f"{unknown('model', name, known)}; {where}, MLFLOW_TRACKING_URI changes it")
    if alias:
        aliases = known[name].aliases
        if alias not in aliases:
            raise unknown(f"alias of model {name!r}", alias, aliases)
        number = aliases[alias]
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if str(number) not in versions:
        raise unknown(f"version of model {name!r}", str(number), versions)
    return versions[str(number)]


def fetch_version(client: "MlflowClient", entry: "ModelVersion", root: Path) -> Path:
    """The folder of a version's files: those of its run, where they are what was registered, else
    a copy from the registry under `data/mlflow/models`, whose weights are checked.
    """
    tags = entry.tags
    if "slm.weights_sha256" not in tags:
        raise UserError(f"models:/{entry.name}/{entry.version} was not registered by slm")
    wanted = tags["slm.weights_sha256"]
    run = storage.named(root / "runs", tags["slm.run"])
    local = storage.named(run / "checkpoints", tags["slm.checkpoint"])
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
