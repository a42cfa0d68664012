"""What a version was made of, as far as this machine still has it: what retraining is decided by.

Nothing here is verified by its hash; what is then read, trained on or registered is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError
from slm.model.saved import MODEL_FILES
from slm.records import Parent, Shards, Source, Version
from slm.registry.assessment import Verdict
from slm.registry.finding import (
    CHALLENGER,
    CHAMPION,
    PREFIX,
    existing,
    fetch_version,
    find_version,
    required,
    run_folder,
    tags,
)
from slm.run_folder import DataRoot
from slm.tracking.server import connect, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Origin:
    """A version and what it was made of; None for what is gone from here."""

    name: str  # models:/NAME/VERSION
    source_key: str | None
    source: Source | None
    shards_key: str | None
    shards: Shards | None
    tokenizer_sha256: str | None
    config_sha256: str | None  # of what it was trained by
    config: PipelineConfig | None
    continued: bool  # whether its training went on from another version
    verdict: Verdict | None  # of the gate, where it was judged


@explained()
def find_origin(config: PipelineConfig, alias: str, *, root: Path | None = None) -> Origin | None:
    """The champion or challenger of a recipe's model; None where there is none.

    Raises UserError where the version was not registered by slm.
    """
    root = root or data_root()
    client = connect(tracking_uri(config, root))
    model = existing(client.get_registered_model, config.model_name)
    if model is None or alias not in model.aliases:
        return None
    return _origin(client.get_model_version(model.name, model.aliases[alias]), root)


def champion_and_challenger(
    config: PipelineConfig, *, root: Path | None = None
) -> tuple[Origin | None, Origin | None]:
    """Both, of a recipe's model."""
    return find_origin(config, CHAMPION, root=root), find_origin(config, CHALLENGER, root=root)


def _origin(entry: "ModelVersion", root: Path) -> Origin:
    told = tags(entry)
    verdict = told.get("verdict")
    try:
        config = run_folder(entry, root).config
    except CorruptionError:
        config = None
    return Origin(
        name=f"models:/{entry.name}/{entry.version}",
        source_key=told.get("source_key"),
        source=DataRoot(root).source(told.get("source_key")),
        shards_key=told.get("shards_key"),
        shards=DataRoot(root).shards(told.get("shards_key")),
        tokenizer_sha256=told.get("tokenizer_sha256"),
        config_sha256=told.get("config_sha256"),
        config=config,
        continued="parent_sha256" in told,
        verdict=Verdict.model_validate_json(verdict) if verdict else None,
    )


@explained()
def as_parent(name: str, config: PipelineConfig, *, root: Path | None = None) -> Parent:
    """A version as the model that a training goes on from; its files are fetched where need be."""
    root = root or data_root()
    client = connect(tracking_uri(config, root))
    entry = find_version(client, name)
    folder = fetch_version(client, entry, root)
    files = storage.describe_files(folder, [folder / file for file in MODEL_FILES])
    return Parent(
        key=storage.sha256_bytes(storage.canonical_json({n: e.sha256 for n, e in files.items()})),
        path=folder,
        files=files,
        model=name,
        run=required(entry, "run"),
        tokenizer_sha256=required(entry, "tokenizer_sha256"),
    )


@explained()
def annotate(
    version: Version, config: PipelineConfig, told: Mapping[str, str], *, root: Path | None = None
) -> None:
    """Sets tags, given without their prefix, on a version and on the MLflow run that made it."""
    client = connect(tracking_uri(config, root or data_root()))
    for key, value in told.items():
        client.set_model_version_tag(version.model, version.version, PREFIX + key, value)
        client.set_tag(version.run_id, PREFIX + key, value)
