"""Shards → batches: a pure function of (seed, step), so the step number is the whole cursor.

Row r of step s is the row at position `s · rows + r` of the training. Of one text it is the window
at that position of an endless sequence of epochs. Each epoch visits every window once, in an order
keyed by (seed, epoch), and starts its windows at its own offset, so a token is not always preceded
by the same context. Of a mixture `slm.tokens.mixture.order` has the source of each row and its
place there, and every source is such a sequence. Resuming stores and skips nothing, and the order
is the same for any number of processes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slm.errors import UserError
from slm.tokens.mixture.order import Order, windows_in
from slm.tokens.permutation import derive_seed, permute
from slm.tokens.shards.layout import Tokens

BLOCK_ROWS = 1024  # whose windows are computed together: one by one takes ten times as long
I64 = npt.NDArray[np.int64]


class Stream:
    """The windows of one text in an endless order.

    Args:
        tokens: its shards in order, memory-mapped.
        seq_len: T, tokens per row.
        seed: of the order.
        eot: end-of-text, at which rows begin where one is in their window; None: rows are windows.
    """

    def __init__(
        self, tokens: Sequence[Tokens], seq_len: int, seed: int, eot: int | None = None
    ) -> None:
        self.tokens, self.seq_len, self.seed, self.eot = tokens, seq_len, seed, eot
        self.starts = np.cumsum([0, *(len(shard) for shard in tokens)])
        self.windows = windows_in(len(self), seq_len)
        if self.windows < 1:
            raise UserError(
                f"{len(self)} training tokens are too few for a context of {seq_len}: "
                "give more documents or a smaller model.seq_len"
            )

    def __len__(self) -> int:
        """Tokens."""
        return int(self.starts[-1])

    def window_starts(self, places: I64) -> I64:
        """The first token of the windows at some places of the order; (R,) both.

        100 tokens have 11 windows of 8, so the places 8, 9 and 10 are the last ones of epoch 0 and
        11 is the first of epoch 1. Those are windows 4, 5 and 8 at offset 4, and 9 at offset 2; the
        first begins at 4 · 8 + 4:

        >>> Stream([np.arange(100)], seq_len=8, seed=1).window_starts(np.arange(8, 12)).tolist()
        [36, 44, 68, 74]
        """
        positions = places.astype(np.uint64)
        epochs = positions // np.uint64(self.windows)  # (R,)
        starts = np.empty(len(positions), dtype=np.int64)  # (R,)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            offset = derive_seed(self.seed, "offset", int(epoch)) % self.seq_len
            within = positions[here] % np.uint64(self.windows)
            windows = permute(within, self.windows, self.seed, int(epoch))
            starts[here] = windows.astype(np.int64) * self.seq_len + offset
        return starts

    def row_start(self, start: int) -> int:
        """The first token of the row of a window: its first end-of-text, where it has one.

        Where 0 is end-of-text, the row of the window from 36 to 43 begins at 40. One that would not
        fit before the last token stays where it is, as in the window from 88 on.

        >>> tokens = np.arange(1, 98)
        >>> tokens[::10] = 0
        >>> stream = Stream([tokens], seq_len=8, seed=1, eot=0)
        >>> stream.row_start(36), stream.row_start(88)
        (40, 88)
        """
        if self.eot is not None:
            begins = np.flatnonzero(self.read(start, start + self.seq_len) == self.eot)
            if len(begins) and start + int(begins[0]) + self.seq_len < len(self):
                return start + int(begins[0])
        return start

    def read(self, start: int, stop: int) -> I64:
        """The tokens of a range, which may span several shards."""
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            begin = self.starts[shard]
            parts.append(self.tokens[shard][start - begin : stop - begin])
            start += len(parts[-1])
            shard += 1
        return np.concatenate(parts).astype(np.int64)


class Loader:
    """Batches of windows over the tokens of one split.

    Args:
        streams: the shards of each source in order, memory-mapped; of one text its shards alone.
        seq_len: T, tokens per row.
        rows: rows per step, over all processes.
        seed: of the order.
        own: those of a step's rows that this process takes; None: all of them.
        device: where batches go; the tokens too, if it is a GPU with room.
        order: of the rows of several streams.
        eot: end-of-text, where rows begin at documents; None: they begin anywhere.
    """

    def __init__(
        self,
        *streams: Sequence[Tokens],
        seq_len: int,
        rows: int,
        seed: int,
        own: range | None = None,
        device: torch.device | None = None,
        order: Order | None = None,
        eot: int | None = None,
    ) -> None:
        assert order is not None or len(streams) == 1, "several streams need an order"
        seeds = (derive_seed(seed, "part", i) if i else seed for i in range(len(streams)))
        self.streams = [
            Stream(tokens, seq_len, own_seed, eot)
            for tokens, own_seed in zip(streams, seeds, strict=True)
        ]
        self.seq_len, self.rows, self.order = seq_len, rows, order
        self.own = range(rows) if own is None else own
        self.device = device or torch.device("cpu")
        self._block = lru_cache(maxsize=2)(self._make_block)
        self.resident = self._move_to_device()

    def _move_to_device(self) -> Tensor | None:
        """All tokens as one tensor on the GPU, if they take at most an eighth of its memory."""
        if self.device.type != "cuda":
            return None
        memory = torch.cuda.get_device_properties(self.device).total_memory
        if 4 * sum(map(len, self.streams)) > memory // 8:
            return None
        shards = (shard for stream in self.streams for shard in stream.tokens)
        whole = np.concatenate([np.asarray(shard, dtype=np.int32) for shard in shards])
        return torch.from_numpy(whole).to(self.device)

    def use_device(self) -> None:
        """Make its GPU the current one of this thread; a new thread begins with the first one."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def rows_at(self, step: int) -> tuple[I64, I64]:
        """The stream of each of this process's rows, and its first token there; (R,) each."""
        row, stop = (step * self.rows + end for end in (self.own.start, self.own.stop))
        pieces = [np.empty((2, 0), dtype=np.int64)]
        while row < stop:
            block, within = divmod(row, BLOCK_ROWS)
            pieces.append(self._block(block)[:, within : within + stop - row])
            row += pieces[-1].shape[1]
        parts, starts = np.concatenate(pieces, axis=1)
        for i, (part, start) in enumerate(zip(parts.tolist(), starts.tolist(), strict=True)):
            starts[i] = self.streams[part].row_start(start)
        return parts, starts

    def _make_block(self, block: int) -> I64:
        """Stream and window of each of some rows of the training; (2, BLOCK_ROWS)."""
        first = block * BLOCK_ROWS
        if self.order is None:
            places = np.arange(first, first + BLOCK_ROWS, dtype=np.int64)
            parts = np.zeros_like(places)
        else:
            parts, places = self.order.rows(first, first + BLOCK_ROWS)
        starts = np.empty_like(places)
        for part in np.unique(parts):
            here = parts == part
            starts[here] = self.streams[part].window_starts(places[here])
        return np.stack((parts, starts))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, (R, T) each of this process's rows, int64."""
        parts, starts = self.rows_at(step)
        if self.resident is not None:
            begins = np.cumsum([0, *map(len, self.streams)])  # of each stream in `resident`
            index = torch.from_numpy(begins[parts] + starts).to(self.device)[:, None]  # (R, 1)
            index = index + torch.arange(self.seq_len + 1, device=self.device)  # (R, T + 1)
            rows = self.resident[index].long()
        else:
            windows = [
                self.streams[part].read(start, start + self.seq_len + 1)
                for part, start in zip(parts.tolist(), starts.tolist(), strict=True)
            ]
            empty = np.empty((0, self.seq_len + 1), dtype=np.int64)
            rows = torch.from_numpy(np.stack(windows) if windows else empty)
            if self.device.type == "cuda":
                rows = rows.pin_memory().to(self.device, non_blocking=True)
            else:
                rows = rows.to(self.device)
        return rows[:, :-1], rows[:, 1:]

    def batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from a step on; a thread makes each while the one before is trained on."""
        with ThreadPoolExecutor(1, initializer=self.use_device) as thread:
            ahead = thread.submit(self.batch, step)
            for following in count(step + 1):
                current = ahead.result()
                ahead = thread.submit(self.batch, following)
                yield current
