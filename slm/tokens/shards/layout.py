"""The layout of a shard file, as in llm.c.

A header of 256 int32 (magic, version, token count), then the tokens: uint16, or uint32 above
65,535 ids. Each document is end-of-text and then its tokens; a shard holds whole documents.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.records import ShardCount, ShardSplit

HEADER = 256  # int32
FORMATS: dict[np.dtype[np.unsignedinteger[Any]], tuple[int, int]] = {  # magic, version
    np.dtype("<u2"): (20240520, 1),
    np.dtype("<u4"): (20240801, 7),
}

Tokens = npt.NDArray[np.unsignedinteger[Any]]  # (T,)
Counts = npt.NDArray[np.int64]  # of documents, (N,)


def total(parts: Iterable[ShardCount | ShardSplit]) -> dict[str, int]:
    """The `documents`, `tokens` and `bytes` of some files or splits together."""
    parts = list(parts)
    names = ("documents", "tokens", "bytes")
    return {name: sum(getattr(part, name) for part in parts) for name in names}


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type of shards that holds all ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
