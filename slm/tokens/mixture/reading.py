"""Shards source by source. Shards of one source are read as a mixture of that alone."""

import numpy as np
import numpy.typing as npt

from slm.errors import CorruptionError
from slm.records import Shards
from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import kept_tokens

VAL_PARTS = "val_parts.npy"  # of a mixture: the source of each held-out document


def part_of_val(shards: Shards) -> npt.NDArray[np.uint8]:
    """Of each held-out document, in order, the index of its source in `list(shards.parts)`; (N,).

    Zeros for shards of one source.
    """
    count = shards.splits["val"].documents
    if not shards.parts:
        return np.zeros(count, np.uint8)
    path = shards.path / VAL_PARTS
    try:
        parts: npt.NDArray[np.uint8] = np.load(path)
    except (OSError, ValueError) as error:
        raise CorruptionError(f"{path}: cannot be read ({error})") from error
    if parts.shape != (count,) or (count and int(parts.max()) >= len(shards.parts)):
        raise CorruptionError(f"{path} is not of the {count} held-out documents of {shards.name}")
    return parts


def train_streams(shards: Shards) -> list[list[Tokens]]:
    """The train tokens of each source in order, those that are left out cut from between them.

    They are slices of memory maps: (T,) each, the sources in the order of `shards.parts`. Shards of
    one source are one stream of all files.
    """
    parts = [part.train.files for part in shards.parts.values()]
    return [list(kept_tokens(shards, files)) for files in parts or [shards.splits["train"].files]]
