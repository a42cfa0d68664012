"""Shards, read: their record, the tokens of a file, the documents of a split.

Of a mixture, documents that are left out of train are in its files, and are not read here.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm import storage
from slm.errors import CorruptionError, UserError
from slm.records import Shards
from slm.tokens.shards.layout import FORMATS, HEADER, Tokens
from slm.tokens.tokenizer.bpe import Ids

EXCLUDED = "excluded.npy"  # of a mixture: ranges of train tokens that are left out
BLOCK_TOKENS = 1 << 20  # read together

# Rows of file (its number in train), first token, the token after the last, reason; (R, 4).
Excluded = npt.NDArray[np.int64]


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
    for tokens in split_tokens(shards, split):
        yield from split_documents(tokens, shards.eot)


def split_tokens(shards: Shards, split: str) -> Iterator[Tokens]:
    """The tokens of a split in order, mapped into memory: of each file, or what is left of it."""
    yield from kept_tokens(shards, shards.splits[split].files)


def excluded(shards: Shards) -> Excluded:
    """The ranges of train tokens of a mixture that are left out; none of other shards."""
    if not shards.parts:
        return np.empty((0, 4), np.int64)
    try:
        rows: Excluded = np.load(shards.path / EXCLUDED)
    except (OSError, ValueError) as error:
        raise CorruptionError(f"{shards.path / EXCLUDED}: cannot be read ({error})") from error
    return rows


def kept_tokens(shards: Shards, names: Iterable[str]) -> Iterator[Tokens]:
    """The tokens of some files that are not left out, as slices of their memory maps.

    Of a file of 9 tokens with 2 to 4 left out: the first two, and the last five.
    """
    rows, numbers = excluded(shards), {n: i for i, n in enumerate(shards.splits["train"].files)}
    for name in names:
        tokens, start = read_tokens(shards.path / name), 0
        own = rows[rows[:, 0] == numbers.get(name, -1)]
        for _, begin, end, _ in own.tolist():
            if begin > start:
                yield tokens[start:begin]
            start = end
        if start < len(tokens):
            yield tokens[start:]


def document_blocks(path: Path, eot: int) -> Iterator[tuple[int, Tokens]]:
    """Whole documents of a file, read and not mapped: what is in memory is one block.

    Yields the position of the first token, and the tokens; (T,), at least `BLOCK_TOKENS` before the
    end.
    """
    dtype: np.dtype[Any] = read_tokens(path).dtype
    first, rest = 0, np.empty(0, dtype)
    with path.open("rb") as file:
        file.seek(4 * HEADER)
        while len(read := np.fromfile(file, dtype, BLOCK_TOKENS)):
            tokens = np.concatenate([rest, read])
            borders = np.flatnonzero(tokens == eot)
            end = int(borders[-1]) if len(borders) else 0
            if end:
                yield first, tokens[:end]
            first, rest = first + end, tokens[end:]
    if len(rest):
        yield first, rest


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
