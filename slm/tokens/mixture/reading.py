"""What the shards of a mixture hold of each part, read."""

import numpy as np
import numpy.typing as npt

from slm.records import Shards

VAL_PARTS = "val_parts.npy"


def part_of_val(shards: Shards) -> npt.NDArray[np.uint8]:
    """Which part each held-out document is of, (N,): an index into `list(shards.parts)`."""
    return np.asarray(np.load(shards.path / VAL_PARTS), np.uint8)
