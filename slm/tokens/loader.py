"""Shards → batches: a pure function of (seed, step), so the step number is the whole cursor.

Row r of step s is the window at position `s · rows + r` of an endless sequence of epochs. Each
epoch visits every window once, in an order keyed by (seed, epoch), and starts its windows at its
own offset, so a token is not always preceded by the same context. Resuming stores and skips
nothing, and the order is the same for any number of processes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slm.errors import UserError

U64 = npt.NDArray[np.uint64]
ROUNDS = 6  # of the Feistel network; four give a pseudo-random permutation (Luby, Rackoff 1988)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names: independent streams from one seed of the config."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permute(positions: U64, size: int, seed: int, epoch: int) -> U64:
    """The window at each position of an epoch: a keyed permutation of `range(size)`; (N,).

    A balanced Feistel network permutes the next power of four. A value outside the range is
    permuted again until it is inside ("cycle walking", Black and Rogaway 2002): any position
    costs O(1), with no table. Of six windows, position 0 goes 12, 10, 8 and ends at 4, position 1
    goes straight to 2, and position 3 goes 11, 7, 9 and ends at 5:

    >>> permute(np.arange(6, dtype=np.uint64), 6, seed=1, epoch=0).tolist()
    [4, 2, 1, 5, 3, 0]
    """
    half = ((size - 1).bit_length() + 1) // 2  # bits of each half: 2 for six, so 16 values
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(derive_seed(seed, "permute", epoch, i)) for i in range(ROUNDS)]
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= size
    return values


def _mix(x: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: U64 = x ^ (x >> np.uint64(31))
        return mixed


class Loader:
    """Batches of windows over the tokens of one split.

    Args:
        tokens: the shards of the split in order, memory-mapped.
        seq_len: T, tokens per row.
        rows: rows per step, over all processes.
        seed: of the order.
        own: those of a step's rows that this process takes; None: all of them.
        device: where batches go; the tokens too, if it is a GPU with room.
    """

    def __init__(
        self,
        tokens: Sequence[npt.NDArray[np.integer]],
        *,
        seq_len: int,
        rows: int,
        seed: int,
        own: range | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.tokens = tokens
        self.starts = np.cumsum([0, *(len(shard) for shard in tokens)])
        self.seq_len, self.rows, self.seed = seq_len, rows, seed
        self.own = range(rows) if own is None else own
        self.device = device or torch.device("cpu")
        # One window less than would fit leaves room for every epoch's offset.
        self.windows = int((self.starts[-1] - 1) // seq_len) - 1
        if self.windows < 1:
            raise UserError(
                f"{self.starts[-1]} training tokens are too few for a context of {seq_len}: "
                "give more documents or a smaller model.seq_len"
            )
        self.resident = self._move_to_device()

    def _move_to_device(self) -> Tensor | None:
        """All tokens as one tensor on the GPU, if they take at most an eighth of its memory."""
        if self.device.type != "cuda":
            return None
        memory = torch.cuda.get_device_properties(self.device).total_memory
        if 4 * int(self.starts[-1]) > memory // 8:
            return None
        whole = np.concatenate([np.asarray(shard, dtype=np.int32) for shard in self.tokens])
        return torch.from_numpy(whole).to(self.device)

    def use_device(self) -> None:
        """Make its GPU the current one of this thread; a new thread begins with the first one."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def window_starts(self, step: int) -> npt.NDArray[np.int64]:
        """The first token of each of this process's rows; (R,).

        100 tokens have 11 windows of 8, so the four rows of step 2 are at positions 8, 9 and 10
        of epoch 0 and 0 of epoch 1. Those are windows 4, 5 and 8 at offset 4, and 9 at offset 2;
        the first begins at 4 · 8 + 4:

        >>> Loader([np.arange(100)], seq_len=8, rows=4, seed=1).window_starts(2).tolist()
        [36, 44, 68, 74]
        """
        first = np.uint64(step * self.rows)
        positions = np.arange(self.own.start, self.own.stop, dtype=np.uint64) + first  # (R,)
        epochs = positions // np.uint64(self.windows)  # (R,)
        starts = np.empty(len(positions), dtype=np.int64)  # (R,)
        for epoch in np.unique(epochs):  # one, or two where an epoch ends within the step
            here = epochs == epoch
            offset = derive_seed(self.seed, "offset", int(epoch)) % self.seq_len
            within = positions[here] % np.uint64(self.windows)
            windows = permute(within, self.windows, self.seed, int(epoch))
            starts[here] = windows.astype(np.int64) * self.seq_len + offset
        return starts

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, (R, T) each of this process's rows, int64."""
        starts = self.window_starts(step)
        if self.resident is not None:
            index = torch.from_numpy(starts).to(self.device)[:, None]  # (R, 1)
            index = index + torch.arange(self.seq_len + 1, device=self.device)  # (R, T + 1)
            rows = self.resident[index].long()
        else:
            windows = [self._window(start) for start in starts]
            empty = np.empty((0, self.seq_len + 1), dtype=np.int64)
            rows = torch.from_numpy(np.stack(windows) if windows else empty)
            if self.device.type == "cuda":
                rows = rows.pin_memory().to(self.device, non_blocking=True)
            else:
                rows = rows.to(self.device)
        return rows[:, :-1], rows[:, 1:]

    def _window(self, start: int) -> npt.NDArray[np.int64]:
        """T + 1 tokens from a position on, which may span several shards."""
        stop = start + self.seq_len + 1
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            begin = self.starts[shard]
            parts.append(self.tokens[shard][start - begin : stop - begin])
            start += len(parts[-1])
            shard += 1
        return np.concatenate(parts).astype(np.int64)

    def batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from a step on; a thread makes each while the one before is trained on."""
        with ThreadPoolExecutor(1, initializer=self.use_device) as thread:
            ahead = thread.submit(self.batch, step)
            for following in count(step + 1):
                current = ahead.result()
                ahead = thread.submit(self.batch, following)
                yield current
