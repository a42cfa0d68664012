"""What a dataset is, from a look at it: documents, bytes, lengths, tokens.

A dataset on this disk of up to 64 MiB is read as a whole, by the reader that the pipeline uses.
Of any other, a few files at equal distances are looked at: of parquet the footers, which count the
rows, and some row groups; of other formats the first megabytes. Such figures are estimates.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm.config import DataConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.project.columns import DELIMITERS, Columns, of_arrow, of_csv, of_json, of_parquet
from slm.project.inputs import Input, Part, is_packed, part_of, spread
from slm.source.documents import format_of, read_documents
from slm.source.formats.csv_rows import csv_rows
from slm.source.formats.json_rows import json_rows
from slm.source.formats.paths import column_of
from slm.source.formats.template import Row, Template
from slm.source.formats.text import first_line, text_documents
from slm.tokens.tokenizer.bpe import gpt2

MAX_READ = 64 << 20  # bytes of a dataset on this disk that is read as a whole
FILES = 4  # of a larger one that are looked at
ROW_GROUPS = 3  # of a parquet file
_BATCH_ROWS = 64
_GROUP_BYTES = 4 << 20  # of text that is read of a row group
_TEXTS, _TEXT_CHARS = 300, 4000  # from which the tokens per byte are counted

Lengths = npt.NDArray[np.int64]


@dataclass
class Seen:
    """The documents that were looked at, and how many the dataset has."""

    lengths: list[Lengths] = field(default_factory=list)  # bytes of each
    texts: list[str] = field(default_factory=list)  # the beginnings of some
    documents: float = 0.0
    exact: bool = True

    def add(self, documents: pa.Array) -> int:
        """Note documents; how many they are."""
        documents = documents.drop_null()
        lengths = pc.binary_length(documents).to_numpy(zero_copy_only=False)
        self.lengths.append(lengths.astype(np.int64))
        for index in spread(range(len(documents)), 20):
            if len(self.texts) < _TEXTS:
                value = documents[index].as_py()
                text = value if isinstance(value, str) else value.decode(errors="replace")
                self.texts.append(text[:_TEXT_CHARS])
        return len(documents)


@dataclass(frozen=True)
class Figures:
    """A split's documents and bytes; estimates unless `exact`."""

    documents: int
    bytes: int
    exact: bool


@dataclass(frozen=True)
class Survey:
    """A dataset as `slm init` describes it."""

    format: str
    splits: Mapping[str, Figures]
    median: int  # bytes of a document of train
    p95: int  # which 95 of 100 documents do not exceed
    mean: float
    bytes_per_token: float  # of GPT-2's tokenizer, end-of-text counted

    @property
    def train(self) -> Figures:
        return self.splits["train"]


def columns(inputs: Sequence[Input], data: DataConfig) -> Columns | None:
    """The columns of a dataset, by its first file; None of plain text."""
    first = inputs[0]
    kind = format_of(first.path, data.format)
    if kind == "text":
        return None
    if kind == "parquet":
        return first.read(lambda stream: of_parquet(first.path, stream))
    with TemporaryDirectory() as folder:
        part = part_of(first, Path(folder), data)
        try:
            if kind == "arrow":
                return of_arrow(part.path)
            if kind == "jsonl":
                return of_json(part.path)
            return of_csv(part.path, DELIMITERS[str(kind)])
        except UnicodeDecodeError as error:
            raise UserError(f"{first.path} is not UTF-8 text ({error.reason})") from error


def survey(splits: Mapping[str, Sequence[Input]], data: DataConfig, root: Path) -> Survey:
    """Look at the documents of every split. Raises UserError where train has none.

    `root`: the data folder, for GPT-2's vocabulary.
    """
    seen = {split: look(inputs, data) for split, inputs in splits.items()}
    figures = {split: _figures(each) for split, each in seen.items()}
    lengths = np.concatenate(seen["train"].lengths or [np.zeros(0, np.int64)])
    if not len(lengths):
        raise UserError(f"{data.path}: no documents")
    median, p95 = np.quantile(lengths, (0.5, 0.95), method="higher")
    return Survey(
        str(format_of(splits["train"][0].path, data.format)),
        figures,
        int(median),
        int(p95),
        float(lengths.mean()),
        bytes_per_token(seen["train"].texts, root),
    )


