"""What a store has of one result: an entry with the name, size and sha256 of each of its files.

    blobs/ab/abcd…                      bytes, named by their sha256
    source/<key>.json                   an entry each, written after its blobs
    tokenizer/<key>.json
    shards/<key>.json
    run/<key>.json
    run/<key>/evaluation/<key>.json     what belongs to a run
    run/<key>/benchmarks/<key>.json
    run/<key>/report/<key>.json
    run/<key>/selection/<key>.json
    version/<model>/<key>.json          what a model version was made of
    alias/<model>/<alias>.json          which of them has an alias; the last push counts

An entry holds keys, names and hashes alone: no path of a machine, no host, no region.
"""

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from slm import storage
from slm.config import NAME
from slm.errors import CorruptionError, NewerFormat, UserError, first_invalid
from slm.records import (
    Benchmarks,
    Evaluation,
    FileEntry,
    Frozen,
    Record,
    Report,
    Run,
    Selection,
    Shards,
    Source,
    Vocabulary,
)

FORMAT = 1
"""The format number of an entry."""

Kind = Literal[
    "source",
    "tokenizer",
    "shards",
    "run",
    "evaluation",
    "benchmarks",
    "report",
    "selection",
    "version",
]
KINDS: dict[type[Record], Kind] = {
    Source: "source",
    Vocabulary: "tokenizer",
    Shards: "shards",
    Run: "run",
    Evaluation: "evaluation",
    Benchmarks: "benchmarks",
    Report: "report",
    Selection: "selection",
}
FOLDERS: dict[Kind, str] = {
    "source": "sources", "tokenizer": "tokenizers", "shards": "shards", "run": "runs"
}  # fmt: skip
INSIDE: tuple[Kind, ...] = ("evaluation", "benchmarks", "report", "selection")  # a run's folder


def _check_path(name: str) -> str:
    """Refuse what would be outside the result's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the path of a file in a result")
    return name


Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_check_path)]
FolderName = Annotated[str, AfterValidator(_check_path), StringConstraints(pattern="^[^./][^/]*$")]


class Blob(FileEntry):
    """A file of an entry, which a blob of this hash is."""

    sha256: Digest


class Entry(Frozen):
    """A result in a store."""

    kind: Kind
    key: Digest
    name: FolderName  # the result's, or the model's of a version
    files: dict[FileName, Blob] = Field(default_factory=dict)
    run: Digest | None = None  # the key of the run that it belongs to
    needs: dict[Kind, Digest] = Field(default_factory=dict)  # what it was made from
    number: str | None = None  # of a version, in the registry that it was pushed from

    @property
    def place(self) -> str:
        """Where the entry is, relative to the store."""
        return place(self.kind, self.key, run=self.run, model=self.name)

    @property
    def size(self) -> int:
        """The bytes of its blobs: files with the same content are one."""
        return sum({blob.sha256: blob.bytes for blob in self.files.values()}.values())

    def weights_sha256(self, checkpoint: str) -> str:
        """Of a run's entry: the hash of the weights of one of its checkpoints."""
        return self.files[f"checkpoints/{checkpoint}/model.safetensors"].sha256

    def to_json(self) -> bytes:
        """The entry with its own hash in it."""
        fields = {"format": FORMAT, **self.model_dump(mode="json", exclude_defaults=True)}
        text = json.dumps({**fields, "sha256": storage.sha256_json(fields)}, indent=1)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> Self:
        """Raises CorruptionError where it is not what was written, NewerFormat."""
        try:
            fields: dict[str, Any] = dict(json.loads(text))
            if fields.pop("sha256", None) != storage.sha256_json(fields):
                raise ValueError("its own sha256 does not match")
            number = fields.pop("format", None)
            if isinstance(number, int) and number > FORMAT:
                raise NewerFormat(
                    f"{where} is of format {number}, and this slm reads formats up to {FORMAT}: "
                    "use the slm that pushed it"
                )
            return cls.model_validate(fields)
        except ValidationError as error:
            raise CorruptionError(f"{where} cannot be read: {first_invalid(error)}") from error
        except (TypeError, ValueError) as error:
            raise CorruptionError(f"{where} cannot be read: {error}") from error


def place(kind: Kind, key: str, *, run: str | None = None, model: str = "") -> str:
    """Where the entry of a result is, relative to the store."""
    if kind in INSIDE:
        assert run, "it belongs to a run"
        return f"run/{run}/{kind}/{key}.json"
    return f"version/{model}/{key}.json" if kind == "version" else f"{kind}/{key}.json"


def alias_place(model: str, alias: str) -> str:
    """Where it is noted which version of a model has an alias."""
    for name in (model, alias):
        if not re.fullmatch(NAME, name):
            raise UserError(f"{name!r} is not a name that a store can hold")
    return f"alias/{model}/{alias}.json"


def blob_place(sha256: str) -> str:
    """Where the blob of a hash is, relative to the store."""
    return f"blobs/{sha256[:2]}/{sha256}"


def describe(kind: Kind, record: Record, files: dict[str, FileEntry], **facts: Any) -> Entry:
    """The entry of a local result. `files`: all that it carries, by their paths in its folder."""
    blobs = {name: Blob(**entry.model_dump()) for name, entry in sorted(files.items())}
    return Entry(kind=kind, key=record.key, name=record.name, files=blobs, **facts)
