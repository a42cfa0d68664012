"""Parquet and Arrow files → arrays of documents, a few megabytes at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm.errors import CorruptionError
from slm.source.formats import text
from slm.source.formats.kept import COLUMNS, TEXT, Kept
from slm.source.formats.paths import column_of, is_text, split_path, text_paths, type_of
from slm.source.formats.template import Template, not_text
from slm.source.formats.text import first_line

_BATCH_ROWS = 16  # read together: few, since each may repeat a large entry of a dictionary
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(path: Path, template: Template, kept: Kept) -> Iterator[pa.Array]:
    """The documents of a parquet file, as bytes, or structs of them and what is kept.

    Raises CorruptionError where it is damaged.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(f"{path} cannot be read as parquet: {first_line(error)}") from error
    with file:
        columns = _columns(path, file.schema_arrow, template, kept)
        for group in range(file.num_row_groups):
            rows = 0
            try:
                batches = file.iter_batches(_batch_rows(file, group, columns), [group], columns)
                for batch in _gathered(batches):
                    rows += len(batch)
                    yield from _documents(path, batch, template, kept)
            except (pa.ArrowException, OSError) as error:
                raise CorruptionError(
                    f"{path}, row group {group} of {file.num_row_groups}: {first_line(error)}; "
                    "the file is damaged: get it again"
                ) from error
            if rows != file.metadata.row_group(group).num_rows:
                raise CorruptionError(
                    f"{path}, row group {group}: {rows} rows, not as many as its footer records"
                )


def _batch_rows(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """How many rows of a row group to read together."""
    metadata = file.metadata.row_group(group)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    sizes = [
        chunk.total_uncompressed_size
        for chunk in chunks
        if any((chunk.path_in_schema + ".").startswith(f"{name}.") for name in columns)
    ]
    return min(_BATCH_ROWS, text.CHUNK_BYTES * metadata.num_rows // max(1, sum(sizes))) or 1


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches, put together as long as they hold less than some megabytes."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if pending and size + batch.nbytes > text.CHUNK_BYTES:
            yield pa.concat_batches(pending)
            pending, size = [], 0
        pending.append(batch)
        size += batch.nbytes
    if pending:
        yield pa.concat_batches(pending)


def read_arrow(path: Path, template: Template, kept: Kept) -> Iterator[pa.Array]:
    """The same of an Arrow file, or of an Arrow stream. Raises CorruptionError as above."""
    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if not is_file:
                _check_end(path, source)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            _columns(path, reader.schema, template, kept)
            count = reader.num_record_batches if is_file else None
            batches = map(reader.get_batch, range(count)) if count is not None else iter(reader)
            for batch in batches:
                batch.validate()
                yield from _documents(path, batch, template, kept)
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(
            f"{path} is damaged or cut short: {first_line(error)}; get it again"
        ) from error


def _check_end(path: Path, source: pa.MemoryMappedFile) -> None:
    """Raise CorruptionError for a stream without its end mark, which may lack batches."""
    source.seek(max(0, source.size() - len(_END_OF_STREAM)))
    if source.read() != _END_OF_STREAM:
        raise CorruptionError(f"{path} is damaged or cut short: no end mark; get it again")
    source.seek(0)


def _columns(path: Path, schema: pa.Schema, template: Template, kept: Kept) -> list[str]:
    """The columns that are read. Raises UserError unless they are there, those of text are text."""
    texts = [path for field in schema for path in text_paths(field.name, field.type)]
    template.check(path, schema.names, texts)
    names = []
    for column in template.columns:
        name = column_of(column, schema.names)
        kind = schema.field(name).type
        if name != column:
            _, steps = split_path(column)
            kind = type_of(kind, steps)
        if not is_text(kind):
            raise not_text(path, column, schema.field(name).type, texts, template)
        names.append(name)
    kept.check(path, schema.names)
    return list(dict.fromkeys([*names, *kept.names]))


def _documents(
    path: Path, batch: pa.RecordBatch, template: Template, kept: Kept
) -> Iterator[pa.Array]:
    """The documents of a batch, some megabytes at a time, one document at least."""
    names = {column_of(column, batch.schema.names) for column in template.columns}
    sizes = sum(_row_bytes(batch.column(name)) for name in (*names, *kept.names))
    ends = np.cumsum(sizes)  # (N,)
    start = 0
    while start < len(batch):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + text.CHUNK_BYTES, "right")))
        part = batch.slice(start, stop - start)
        texts = template.join_batch(part)
        if kept:
            columns = pa.array(kept.of_batch(path, part), pa.string())
            texts = pa.StructArray.from_arrays([texts, columns], [TEXT, COLUMNS])
        yield texts
        start = stop


def _row_bytes(values: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each value, about: those of nested values are taken to be equal."""
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(_as_binary(values.dictionary)).take(values.indices)
    elif is_text(values.type):
        lengths = pc.binary_length(_as_binary(values))
    else:
        return np.full(len(values), -(-values.nbytes // max(1, len(values))), np.int64)
    counts = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    return np.asarray(counts, np.int64)


def _as_binary(values: pa.Array) -> pa.Array:
    return values.cast(pa.large_binary())
