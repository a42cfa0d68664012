"""What every record has: a key, the files of its folder, and where that is."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from slm.errors import UserError
from slm.figures import two_lines

_HIDDEN = ("key", "path", "reused", "pulled")  # of a record, in its repr
_WHERE_FROM = {
    "Source": "slm.download returns it",
    "Shards": "slm.encode returns them",
    "Run": "slm.train returns it, and slm.open_run(NAME).record reads it",
    "Evaluation": "slm.evaluate returns it",
}


class Frozen(BaseModel):
    """Values that do not change, without room for an unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        """Two lines: `model_dump()` has everything."""
        return two_lines(type(self).__name__, dict(self))

    __str__ = __repr__


class FileEntry(Frozen):
    """Size and hash of one file of a record's folder."""

    bytes: int
    sha256: str


class Record(Frozen):
    """What a finished stage leaves in `record.json`, and hands to the next stage."""

    no_content: ClassVar[frozenset[str]] = (
        frozenset()
    )  # files that no stage reads: see content_hash
    key: str
    files: dict[str, FileEntry] = Field(default_factory=dict)
    path: Path = Field(default=Path(), exclude=True)  # where the folder is now
    reused: bool = Field(default=False, exclude=True)  # whether it was complete before this call
    pulled: bool = Field(default=False, exclude=True)  # whether this call got it from a store

    @property
    def name(self) -> str:
        """The folder's name, `<name>-<key>`."""
        return self.path.name

    def __repr__(self) -> str:
        """Two lines, its name first: `model_dump()` has everything."""
        values = {name: value for name, value in self if name not in _HIDDEN}
        values = {name: value for name, value in values.items() if value is not None}
        return two_lines(f"{type(self).__name__} {self.name or self.key[:12]}", values)

    __str__ = __repr__


class Made(Frozen):
    """How a stage's result was made, in `made.json` next to its record."""

    settings: dict[str, Any]  # by dotted key, as they were given
    seconds: float
    cpu: str


def check_input(value: object, record: type[Record]) -> None:
    """Raises UserError where a stage is called with something other than the record it needs."""
    if not isinstance(value, record):
        name = record.__name__
        raise UserError(f"{type(value).__name__} instead of {name}: {_WHERE_FROM[name]}")
