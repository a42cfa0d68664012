"""The columns of a dataset, and which of them is the text."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from slm.config import DataConfig
from slm.errors import MAX_EXCERPT, CorruptionError
from slm.source.formats.csv_rows import csv_rows
from slm.source.formats.json_rows import json_rows
from slm.source.formats.paths import json_paths, text_paths
from slm.source.formats.template import Row, Template
from slm.source.formats.text import first_line, lines_of

ROWS = 200  # that are looked at
_BATCH_ROWS = 16
DELIMITERS = {"csv": ",", "tsv": "\t"}
_DELIMITERS = (",", "\t", ";", "|")
CLEAR_SHARE = 0.9  # of the text, from which a column is the text without doubt
NAMED_SHARE = 0.5  # the same of a column called text


@dataclass(frozen=True)
class Columns:
    """All columns of a dataset, and the share of the text in each that holds any."""

    names: list[str]
    shares: dict[str, float]  # column, or path into one → share; the largest first

    def choice(self) -> tuple[str | None, str, bool]:
        """The column that is taken as the text, why, and whether that is doubtful.

        None where no column holds text.
        """
        if not self.shares:
            return None, "no column holds text", True
        first = next(iter(self.shares))
        if len(self.shares) == 1:
            return first, "the only column that holds text", False
        if self.shares.get("text", 0.0) >= NAMED_SHARE:
            return "text", f"its name, and {self.describe('text')}", False
        return first, self.describe(first), self.shares[first] < CLEAR_SHARE

    def describe(self, name: str) -> str:
        return f"{self.shares[name]:.0%} of the text of {len(self.shares)} columns"


def columns_of_rows(names: Iterable[str], paths: Iterable[str], rows: Iterable[Row]) -> Columns:
    """The columns, and the share of each of `paths` in the characters of the rows."""
    templates = {path: Template(DataConfig(text_column=path)) for path in paths}
    sizes: Counter[str] = Counter()
    for row in rows:
        for path, template in templates.items():
            [value] = template.values(row)
            if isinstance(value, str | bytes):
                sizes[path] += len(value)
    total = sum(sizes.values())
    shares = {path: size / total for path, size in sizes.most_common() if size}
    return Columns(list(names), shares)


def of_parquet(where: object, stream: BinaryIO) -> Columns:
    """Those of a parquet file, of which the footer and some rows are read."""
    try:
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        paths = _text_paths(schema)
        tops = [field.name for field in schema if text_paths(field.name, field.type)]
        batches = file.iter_batches(_BATCH_ROWS, columns=tops)
        rows = (row for batch in batches for row in _rows(batch))
        return columns_of_rows(schema.names, paths, islice(rows, ROWS))
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(f"{where} cannot be read as parquet: {first_line(error)}") from error


def of_arrow(path: Path) -> Columns:
    """Those of an Arrow file or stream."""
    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            numbers = range(reader.num_record_batches) if is_file else ()
            batches = map(reader.get_batch, numbers) if is_file else iter(reader)
            rows = (row for batch in batches for row in _rows(batch))
            schema = reader.schema
            return columns_of_rows(schema.names, _text_paths(schema), islice(rows, ROWS))
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(f"{path} cannot be read as Arrow: {first_line(error)}") from error


def of_json(path: Path) -> Columns:
    """Those of JSON lines or of an array of objects."""
    rows = [row for _, row in islice(json_rows(path), ROWS)]
    names = dict.fromkeys(name for row in rows for name in row)
    paths = dict.fromkeys(each for row in rows for each in json_paths(row))
    return columns_of_rows(names, paths, rows)


def of_csv(path: Path, delimiter: str) -> Columns:
    """Those of a file with a header. Raises UserError where it seems to be none."""
    lines = (f"{line}\n" for line in lines_of(path))
    names = next(csv.reader(lines, delimiter=delimiter), [])
    other = len(names) == 1 and any(mark in names[0] for mark in _DELIMITERS if mark != delimiter)
    if other or not names or any(len(name) > MAX_EXCERPT for name in names):
        template = Template(DataConfig())  # the reader of documents has the message
    else:
        template = Template(DataConfig(text_column=names[0]))
    rows = [row for _, row in islice(csv_rows(path, template, delimiter), ROWS)]
    return columns_of_rows(names, dict.fromkeys(names), rows)


def _text_paths(schema: pa.Schema) -> list[str]:
    return [path for field in schema for path in text_paths(field.name, field.type)]


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    for start in range(0, len(batch), _BATCH_ROWS):
        with suppress(UnicodeDecodeError):  # such rows are counted when the documents are read
            yield from batch.slice(start, _BATCH_ROWS).to_pylist()