def _figures(seen: Seen) -> Figures:
    lengths = np.concatenate(seen.lengths or [np.zeros(0, np.int64)])
    mean = float(lengths.mean()) if len(lengths) else 0.0
    size = int(lengths.sum()) if seen.exact else round(mean * seen.documents)
    return Figures(round(seen.documents), size, seen.exact)


def bytes_per_token(texts: Sequence[str], root: Path) -> float:
    """Of GPT-2's tokenizer, with an end-of-text for each of the texts."""
    tokenizer = gpt2(root)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    return max(1.0, sum(len(text.encode("utf-8", "replace")) for text in texts) / max(1, tokens))


def look(inputs: Sequence[Input], data: DataConfig) -> Seen:
    """The documents of a split, or as many as are looked at."""
    kind = format_of(inputs[0].path, data.format)
    total = sum(each.size for each in inputs)
    seen = Seen()
    if all(each.at is None for each in inputs) and total <= MAX_READ:
        dropped: Counter[str] = Counter()
        arrays = (read_documents(Path(each.path), data, dropped) for each in inputs)
        seen.documents = sum(map(seen.add, chain.from_iterable(arrays)))
        return seen
    if kind == "text" and data.separator is None and not any(is_packed(i.path) for i in inputs):
        _look_at_files(inputs, seen)
    elif kind == "parquet":
        _look_at_parquet(inputs, data, seen)
    else:
        _look_at_heads(inputs, data, seen)
    return seen


def _look_at_files(inputs: Sequence[Input], seen: Seen) -> None:
    """Text files that are a document each: their sizes are the lengths."""
    for each in spread(inputs, FILES):
        head = each.read(lambda stream: stream.read(_TEXT_CHARS))
        seen.texts.append(head.decode(errors="replace"))
    seen.lengths.append(np.array([each.size for each in inputs], np.int64))
    seen.documents = len(inputs)


def _look_at_parquet(inputs: Sequence[Input], data: DataConfig, seen: Seen) -> None:
    chosen = spread(inputs, FILES)
    template = Template(data)
    rows = 0
    for each in chosen:
        try:
            rows += each.read(lambda stream: _read_some(stream, template, seen))
        except pa.ArrowException as error:
            raise CorruptionError(f"{each.path}: {first_line(error)}") from error
    seen.documents = rows * sum(each.size for each in inputs) / sum(each.size for each in chosen)
    seen.exact = False


def _read_some(stream: BinaryIO, template: Template, seen: Seen) -> int:
    """Note some documents of a parquet file; returns how many rows it has."""
    file = pq.ParquetFile(stream)
    names = [column_of(column, file.schema_arrow.names) for column in template.columns]
    for group in spread(range(file.num_row_groups), ROW_GROUPS):
        size = 0
        for batch in file.iter_batches(_BATCH_ROWS, [group], list(dict.fromkeys(names))):
            documents = template.join_batch(batch)
            seen.add(documents)
            size += documents.nbytes
            if size > _GROUP_BYTES:
                break
    return int(file.metadata.num_rows)


def _look_at_heads(inputs: Sequence[Input], data: DataConfig, seen: Seen) -> None:
    documents = taken = 0
    with TemporaryDirectory() as folder:
        chosen = spread(inputs, FILES)
        for each in chosen:
            part = part_of(each, Path(folder), data)
            documents += sum(map(seen.add, _arrays(part, data)))
            taken += part.taken
            seen.exact &= part.whole
    seen.exact &= len(chosen) == len(inputs)
    seen.documents = documents * sum(each.size for each in inputs) / max(1, taken)


def _arrays(part: Part, data: DataConfig) -> Iterator[pa.Array]:
    """The documents of a part; of a beginning those that are complete."""
    if part.whole:
        yield from read_documents(part.path, data, Counter())
        return
    documents = []
    try:
        for document in _complete(part.path, data):
            documents.append(document)
    except SlmError:  # where the part is cut
        if not documents:
            raise
    yield pa.array(documents, pa.large_binary())


def _complete(path: Path, data: DataConfig) -> Iterator[bytes | None]:
    """The documents of the beginning of a file, one by one."""
    kind = format_of(path, data.format)
    if kind == "text":
        pieces = list(text_documents(path, data.separator))
        yield from pieces[:-1] or pieces  # the last one is cut
        return
    template = Template(data)
    rows: Iterable[tuple[str, Row]] = (
        json_rows(path) if kind == "jsonl" else csv_rows(path, template, DELIMITERS[str(kind)])
    )
    for _, row in rows:
        values = template.values(row)
        if all(isinstance(value, str | None) for value in values):
            yield template.join(values)
