"""The documents of a source that is here, and which library wrote its files."""

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from slm.errors import CorruptionError
from slm.records import Source

BATCH_ROWS = 10_000


def source_texts(source: Source, splits: Iterable[str] | None = None) -> Iterator[str]:
    """Every document in order; of all splits by default. Raises CorruptionError."""
    for split in source.splits if splits is None else splits:
        for name in source.splits[split].files:
            try:
                with pq.ParquetFile(source.path / name) as file:
                    for batch in file.iter_batches(BATCH_ROWS, columns=["text"]):
                        yield from batch.column(0).to_pylist()
            except (ArrowException, OSError) as error:
                raise CorruptionError(f"{source.path / name} cannot be read: {error}") from error


def documents_sha256(source: Source, split: str) -> str:
    """One hash over the documents of a split and their order, whatever wrote the files."""
    digest = hashlib.sha256()
    for text in source_texts(source, [split]):
        data = text.encode()
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
