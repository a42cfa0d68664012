"""Shards, read: their record, the tokens of a file, the documents of a split."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from slm import storage
from slm.errors import CorruptionError, UserError
from slm.records import Shards
from slm.tokens.shards.layout import FORMATS, HEADER, Tokens
from slm.tokens.tokenizer.bpe import Ids


def read_shards(path: Path, *, verify: bool = True) -> Shards:
    """The record of a shards folder; `verify` hashes every file.

    Raises UserError where there are none, CorruptionError where bytes are not those recorded.
    """
    shards = storage.read_record(path, Shards, verify=verify)
    if shards is None:
        raise UserError(f"{path} contains no shards: `slm encode RECIPE` makes them")
    return shards


def read_tokens(path: Path) -> Tokens:
    """The tokens of one shard, mapped into memory; (T,) uint16 or uint32.

    Raises CorruptionError where the header and the size of the file do not agree.
    """
    try:
        header = np.fromfile(path, "<i4", HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise CorruptionError(f"{path}: cannot be read ({error.strerror})") from error
    for dtype, (magic, version) in FORMATS.items():
        if header[:2].tolist() == [magic, version]:
            count = int(header[2])
            if size != 4 * HEADER + count * dtype.itemsize:
                raise CorruptionError(f"{path}: {size} bytes do not hold {count} tokens")
            tokens = np.memmap(path, dtype, mode="r", offset=4 * HEADER, shape=(count,))
            return np.asarray(tokens)
    raise CorruptionError(f"{path} is not a token shard: it begins with {header[:2].tolist()}")


def documents(shards: Shards, split: str) -> Iterator[Tokens]:
    """The token ids of each document in order, without end-of-text; (T,) each."""
    for name in shards.splits[split].files:
        yield from split_documents(read_tokens(shards.path / name), shards.eot)


def first_documents(
    texts: Iterable[Ids], limit: int, size: Callable[[Ids], int] = len
) -> list[Ids]:
    """The first documents, at least one, whose sizes add up to at most `limit`."""
    chosen: list[Ids] = []
    total = 0
    for ids in texts:
        total += size(ids)
        if chosen and total > limit:
            break
        chosen.append(ids)
    return chosen


def split_documents(tokens: Tokens, eot: int) -> Iterator[Tokens]:
    """The documents of one shard: [9 1 2 9 3] with `eot` 9 gives [1 2] and [3]."""
    start = None
    for first, chunk in token_chunks(tokens):
        for stop in (np.flatnonzero(chunk == eot) + first).tolist():
            if start is not None:
                yield tokens[start:stop]
            start = stop + 1
    if start is not None:
        yield tokens[start:]


def token_chunks(tokens: Tokens) -> Iterator[tuple[int, Tokens]]:
    """Pieces small enough to compute with, each with the position of its first token."""
    size = 1 << 20
    for first in range(0, len(tokens), size):
        yield first, tokens[first : first + size]
