"""The units that encoding is done in: a few megabytes of a source, one file each.

A unit is a range of row groups of one parquet file. Worker processes turn each into a file of
tokens that begins with its own sha256, so an interrupted encoding knows what it has finished.

The workers may be on other machines: they need the same files under the same paths, and only units
and paths are passed between processes.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import safetensors.numpy
from pyarrow.lib import ArrowException

from slm import storage
from slm.config import CleanConfig
from slm.errors import CorruptionError
from slm.records import Source
from slm.source.formats.kept import COLUMNS, TEXT
from slm.tokens.cleaning import (
    PERMUTATIONS,
    Hashes,
    Mask,
    Places,
    Signatures,
    Tally,
    clean,
    document_hash,
    shorten,
)
from slm.tokens.cleaning import signature as sign
from slm.tokens.functions import Applied, Functions
from slm.tokens.holdout import TRAIN_DRAW, VAL_DRAW, split_end
from slm.tokens.shards.layout import Counts, Tokens, token_dtype
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tokens.tokenizer.trimming import VocabRemap

UNIT_BYTES = 4 << 20  # of text, at least, unless the file ends
BATCH_BYTES = 1 << 20  # of text read and encoded together
Row = tuple[str, str | None]  # a document, and what is kept next to it, where that is read


@dataclass(frozen=True)
class Unit:
    """What one job of a worker process reads and where it writes."""

    source: Path  # a parquet file
    row_groups: tuple[int, ...]
    split: str  # the source's split that it belongs to
    text_bytes: int  # uncompressed, by the file's footer
    tokenizer: Path | None  # None: the tokens are the bytes of the documents
    settings: CleanConfig
    output: Path
    splits_ends: bool = False  # whether the end of each document is a document of val
    functions: Functions = ()  # of the user, by which documents are dropped or changed
    columns: tuple[str, ...] = ()  # that the source keeps next to each document, for these
    first_row: int = 0  # of the file: the first of its row groups
    start: int = 0  # the number of that row, counted over all files of the source

    @property
    def remapped(self) -> Path:
        """Where its tokens go in the ids of a trimmed vocabulary."""
        return self.output.with_suffix(".trimmed")

    def __str__(self) -> str:
        return f"{self.source}, row groups {self.row_groups[0]} to {self.row_groups[-1]}"


@dataclass(frozen=True)
class Drop:
    """A document that is dropped."""

    place: int  # the number of its row, over all files of the source
    reason: str
    bytes: int  # UTF-8 bytes, after repairs
    text: str  # how it begins
    draw: int = 0  # of its text as it came, by which its split would have been chosen
    is_val: bool = False
    original: int = -1  # the row of the document that it is a copy of; -1: none is known


@dataclass(frozen=True)
class Encoded:
    """The documents of a unit that cleaning kept, in order."""

    tokens: Tokens  # of all of them, end-of-text before each
    lengths: Counts  # tokens of each, end-of-text included
    sizes: Counts  # UTF-8 bytes of each
    hashes: Hashes  # of the cleaned texts, which duplicates are compared by
    draws: Hashes  # of the texts as they came, or draws: the split is chosen by them
    signatures: Signatures
    places: Places  # the number of the row of each, over all files of the source
    drops: npt.NDArray[np.uint8]  # those that it dropped, as JSON: see `dropped`
    tally: Tally

    @property
    def dropped(self) -> list[Drop]:
        """The documents of the unit that cleaning dropped, in order."""
        return [Drop(*fields) for fields in json.loads(self.drops.tobytes() or b"[]")]

    def select(self, mask: Mask) -> tuple[Tokens, Counts, Counts]:
        """Tokens, lengths and sizes of some of the documents.

        Of documents of 3, 2 and 4 tokens the mask [T, F, T] repeats to [T T T F F T T T T].
        """
        tokens = self.tokens[np.repeat(mask, self.lengths)]  # (N,) → (T,)
        return tokens, self.lengths[mask], self.sizes[mask]

    def write(self, path: Path) -> None:
        """Write it whole or not at all, whoever else writes the same; not synced.

        A torn file fails its hash and is written again.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        tally = json.dumps({"dropped": self.tally.dropped, "changed": self.tally.changed})
        payload = safetensors.numpy.save(arrays, {"tally": tally})
        storage.fault_point("write")
        storage.replace_file(path, hashlib.sha256(payload).digest(), payload)

    @classmethod
    def read(cls, path: Path) -> "Encoded":
        """Raises CorruptionError unless the file is there and whole."""
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptionError(f"{path}: missing") from error
        payload = memoryview(data)[32:]
        if hashlib.sha256(payload).digest() != data[:32]:
            raise CorruptionError(f"{path}: its sha256 does not match")
        header = 8 + int.from_bytes(payload[:8], "little")
        metadata = json.loads(bytes(payload[8:header]))["__metadata__"]
        arrays = safetensors.numpy.load(bytes(payload))
        if set(arrays) != set(_ARRAYS):
            raise CorruptionError(f"{path} is from another version of slm")
        return cls(**arrays, tally=Tally(**json.loads(metadata["tally"])))


