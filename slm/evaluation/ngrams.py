"""A 5-gram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999).

What counting alone achieves on the same tokens: a neural model that is not far below it has not
learned more than phrases. Everything is a sort or a search over arrays, so some millions of tokens
take a second or two.

An n-gram of order n is known by one integer, (number of its first n - 1 tokens as an n-gram of
order n - 1) × V + its last token; its number is the place of that integer among all of its order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER = 5

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order. `codes` is sorted; the other arrays follow it or the contexts."""

    codes: Ints
    discounted: Floats  # of each n-gram, what is left of its count
    totals: Floats  # of each context, the sum of the counts that go on from it; 0: none
    spared: Floats  # of each context, the share that the discounts leave to the order below


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one order in a stream."""

    codes: Ints  # sorted, each once
    numbers: Ints  # of the one that ends at each place, (T,); -1: it would leave its document
    where: Ints  # the places that have one

    def counts(self, among: npt.NDArray[np.bool_] | None = None) -> Ints:
        """How often each occurs, or how often at the places `among`."""
        where = self.where if among is None else self.where[among[self.where]]
        return np.bincount(self.numbers[where], minlength=len(self.codes))


def _continuations(gram: _Grams, longer: _Grams) -> Ints:
    """How many different tokens each n-gram was seen behind."""
    ends_in = np.zeros(len(longer.codes), np.int64)
    ends_in[longer.numbers[longer.where]] = gram.numbers[longer.where]
    return np.bincount(ends_in, minlength=len(gram.codes))


class KneserNey:
    """The probability of every token from at most ORDER - 1 tokens before it in its document.

    As in Chen and Goodman, orders below the highest count in how many contexts an n-gram was seen
    instead of how often, but for those that open a document; and each order has discounts of its
    own for counts of one, two and three or more. The lowest order is interpolated with 1 / V.
    """

    def __init__(self, stream: Ints, vocab_size: int, eot: int, order: int = ORDER) -> None:
        """Counts a stream of documents, each opened by end-of-text; one more closes the last.

        Args:
            stream: (T,) ids, of which the first and the last are `eot`.
        """
        self.vocab_size, self.eot = vocab_size, eot
        depth = _depth(stream, eot)
        self.levels: list[_Level] = []
        gram = _Grams(np.arange(vocab_size), stream, np.arange(1, len(stream)))
        contexts = 1
        for n in range(1, order + 1):
            longer = self._longer(gram, stream, depth >= n) if n < order else None
            counts = gram.counts() if longer is None else _continuations(gram, longer)
            if longer is not None and n > 1:  # nothing can stand before what opens a document
                counts += gram.counts(depth == n - 1)
            self.levels.append(self._level(gram.codes, counts, contexts, lowest=n == 1))
            contexts = len(gram.codes)
            gram = longer or gram

    def _longer(self, gram: "_Grams", stream: Ints, fits: npt.NDArray[np.bool_]) -> "_Grams":
        """The n-grams of the next order, at the places where one fits into its document."""
        where = np.flatnonzero(fits)
        codes, inverse = np.unique(
            gram.numbers[where - 1] * self.vocab_size + stream[where], return_inverse=True
        )
        numbers = np.full(len(stream), -1)
        numbers[where] = inverse
        return _Grams(codes, numbers, where)

    def _level(self, codes: Ints, counts: Ints, contexts: int, lowest: bool) -> _Level:
        context = np.zeros_like(codes) if lowest else codes // self.vocab_size
        discounts = np.minimum(_discounts(counts)[np.minimum(counts, 3)], counts)
        totals = np.bincount(context, counts, contexts).astype(np.float64)
        spared = np.bincount(context, discounts, contexts) / np.maximum(totals, 1)
        return _Level(codes, np.subtract(counts, discounts, dtype=np.float64), totals, spared)

    def nats(self, stream: Ints) -> Floats:
        """The nats of every token of a stream but the first; (T - 1,). The stream is as above."""
        depth = _depth(stream, self.eot)
        numbers = stream.astype(np.int64)
        first = self.levels[0]
        chances = first.discounted[stream] / first.totals[0] + first.spared[0] / self.vocab_size
        for n, level in enumerate(self.levels[1:], start=2):
            where = np.flatnonzero(depth >= n - 1)
            contexts = numbers[where - 1]
            where, contexts = where[contexts >= 0], contexts[contexts >= 0]
            codes = contexts * self.vocab_size + stream[where]
            at = np.minimum(np.searchsorted(level.codes, codes), len(level.codes) - 1)
            there = level.codes[at] == codes if len(level.codes) else np.zeros(len(codes), bool)
            counted = np.where(there, level.discounted[at], 0.0)
            totals = level.totals[contexts]
            mixed = counted / np.maximum(totals, 1) + level.spared[contexts] * chances[where]
            chances[where] = np.where(totals > 0, mixed, chances[where])
            numbers = np.full(len(stream), -1)
            numbers[where] = np.where(there, at, -1)
        nats: Floats = -np.log(chances[1:])
        return nats


def unigram_nats(train: Ints, stream: Ints, vocab_size: int) -> Floats:
    """The same by the tokens' own frequencies, one added to each count (Laplace)."""
    counts = np.bincount(train[1:], minlength=vocab_size) + 1
    nats: Floats = -np.log(counts / counts.sum())[stream[1:]]
    return nats


def _depth(stream: Ints, eot: int) -> Ints:
    """How many tokens of its document stand before each, the end-of-text that opens it included."""
    places = np.arange(len(stream))
    opened = np.maximum.accumulate(np.where(stream == eot, places, 0))
    return np.concatenate(([0], places[1:] - opened[:-1]))


def _discounts(counts: Ints) -> Floats:
    """What is taken off counts of 0, 1, 2 and 3 or more: Chen and Goodman's equation 17.

    Where so little was seen that a discount is not defined, it is that of absolute discounting.
    """
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    if not n1 or not n2:
        return np.array([0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    three = 3 - 4 * y * n4 / n3 if n3 else 2 * y
    return np.array([0, 1 - 2 * y * n2 / n1, max(0.0, 2 - 3 * y * n3 / n2), max(0.0, three)])
