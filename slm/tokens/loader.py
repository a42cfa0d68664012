"""Shards → batches: a pure function of (seed, step), so the step number is the whole cursor.

Row r of step s is the window at place `s · rows + r` of an endless sequence of epochs; each epoch
visits every window once, in the order of a permutation keyed by (seed, epoch), and starts its
windows at its own offset, so that a token is not always seen behind the same context. Nothing is
stored or skipped to resume, and the order is the same for any number of processes.
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
    """Where each position of an epoch lies in a keyed permutation of `range(size)`.

    A balanced Feistel network over the next power of four, walked along its cycle back into the
    range (Black and Rogaway 2002): any position costs O(1), with no table.
    """
    half = ((size - 1).bit_length() + 1) // 2
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
        seq_len: T, tokens a row.
        rows: rows a step, over all processes.
        seed: of the order.
        rank, world_size: this process takes its own slice of each step's rows.
        device: where batches go. The tokens themselves live there if it is a GPU with room.
    """

    def __init__(
        self,
        tokens: Sequence[npt.NDArray[np.integer]],
        *,
        seq_len: int,
        rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.tokens = tokens
        self.starts = np.cumsum([0, *(len(shard) for shard in tokens)])
        self.seq_len, self.rows, self.seed = seq_len, rows, seed
        assert rows % world_size == 0, f"{rows} rows do not divide among {world_size} processes"
        self.slice = slice(rank * rows // world_size, (rank + 1) * rows // world_size)
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
        """Makes its GPU the current one of this thread; a new thread begins with the first one."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def window_starts(self, step: int) -> npt.NDArray[np.int64]:
        """The first token of each of this process's rows, (rows / world_size,)."""
        places = np.arange(self.rows, dtype=np.uint64)[self.slice] + np.uint64(step * self.rows)
        epochs = places // np.uint64(self.windows)
        starts = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):  # one, or two where an epoch ends inside the step
            here = epochs == epoch
            inside = places[here] % np.uint64(self.windows)
            offset = derive_seed(self.seed, "offset", int(epoch)) % self.seq_len
            order = permute(inside, self.windows, self.seed, int(epoch))
            starts[here] = order.astype(np.int64) * self.seq_len + offset
        return starts

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, (rows / world_size, T) each, int64."""
        starts = self.window_starts(step)
        if self.resident is not None:
            index = torch.from_numpy(starts).to(self.device)[:, None]
            rows = self.resident[index + torch.arange(self.seq_len + 1, device=self.device)].long()
        else:
            rows = torch.from_numpy(np.stack([self._window(start) for start in starts]))
            if self.device.type == "cuda":
                rows = rows.pin_memory().to(self.device, non_blocking=True)
        return rows[:, :-1], rows[:, 1:]

    def _window(self, start: int) -> npt.NDArray[np.int64]:
        """T + 1 tokens, from as many shards as they lie in."""
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
        """The batches from a step on, each made by a thread while the one before is trained on."""
        with ThreadPoolExecutor(1, initializer=self.use_device) as thread:
            ahead = thread.submit(self.batch, step)
            for following in count(step + 1):
                current = ahead.result()
                ahead = thread.submit(self.batch, following)
                yield current