_ARRAYS = (
    "tokens", "lengths", "sizes", "hashes", "draws", "signatures", "places", "drops",
)  # fmt: skip


Work: TypeAlias = Callable[[Unit], Path]  # what is done for a unit → the file that has its result


class Pool(Protocol):
    """What does the work of units: processes of this machine, or the workers of a cluster."""

    def spread(self, work: Work, units: Sequence[Unit], /) -> Generator[tuple[Unit, Path]]:
        """Do `work` for each unit; yield pairs of unit and file as they are done, in any order."""


def plan_units(
    source: Source,
    tokenizer: Path | None,
    settings: CleanConfig,
    folder: Path,
    *,
    splits_ends: bool = False,
    functions: Functions = (),
    columns: tuple[str, ...] = (),
) -> list[Unit]:
    """The units of a source in order; they depend on the source alone.

    Those of val come first, so that its documents are dropped from train.
    """
    units, start = list[Unit](), 0
    for split in ("val", "train"):
        for name in source.splits[split].files if split in source.splits else ():
            metadata = pq.read_metadata(source.path / name)
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            for row_groups in _ranges(sizes):
                unit = Unit(
                    source=source.path / name,
                    row_groups=row_groups,
                    split=split,
                    text_bytes=sum(sizes[i] for i in row_groups),
                    tokenizer=tokenizer,
                    settings=settings,
                    output=folder / f"{len(units):06d}_{split}.unit",
                    splits_ends=splits_ends,
                    functions=functions,
                    columns=columns,
                    first_row=sum(rows[: row_groups[0]]),
                    start=start,
                )
                units.append(unit)
                start += sum(rows[i] for i in row_groups)
    return units


def _ranges(sizes: list[int]) -> Iterator[tuple[int, ...]]:
    """Runs of neighbours of at least `UNIT_BYTES` together; the last may be smaller.

    With `UNIT_BYTES` 4, sizes of 3, 2, 5 and 1 give (0, 1), (2,) and (3,).
    """
    run: list[int] = []
    for i, _ in enumerate(sizes):
        run.append(i)
        if sum(sizes[j] for j in run) >= UNIT_BYTES:
            yield tuple(run)
            run = []
    if run:
        yield tuple(run)


def is_done(path: Path) -> bool:
    """Whether a unit's file is there and whole."""
    try:
        Encoded.read(path)
    except CorruptionError:
        return False
    return True


# ---- what the workers do ----------------------------------------------------------------------


class ByteTokenizer:
    """Bytes as tokens, end-of-text after them: what a vocabulary is trained on."""

    eot, n_vocab = 256, 257

    def encode_utf8(self, documents: Sequence[bytes]) -> npt.NDArray[np.uint16]:
        """The bytes of documents, concatenated, end-of-text before each; (T,)."""
        sizes = np.array([*map(len, documents)], np.int64)
        data = np.frombuffer(b"".join(documents), np.uint8).astype(np.uint16)
        return np.insert(data, np.cumsum(sizes) - sizes, np.uint16(self.eot))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without end-of-text."""
        return bytes(ids).decode("utf-8", errors="replace")


@lru_cache(1)
def _tokenizer(path: Path | None) -> Tokenizer | ByteTokenizer:
    return Tokenizer.load(path) if path else ByteTokenizer()


@lru_cache(1)
def _vocab_remap(base: Path, trimmed: Path) -> VocabRemap:
    return VocabRemap(Tokenizer.load(base), Tokenizer.load(trimmed))


def encode_unit(unit: Unit) -> Path:
    """Clean and encode the documents of a unit, and write them to its output.

    Where another worker that was thought dead has done so, nothing is left to do.
    """
    if is_done(unit.output):
        return unit.output
    tokenizer, drops = _tokenizer(unit.tokenizer), _Drops(unit)
    tally = Tally(on_drop=drops.add)
    dtype = token_dtype(tokenizer.n_vocab)
    parts = [np.empty(0, dtype)]
    sizes, hashes, draws = list[int](), list[bytes](), list[bytes]()
    signatures, places = list[Signatures](), list[int]()
    own = _Own(unit) if unit.functions else None
    for rows in _read_rows(unit, own is not None and own.takes_columns):
        cleaned = (
            (drops.place, raw, clean(raw, unit.settings, tally, own))
            for raw in _numbered(rows, drops, own)
        )
        kept = [
            (place, *part)
            for place, raw, text in cleaned
            if text is not None
            for part in _parts(unit, raw, text)
        ]
        if unit.settings.near_duplicates is not None:
            signatures += [sign(text) for _, _, text in kept]
        documents = [text.encode() for _, _, text in kept]
        sizes += map(len, documents)
        hashes += map(document_hash, documents)
        draws += [draw for _, draw, _ in kept]
        places += [place for place, _, _ in kept]
        parts.append(tokenizer.encode_utf8(documents).astype(dtype))
    tokens = np.concatenate(parts)
    width = PERMUTATIONS if signatures else 0
    Encoded(
        tokens=tokens,
        lengths=_lengths(tokens, tokenizer.eot),
        sizes=np.array(sizes, np.int64),
        hashes=np.frombuffer(b"".join(hashes), "<u8"),
        draws=np.frombuffer(b"".join(draws) or b"".join(hashes), "<u8"),
        signatures=np.array(signatures, np.uint32).reshape(len(sizes), width),
        places=np.array(places, np.uint32),
        drops=drops.encoded(),
        tally=tally,
    ).write(unit.output)
    storage.fault_point("encode.unit")
    return unit.output


class _Own:
    """The user's functions on the documents of a unit, which a message names by its row."""

    def __init__(self, unit: Unit) -> None:
        self._unit, self._apply = unit, Applied(unit.functions, unit.columns)
        self.row = unit.first_row - 1
        self.columns: str | None = None  # of that row, where they are read
        self.takes_columns = self._apply.takes_columns

    def __call__(self, text: str) -> str | None:
        where = lambda: f"document {self.row} of {self._unit.source.name}"
        return self._apply(text, where, self.columns)


