"""Records of the data: documents, their vocabulary, their shards."""

from typing import Any, Literal

from pydantic import Field

from slm.records.record import Frozen, Record

EXCLUDED = "excluded.jsonl"  # of shards, with ROWS: see slm/tokens/exclusions.py
ROWS = {"train": "train.rows", "val": "val.rows"}


class SourceSplit(Frozen):
    """One split of a source: its parquet files in order, with one document a row."""

    files: list[str]
    documents: int
    bytes: int  # UTF-8 bytes of all documents


class SourcePart(Frozen):
    """One source of a mixture, as it is joined with the others."""

    key: str  # of its own Source
    dataset: str
    revision: str
    splits: dict[str, SourceSplit]  # its files in the folder of the mixture
    license: str | None = None


class Source(Record):
    """A downloaded dataset: parquet files whose column `text` holds one document a row.

    A column `columns` has what `data.columns` keeps next to each (slm/source/formats/kept.py).
    """

    dataset: str  # hub id, local path as given, or "stories"
    revision: str  # commit on the hub; for local files, the sha256 over their names and hashes
    splits: dict[str, SourceSplit]  # "train", and "val" where the dataset has its own
    origin: dict[str, str] = Field(default_factory=dict)  # each input file → its sha256
    dropped: dict[str, int] = Field(default_factory=dict)  # rows left out: reason → count
    inputs: dict[str, str] = Field(default_factory=dict)  # split → the files it was read from
    notes: list[str] | None = None  # files left out or missing, a line per kind; None: unknown
    parts: dict[str, SourcePart] = Field(default_factory=dict)  # of a mixture, by name

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self.splits.values())


class Vocabulary(Record):
    """A tokenizer that was trained on the train split of a source, given, or, of a mixture,
    trimmed.
    """

    kind: Literal["trained", "given", "trimmed"]
    source_key: str | None  # that it was made from; of a given one None
    tokenizer_sha256: str
    vocab_size: int  # end-of-text and special tokens included
    pattern: str  # its name, or itself where it has none
    special_tokens: tuple[str, ...] = ()
    origin: str  # what trained it; or where it was given: its file, or hf:ORG/NAME@COMMIT
    origin_sha256: str | None = None  # of that file
    documents: int = 0  # of train that it was trained on
    bytes: int = 0


class ShardCount(Frozen):
    """What one shard file holds."""

    documents: int
    tokens: int  # end-of-text tokens included
    bytes: int  # UTF-8 bytes of the documents


class ShardSplit(ShardCount):
    """What one split of the shards holds, and its files in order."""

    files: list[str]
    counts: dict[str, ShardCount] = Field(default_factory=dict)  # the same of each file


class ShardsPart(Frozen):
    """The shards of one source of a mixture, as they are joined with the others."""

    key: str  # of its own Shards
    source_key: str
    train: ShardSplit  # its files in the folder of the mixture; without what is excluded
    val: ShardCount  # of the held-out documents that are its own
    excluded: dict[str, int] = Field(default_factory=dict)  # reason → documents of train and val
    license: str | None = None


class Shards(Record):
    """Encoded documents: `train_00000.bin` …, `val_00000.bin` …, and their tokenizer."""

    no_content = frozenset((EXCLUDED, *ROWS.values()))
    source_key: str
    tokenizer_sha256: str
    vocab_size: int
    eot: int  # id of end-of-text, which opens every document
    splits: dict[str, ShardSplit]
    dropped: dict[str, int] = Field(default_factory=dict)  # reason → documents
    cleaning: dict[str, Any] = Field(default_factory=dict)  # counts and examples, for the report
    length_histogram: dict[str, int] = Field(default_factory=dict)  # "≤ tokens" → documents
    parts: dict[str, ShardsPart] = Field(default_factory=dict)  # of a mixture, by name

    @property
    def trained_on(self) -> ShardCount:
        """What a pass over the training tokens reads: of a mixture without what is excluded."""
        parts = [part.train for part in self.parts.values()]
        if not parts:
            return self.splits["train"]
        return ShardCount(
            documents=sum(part.documents for part in parts),
            tokens=sum(part.tokens for part in parts),
            bytes=sum(part.bytes for part in parts),
        )
