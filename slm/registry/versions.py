"""What the registry knows of versions: their list, and the end of the chain of one of them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from slm import storage
from slm.config import data_root
from slm.history.lineage import Lineage, Link, State, lineage
from slm.model.saved import MODEL_FILES
from slm.registry.finding import PREFIX, find_version, required, run_folder, tags
from slm.run_folder import RunFolder
from slm.tracking.entities import public_uri
from slm.tracking.server import as_default, connect, default_uri, explained
from slm.tracking.store import file_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAGS = {  # link of the chain → the tag of a version that carries its hash
    "source": "source_key",
    "tokenizer": "tokenizer_sha256",
    "shards": "shards_key",
    "config": "config_sha256",
    "environment": "environment_sha256",
    "parent": "parent_sha256",
    "run": "run_key",
    "checkpoint": "weights_sha256",
    "evaluation": "evaluation_sha256",
}


class VersionFacts(BaseModel):
    """A version as the registry has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # models:/NAME/VERSION
    aliases: tuple[str, ...]
    run: str | None  # the run folder's name; None where slm did not register it
    val_bpb: float | None
    decision: str | None  # of the gate
    registered: float  # unix seconds


@explained()
def list_versions(root: Path | None = None, *, uri: str | None = None) -> list[VersionFacts]:
    """Every version of every model, the newest first; none where there is no store yet.

    Raises SlmError where the registry cannot be asked.
    """
    root = root or data_root()
    uri = uri or default_uri(root)
    if (file := file_of(uri)) and not file.exists():
        return []
    client = connect(uri)
    entries = client.search_model_versions()
    aliases = {name: _aliases(client, name) for name in {entry.name for entry in entries}}
    found = [_facts(entry, aliases[entry.name]) for entry in entries]
    return sorted(found, key=lambda facts: -facts.registered)


def _facts(entry: "ModelVersion", aliases: Mapping[str, list[str]]) -> VersionFacts:
    told = tags(entry)
    return VersionFacts(
        name=f"models:/{entry.name}/{entry.version}",
        aliases=tuple(aliases.get(str(entry.version), ())),
        run=told.get("run"),
        val_bpb=float(told["val_bpb"]) if "val_bpb" in told else None,
        decision=told.get("decision"),
        registered=entry.creation_timestamp / 1000,
    )


def _aliases(client: "MlflowClient", name: str) -> dict[str, list[str]]:
    """The versions of a model that have aliases, with these."""
    held: dict[str, list[str]] = {}
    for alias, number in sorted(client.get_registered_model(name).aliases.items()):
        held.setdefault(str(number), []).append(alias)
    return held


@explained()
def version_run(text: str, root: Path | None = None, *, uri: str | None = None) -> RunFolder:
    """The run that a version was made from; it may be gone.

    Raises UserError where there is no such version, or slm did not register it.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    return run_folder(find_version(client, text), root)


@explained()
def version_lineage(
    text: str, root: Path | None = None, *, uri: str | None = None, check: bool = True
) -> Lineage:
    """The chain of the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Where the run's folder is gone, the version's tags tell what it was.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    entry = find_version(client, text)
    told, weights = tags(entry), required(entry, "weights_sha256")
    chain = lineage(run_folder(entry, root), tags=told, check=check)
    name = f"models:/{entry.name}/{entry.version}"
    aliases = _aliases(client, entry.name).get(str(entry.version))
    notes = tag_differences(chain, told)
    state: State = "changed" if notes else "not checked"
    if check and not notes:
        state, notes = _stored_state(client, name, weights, root)
    version = Link(
        name="version",
        value=f"{name} ({', '.join(aliases)})" if aliases else name,
        digest=weights,
        state=state,
        notes=notes,
        made_from=("evaluation",),
    )
    return Lineage(name=name, links=(*chain.links, version))


def tag_differences(chain: Lineage, told: Mapping[str, str]) -> tuple[str, ...]:
    """What a version's tags say otherwise than the folders do."""
    pairs = ((name, tag, chain[name].digest) for name, tag in TAGS.items() if tag in told)
    return tuple(
        f"its tag {PREFIX}{tag} is {told[tag][:12]}…, the {name} here is {now[:12]}…"
        for name, tag, now in pairs
        if now is not None and public_uri(now) != told[tag]
    )


def _stored_state(
    client: "MlflowClient", name: str, wanted: str, root: Path
) -> tuple[State, tuple[str, ...]]:
    """How the weights in the registry itself stand."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    source = f"{name}/artifacts/{MODEL_FILES[0]}"
    with (
        TemporaryDirectory(dir=storage.make_folder(root / "mlflow")) as temporary,
        as_default(client),
        suppress(MlflowException, OSError),
    ):
        stored = storage.sha256_file(Path(download_artifacts(source, dst_path=temporary)))
        if stored == wanted:
            return "unchanged", ()
        return "changed", (f"{source}: sha256 {stored[:12]}…, registered {wanted[:12]}…",)
    return "gone", (f"{source} cannot be fetched from the registry",)