class _Drops:
    """The documents of a unit that are dropped."""

    def __init__(self, unit: Unit) -> None:
        self._splits_ends = unit.splits_ends
        self._drops: list[Drop] = []
        self.place = unit.start - 1  # of the present document
        self.raw = ""  # the present document as it came

    def add(self, reason: str, text: str) -> None:
        """Note that the present document is dropped, with its text after repairs."""
        draw = TRAIN_DRAW if self._splits_ends else document_hash(self.raw.encode())
        self._drops.append(
            Drop(
                place=self.place,
                reason=reason,
                bytes=len(text.encode()),
                text=shorten(text),
                draw=int.from_bytes(draw, "little"),
            )
        )

    def encoded(self) -> npt.NDArray[np.uint8]:
        fields = [astuple(drop) for drop in self._drops]
        return np.frombuffer(json.dumps(fields).encode(), np.uint8)


def _numbered(rows: list[Row], drops: _Drops, own: _Own | None) -> Iterator[str]:
    """The texts of rows; `drops` and `own` are passed the row of each."""
    for text, columns in rows:
        drops.place, drops.raw = drops.place + 1, text
        if own:
            own.row, own.columns = own.row + 1, columns
        yield text


def _parts(unit: Unit, raw: str, text: str) -> list[tuple[bytes, str]]:
    """The documents that a cleaned one becomes, each with its draw, empty if that is its hash."""
    if unit.splits_ends:
        both = zip((TRAIN_DRAW, VAL_DRAW), split_end(text), strict=True)
        return [(draw, part) for draw, part in both if part]
    return [(document_hash(raw.encode()) if unit.settings.changes_text else b"", text)]


def remap_unit(unit: Unit, trimmed: Path) -> Path:
    """Rewrite the tokens of an encoded unit in the vocabulary of a trimmed tokenizer's file."""
    if is_done(unit.remapped):
        return unit.remapped
    encoded = Encoded.read(unit.output)
    assert unit.tokenizer is not None, "bytes are not trimmed"
    remap = _vocab_remap(unit.tokenizer, trimmed)
    tokens = remap(encoded.tokens).astype(token_dtype(remap.trimmed.n_vocab))
    lengths = _lengths(tokens, remap.trimmed.eot)
    replace(encoded, tokens=tokens, lengths=lengths).write(unit.remapped)
    storage.fault_point("encode.remap")
    return unit.remapped


def _lengths(tokens: npt.NDArray[Any], eot: int) -> Counts:
    """Tokens of each document, end-of-text included: [9 1 2 9 3] with `eot` 9 gives [3 2]."""
    return np.diff(np.append(np.flatnonzero(tokens == eot), len(tokens)))


def _by_bytes(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The same rows, cut after each one with whose text a batch reaches `BATCH_BYTES`."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[0])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_rows(unit: Unit, with_columns: bool) -> Iterator[list[Row]]:
    """The rows of a unit, about `BATCH_BYTES` of text at a time.

    A row group is read whole: a few megabytes of text, or one large document, however often it
    repeats a text, of which the file then holds one copy and its footer one size.
    """
    try:
        with pq.ParquetFile(unit.source) as file:
            for group in unit.row_groups:
                names = [TEXT, COLUMNS] if with_columns else [TEXT]
                read = file.read_row_group(group, names, use_threads=False)
                texts = read.column(TEXT).to_pylist()
                columns = read.column(COLUMNS).to_pylist() if with_columns else repeat(None)
                yield from _by_bytes(zip(texts, columns, strict=False))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{unit}: cannot be read: {error}") from error
