"""Memorisation: the longest passage of a text that stands word for word in the training tokens.

The training tokens stream by once, a window at a time, so memory does not grow with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from slm.evaluation.rolling_hash import Hashed, Hashes, token_values
from slm.tokens.tokenizer.bpe import Ids

HUMAN_QUANTILE = 0.95  # of held-out texts; the rest may be duplicates of training documents
SHORTEST = 8  # tokens: shorter passages are everybody's
WINDOW = 1 << 20  # tokens hashed at a time
_FILTER_BITS = 20


@dataclass(frozen=True)
class Copy:
    """Where a text's longest copied passage stands in it: its first token and its length.

    Length 0 where there is none of at least SHORTEST tokens.
    """

    start: int
    length: int


def copy_line(human: Sequence[int]) -> int:
    """The tokens of the longest copied passage that all but one held-out text in twenty keep to."""
    return int(np.quantile(human, HUMAN_QUANTILE)) if human else 0


def memorised_share(copies: Sequence[int], human: Sequence[int]) -> float:
    """The share of texts with a longer copied passage than nearly all human texts have.

    Args:
        copies, human: tokens of the longest copied passage of each text, and of each held-out
            document. Templates recur word for word without any model's doing.
    """
    line = copy_line(human)
    return sum(length > line for length in copies) / (len(copies) or 1)


def longest_copies(texts: Sequence[Ids], train: Iterable[Ids], vocab_size: int) -> list[Copy]:
    """For each text, its longest passage that the training tokens have as well.

    Args:
        texts: token ids, an array a text, without end-of-text.
        train: token ids, an array a shard; end-of-text between documents keeps passages apart.
        vocab_size: above every id.
    """
    values = token_values(vocab_size)
    probes = [Hashed(values[text]) for text in texts]
    longest = max((len(text) for text in texts), default=0)
    found = _Found(probes)
    for shard in train:
        for start in range(0, len(shard), WINDOW):
            found.look_at(Hashed(values[shard[start : start + WINDOW + longest]]))
    return [found.longest(probe) for probe in probes]


class _Found:
    """The passages of some texts that have been found so far, by their length."""

    def __init__(self, probes: Sequence[Hashed]) -> None:
        self.probes = probes
        self.wanted: dict[int, Hashes] = {}  # length → hashes of all texts' passages, sorted
        self.hashes: dict[int, Hashes] = {}  # length → those of them that were found
        self.likely = np.zeros(1 << _FILTER_BITS, dtype=bool)  # by their first bits
        self.likely[self._first_bits(self._wanted(SHORTEST))] = True

    @staticmethod
    def _first_bits(hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - _FILTER_BITS)

    def _wanted(self, length: int) -> Hashes:
        if length not in self.wanted:
            every = [probe.passages(length) for probe in self.probes]
            self.wanted[length] = np.unique(np.concatenate([*every, np.empty(0, np.uint64)]))
        return self.wanted[length]

    def look_at(self, train: Hashed) -> None:
        """Takes note of every wanted passage in a stretch of training tokens.

        What stands at a place at one length is all that may stand there at the next, so few
        places are left after the first look.
        """
        length = SHORTEST
        hashes = train.passages(length)
        places = np.flatnonzero(self.likely[self._first_bits(hashes)])
        while len(places):
            hashes = train.between(places, places + length)
            there = np.isin(hashes, self._wanted(length))
            places, hashes = places[there], hashes[there]
            known = self.hashes.get(length, np.empty(0, np.uint64))
            self.hashes[length] = np.union1d(known, hashes)
            length += 1
            places = places[places + length <= len(train)]

    def longest(self, probe: Hashed) -> Copy:
        for length in sorted(self.hashes, reverse=True):
            where = np.flatnonzero(np.isin(probe.passages(length), self.hashes[length]))
            if len(where):
                return Copy(int(where[0]), length)
        return Copy(0, 0)
