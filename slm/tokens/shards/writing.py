"""Shards, written: documents appended to the files of a split."""

from pathlib import Path

import numpy as np

from slm.records import ShardCount, ShardSplit
from slm.tokens.shards.layout import FORMATS, HEADER, Counts, Tokens, token_dtype, total

LENGTH_BINS = 40


def length_bins(lengths: Counts) -> Counts:
    """The bin of each document: i for up to 2**i tokens without end-of-text; (N,)."""
    bins: Counts = np.searchsorted(2 ** np.arange(LENGTH_BINS), lengths - 1)
    return bins


class ShardWriter:
    """Writes the documents of one split into shards of at most `shard_tokens` tokens.

    Only a document that is longer alone makes a larger shard.
    """

    def __init__(self, folder: Path, split: str, vocab_size: int, shard_tokens: int) -> None:
        self._folder = folder
        self._split = split
        self._dtype = np.dtype(token_dtype(vocab_size)).newbyteorder("<")
        self._limit = shard_tokens
        self._counts: dict[str, list[int]] = {}  # file → documents, tokens, bytes
        self.histogram = np.zeros(LENGTH_BINS, np.int64)  # documents of up to 2**i tokens

    def add(self, tokens: Tokens, lengths: Counts, sizes: Counts) -> None:
        """Append documents.

        Args:
            tokens: of all of them, end-of-text before each; (T,).
            lengths: tokens of each, end-of-text included; (N,).
            sizes: UTF-8 bytes of each; (N,).

        With 5 as `shard_tokens`, lengths of 3, 2, 4 and 7 end at 3, 5, 9 and 16. The first shard
        takes the documents that end by 5, two of them; the second those that end by 5 + 5, one;
        the last is longer than a shard and gets its own.
        """
        self.histogram += np.bincount(length_bins(lengths), minlength=LENGTH_BINS)
        ends = np.cumsum(lengths)  # (N,)
        first = 0
        while first < len(lengths):
            done = int(ends[first - 1]) if first else 0
            room = self._limit - (self._last[1] if self._counts else self._limit)
            stop = int(np.searchsorted(ends, done + room, "right"))
            if stop <= first:  # not one more fits
                self._counts[f"{self._split}_{len(self._counts):05d}.bin"] = [0, 0, 0]
                stop = max(first + 1, int(np.searchsorted(ends, done + self._limit, "right")))
            self._append(tokens[done : int(ends[stop - 1])], sizes[first:stop])
            first = stop

    @property
    def _last(self) -> list[int]:
        return self._counts[next(reversed(self._counts))]

    def _append(self, tokens: Tokens, sizes: Counts) -> None:
        with (self._folder / next(reversed(self._counts))).open("ab") as file:
            if not file.tell():
                file.write(bytes(4 * HEADER))
            file.write(tokens.astype(self._dtype, copy=False).data)
        for i, count in enumerate((len(sizes), len(tokens), int(sizes.sum()))):
            self._last[i] += count

    def close(self) -> ShardSplit:
        """Write the headers and return the counts of the split."""
        magic, version = FORMATS[self._dtype]
        counts = {}
        for name, (documents, tokens, size) in self._counts.items():
            header = np.zeros(HEADER, "<i4")
            header[:3] = magic, version, tokens
            with (self._folder / name).open("r+b") as file:
                file.write(header.data)
            counts[name] = ShardCount(documents=documents, tokens=tokens, bytes=size)
        return ShardSplit(files=list(counts), counts=counts, **total(counts.values()))
