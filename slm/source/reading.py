"""The documents of a source that is here, and which library wrote its files."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from slm.errors import CorruptionError
from slm.records import Source
from slm.source.formats.kept import COLUMNS, NAMES, TEXT

BATCH_ROWS = 10_000


def source_texts(source: Source, splits: Iterable[str] | None = None) -> Iterator[str]:
    """Every document in order; of all splits by default. Raises CorruptionError."""
    for split in source.splits if splits is None else splits:
        yield from _values(source, split, TEXT)


def _values(source: Source, split: str, column: str) -> Iterator[str]:
    """Every value of a column of the files of a split."""
    for name in source.splits[split].files:
        try:
            with pq.ParquetFile(source.path / name) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                    yield from batch.column(0).to_pylist()
        except (ArrowException, OSError) as error:
            raise CorruptionError(f"{source.path / name} cannot be read: {error}") from error


def kept_columns(source: Source) -> list[str]:
    """The columns that a source keeps next to its documents. Raises CorruptionError."""
    path = source.path / next(name for split in source.splits.values() for name in split.files)
    try:
        schema = pq.read_schema(path)
    except (ArrowException, OSError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    if COLUMNS not in schema.names:
        return []
    names: list[str] = json.loads((schema.field(COLUMNS).metadata or {}).get(NAMES, "[]"))
    return names


def columns_of(path: Path, row: int) -> dict[str, Any] | None:
    """What a file of a source keeps next to the document of a row; None where it keeps nothing.

    Raises CorruptionError.
    """
    try:
        with pq.ParquetFile(path) as file:
            if COLUMNS not in file.schema_arrow.names:
                return None
            group = 0
            while row >= (rows := file.metadata.row_group(group).num_rows):
                group, row = group + 1, row - rows
            kept = file.read_row_group(group, [COLUMNS], use_threads=False).column(0)[row].as_py()
    except (ArrowException, OSError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    columns: dict[str, Any] = json.loads(kept)
    return columns


def documents_sha256(source: Source, split: str) -> str:
    """One hash over the documents of a split, what is kept next to them, and their order.

    Whatever wrote the files.
    """
    digest = hashlib.sha256()
    for column in (TEXT, COLUMNS) if kept_columns(source) else (TEXT,):
        for value in _values(source, split, column):
            data = value.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def written_by(source: Source) -> str:
    """The library that wrote the files of a source, such as `parquet-cpp-arrow version 25.0.1`.

    Another one writes other bytes of the same documents. Raises CorruptionError.
    """
    names = [name for split in source.splits.values() for name in split.files]
    try:
        writers = {pq.read_metadata(source.path / name).created_by for name in names}
    except (ArrowException, OSError) as error:
        raise CorruptionError(f"{source.path} cannot be read: {error}") from error
    return ", ".join(sorted(writers))
