"""The chain of a version: what it was made of, as its tags, and checked against the files here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import SlmError
from slm.history.lineage import Lineage, Link, State, lineage
from slm.model.saved import MODEL
from slm.records import Checkpoint, Derivation, Evaluation, Parent, Report, Run, Shards, Source
from slm.registry.versions import PREFIX, ModelVersion, find_version, stored_weights_sha256
from slm.tracking.entities import public_uri
from slm.tracking.server import connect, default_uri, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Ingredients:
    """What a version is made of; None for what is gone from here, or never was."""

    config: PipelineConfig
    source: Source | None
    shards: Shards | None
    parent: Parent | None
    run: Run
    checkpoint: Checkpoint
    evaluation: Evaluation
    report: Report | None
    derived: Derivation | None = None  # how the run was made from another one, if it was


@dataclass(frozen=True)
class ChainTag:
    """A tag of a version."""

    name: str  # without `slm.`
    value: Callable[[Ingredients], Any]  # None: the tag is left out
    link: str | None = None  # the link of the lineage whose digest it carries
    required: bool = False  # the gate refuses a version without it


CHAIN = (
    ChainTag("dataset", lambda made: made.source and made.source.dataset, required=True),
    ChainTag("dataset_revision", lambda made: made.source and made.source.revision, required=True),
    ChainTag("source_key", lambda made: made.shards and made.shards.source_key, "source", True),
    ChainTag("tokenizer_sha256", lambda made: made.checkpoint.tokenizer_sha256, "tokenizer", True),
    ChainTag("shards_key", lambda made: made.run.shards_key, "shards", True),
    ChainTag("config_sha256", lambda made: made.checkpoint.config_sha256, "config", True),
    ChainTag("code_commit", lambda made: made.run.environment.get("commit")),
    ChainTag("code_dirty", lambda made: made.run.environment.get("dirty")),
    ChainTag("code_diff_sha256", lambda made: made.run.environment.get("diff_sha256")),
    ChainTag("code_modules_sha256", lambda made: made.run.environment.get("modules_sha256")),
    ChainTag(
        "environment_sha256",
        lambda made: storage.sha256_json(made.run.environment),
        "environment",
        True,
    ),
    ChainTag("recipe", lambda made: made.config.recipe),
    ChainTag("parent", lambda made: made.parent and made.parent.model),
    ChainTag("parent_sha256", lambda made: made.parent and made.parent.key, "parent"),
    ChainTag("made_from", lambda made: made.derived and made.derived.text),
    ChainTag("made_from_key", lambda made: made.derived and made.derived.key, "made from"),
    ChainTag("run", lambda made: made.run.name),
    ChainTag("run_key", lambda made: made.run.key, "run", True),
    ChainTag("checkpoint", lambda made: made.checkpoint.name),
    ChainTag("weights_sha256", lambda made: made.checkpoint.weights_sha256, "checkpoint", True),
    ChainTag("evaluation_key", lambda made: made.evaluation.key),
    ChainTag(
        "evaluation_sha256", lambda made: storage.content_hash(made.evaluation), "evaluation", True
    ),
    ChainTag("report_sha256", lambda made: made.report and storage.content_hash(made.report)),
    ChainTag("val_loss", lambda made: made.evaluation.val_loss),
    ChainTag("val_bpb", lambda made: made.evaluation.val_bpb, required=True),
    ChainTag("determinism_level", lambda made: made.run.level),
)
REQUIRED = tuple(tag.name for tag in CHAIN if tag.required)


def chain_tags(made: Ingredients) -> dict[str, str]:
    """The tags of the chain, without their prefix. What is gone from here is left out."""
    values = ((tag.name, tag.value(made)) for tag in CHAIN)
    return {name: public_uri(str(value)) for name, value in values if value is not None}


# ---- checked ----------------------------------------------------------------------------------


@explained()
def version_lineage(text: str, root: Path | None = None, *, uri: str | None = None) -> Lineage:
    """The chain of the version that a reference names, as of `find_version`.

    Where the run's folder is gone, the version's tags fill in what it was.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    version = find_version(client, text)
    weights_sha256 = version.required("weights_sha256")
    chain = lineage(version.run(root), tags=version.tags)
    notes = tag_differences(chain, version.tags)
    state: State = "changed"
    if not notes:
        state, notes = _stored_state(client, version, root)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    link = Link(
        name="version",
        value=version.uri + aliases,
        digest=weights_sha256,
        state=state,
        notes=notes,
        made_from=("evaluation",),
    )
    return Lineage(name=version.uri, links=(*chain.links, link), tags=dict(version.tags))


def tag_differences(chain: Lineage, tags: Mapping[str, str]) -> tuple[str, ...]:
    """Where a version's tags and the folders here differ, a line each."""
    digests = {link.name: link.digest for link in chain.links}
    notes = []
    for tag in CHAIN:
        digest, tagged = digests.get(tag.link or ""), tags.get(tag.name)
        if digest is not None and tagged not in (None, public_uri(digest)):
            notes.append(
                f"its tag {PREFIX}{tag.name} is {tagged[:12]}…, the {tag.link} here is "
                f"{digest[:12]}…"
            )
    return tuple(notes)


def _stored_state(
    client: "MlflowClient", version: ModelVersion, root: Path
) -> tuple[State, tuple[str, ...]]:
    """Whether the weights in the registry itself are those that were registered."""
    registered = version.required("weights_sha256")
    try:
        with explained():
            stored = stored_weights_sha256(client, version, root)
    except (SlmError, OSError) as error:
        return "not checked", (f"the registry's copy cannot be read now: {error}",)
    if stored is None:
        return "gone", (f"{MODEL} of {version.uri} is gone from the registry",)
    if stored != registered:
        note = f"{MODEL} in the registry: sha256 {stored[:12]}…, registered {registered[:12]}…"
        return "changed", (note,)
    return "unchanged", ()
