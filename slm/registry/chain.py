"""The chain of a version, checked against the files here."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slm.config import data_root
from slm.errors import SlmError
from slm.history.lineage import Lineage, Link, State, lineage
from slm.model.saved import MODEL
from slm.registry.tags import CHAIN, PREFIX
from slm.registry.version import ModelVersion
from slm.registry.versions import find_version, stored_weights_sha256
from slm.tracking.entities import public_uri
from slm.tracking.server import connect, default_uri, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
    used = {name for link in chain.links for name in link.made_from}
    link = Link(
        name="version",
        value=version.uri + aliases,
        digest=weights_sha256,
        state=state,
        notes=notes,
        made_from=tuple(link.name for link in chain.links if link.name not in used),
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
