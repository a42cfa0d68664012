"""A link of the chain, its state, and the chain."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal

from pydantic import Field

from slm.records import Frozen
from slm.storage import R

State = Literal["unchanged", "changed", "gone", "not checked"]
"""`not checked`: not asked for, or it could not be reached; a note says so. It breaks no chain."""
Notes = tuple[str, ...]
Status = tuple[State, Notes]

NOT_CHECKED: Status = ("not checked", ())
WORST_FIRST: tuple[State, ...] = ("gone", "changed", "not checked", "unchanged")


class Link(Frozen):
    """One thing that the result was made from, or the result itself."""

    name: str
    value: str  # for a person
    digest: str | None = None  # its key, content hash or commit, where it is known
    state: State
    notes: Notes = ()  # what is wrong with it, or was not checked
    files: dict[str, str] = Field(default_factory=dict)  # each file → its recorded sha256
    made_from: tuple[str, ...] = ()  # names of links, the one that it continues first


class Lineage(Frozen):
    """The chain of a run or of a version, from the dataset on."""

    name: str  # of the run or the version
    links: tuple[Link, ...]
    tags: dict[str, str] = Field(default_factory=dict)  # of the version, without their prefix

    def __getitem__(self, name: str) -> Link:
        return next(link for link in self.links if link.name == name)

    @property
    def broken(self) -> list[Link]:
        """The links that are gone or changed."""
        return [link for link in self.links if link.state in ("gone", "changed")]


def make_link(name: str, value: str, digest: str | None, status: Status, *made_from: str) -> Link:
    state, notes = status
    return Link(
        name=name, value=value, digest=digest, state=state, notes=notes, made_from=made_from
    )


def status_of(notes: Iterable[str]) -> Status:
    """Unchanged, or changed where something is to be noted."""
    changes = tuple(notes)
    return ("changed" if changes else "unchanged"), changes


@dataclass(frozen=True)
class Checked(Generic[R]):
    """A record, if there is one, and the status of the files that it lists."""

    record: R | None
    status: Status

    def link(self, name: str, value: str, digest: str | None, *made_from: str) -> Link:
        link = make_link(name, value, digest, self.status, *made_from)
        files = self.record.files if self.record else {}
        return link.model_copy(update={"files": {n: e.sha256 for n, e in files.items()}})
