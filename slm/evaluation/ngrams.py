"""A 5-gram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999).

What counting alone achieves on the same tokens: a neural model that is not far below it has not
learned more than phrases. Everything is a sort or a search over arrays, so some millions of tokens
take a second or two.

An n-gram has a code, one integer that says what it is: (id of its first n - 1 tokens) × V + its
last token. Its id is the place of its code among the sorted codes of its order; the id of a single
token is the token. Worked example, V = 4, end-of-text 3, the documents "0 1" and "0 2":

    stream              3   0   1   3   0   2   3
    depth               0   1   2   3   1   2   3   tokens of its document before each, and the 3
    codes of order 2       12   1   7  12   2  11   3·4+0, 0·4+1, 1·4+3, 3·4+0, 0·4+2, 2·4+3
    sorted, each once   1 2 7 11 12                 so "3 0" has the id 4, and "0 1" the id 0
    codes of order 3           17   3      18   7   4·4+1, 0·4+3, 4·4+2, 1·4+3
    counts of order 2   1 1 1 1 2                   of the codes 1 2 7 11 12
    counts of order 1   1 1 1 2                     tokens before 0 (3), 1 (0), 2 (0), 3 (1 and 2)

Discounts of order 1: Y = 3 / (3 + 2·1) = 0.6, so 1 - 2·0.6·1/3 = 0.6 off a count of 1, 2 off one
of 2. Probability of 0: (1 - 0.6) / 5 + (3·0.6 + 2) / 5 · 1/4 = 0.27. Of 1 after 0, with discounts
of 2/3 at order 2: (1 - 2/3) / 2 + (2/3 + 2/3) / 2 · 0.27 = 0.3467.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER = 5

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Ngrams:
    """The n-grams of one order in a stream of T tokens."""

    codes: Ints  # sorted, each once; (G,)
    ids: Ints  # of the one that ends at each position, (T,); -1: it would leave its document
    positions: Ints  # those that have one

    def counts(self, among: npt.NDArray[np.bool_] | None = None) -> Ints:
        """How often each occurs, (G,), or how often at the positions of a mask (T,)."""
        positions = self.positions if among is None else self.positions[among[self.positions]]
        return np.bincount(self.ids[positions], minlength=len(self.codes))

    def continuations(self, longer: "_Ngrams") -> Ints:
        """How many different tokens each occurs after, (G,), from the n-grams of order n + 1."""
        suffix = np.zeros(len(longer.codes), np.int64)  # id of each longer one's last n tokens
        suffix[longer.ids[longer.positions]] = self.ids[longer.positions]
        return np.bincount(suffix, minlength=len(self.codes))


@dataclass(frozen=True)
class _Order:
    """The smoothed counts of one order: G n-grams after K contexts."""

    codes: Ints  # of the n-grams, sorted; (G,)
    discounted: Floats  # of each n-gram, its count less its discount; (G,)
    totals: Floats  # of each context, the sum of the counts after it, or 0; (K,)
    backoff: Floats  # of each context, the share that its discounts leave to the order below; (K,)


class KneserNey:
    """The probability of every token from at most ORDER - 1 tokens before it in its document.

    As in Chen and Goodman, orders below the highest count after how many different tokens an n-gram
    occurs instead of how often, except for those that open a document; and each order has discounts
    of its own for counts of one, two and three or more. The lowest order is mixed with 1 / V.

    >>> stream = np.array([3, 0, 1, 3, 0, 2, 3])  # the example above
    >>> model = KneserNey(stream, vocab_size=4, eot=3, order=2)
    >>> model.orders[1].codes, model.orders[0].discounted
    (array([ 1,  2,  7, 11, 12]), array([0.4, 0.4, 0.4, 0. ]))
    >>> np.exp(-model.nats(stream[:3])).round(4)  # of 0 after 3, of 1 after 0
    array([0.27  , 0.3467])
    """

    def __init__(self, stream: Ints, vocab_size: int, eot: int, order: int = ORDER) -> None:
        """Count a stream of documents, each opened by end-of-text; one more closes the last.

        Args:
            stream: (T,) ids, of which the first and the last are `eot`.
        """
        self.vocab_size, self.eot = vocab_size, eot
        depth = _depth(stream, eot)
        self.orders: list[_Order] = []
        ngrams = _Ngrams(np.arange(vocab_size), stream, np.arange(1, len(stream)))
        contexts = 1
        for n in range(1, order + 1):
            longer = self._extend(ngrams, stream, depth >= n) if n < order else None
            counts = ngrams.counts() if longer is None else ngrams.continuations(longer)
            if longer is not None and n > 1:  # no token comes before one that opens a document
                counts += ngrams.counts(depth == n - 1)
            self.orders.append(self._smooth(ngrams.codes, counts, contexts, lowest=n == 1))
            contexts = len(ngrams.codes)
            ngrams = longer or ngrams

    def _extend(self, ngrams: _Ngrams, stream: Ints, fits: npt.NDArray[np.bool_]) -> _Ngrams:
        """The n-grams of the next order, at the positions where one fits into its document."""
        positions = np.flatnonzero(fits)
        longer = ngrams.ids[positions - 1] * self.vocab_size + stream[positions]  # codes
        ids = np.full(len(stream), -1)
        codes, ids[positions] = np.unique(longer, return_inverse=True)
        return _Ngrams(codes, ids, positions)

    def _smooth(self, codes: Ints, counts: Ints, contexts: int, lowest: bool) -> _Order:
        context = np.zeros_like(codes) if lowest else codes // self.vocab_size  # (G,)
        discounts = np.minimum(_discounts(counts)[np.minimum(counts, 3)], counts)  # (G,)
        totals = np.bincount(context, counts, contexts).astype(np.float64)  # (K,)
        backoff = np.bincount(context, discounts, contexts) / np.maximum(totals, 1)
        return _Order(codes, np.subtract(counts, discounts, dtype=np.float64), totals, backoff)

    def nats(self, stream: Ints) -> Floats:
        """The nats of every token of a stream but the first; (T - 1,). The stream is as above."""
        depth = _depth(stream, self.eot)
        first = self.orders[0]
        share = first.backoff[0] / self.vocab_size
        probabilities = first.discounted[stream] / first.totals[0] + share  # (T,)
        ids = stream.astype(np.int64)  # of the n-gram that ends at each position; -1: not in train
        for n, order in enumerate(self.orders[1:], start=2):
            positions = np.flatnonzero(depth >= n - 1)
            contexts = ids[positions - 1]
            positions, contexts = positions[contexts >= 0], contexts[contexts >= 0]
            codes = contexts * self.vocab_size + stream[positions]
            place = np.minimum(np.searchsorted(order.codes, codes), len(order.codes) - 1)
            known = order.codes[place] == codes if len(order.codes) else np.zeros(len(codes), bool)
            discounted = np.where(known, order.discounted[place], 0.0)
            totals = order.totals[contexts]
            lower = probabilities[positions]
            mixed = discounted / np.maximum(totals, 1) + order.backoff[contexts] * lower
            probabilities[positions] = np.where(totals > 0, mixed, lower)
            ids = np.full(len(stream), -1)
            ids[positions] = np.where(known, place, -1)
        nats: Floats = -np.log(probabilities[1:])
        return nats


def unigram_nats(train: Ints, stream: Ints, vocab_size: int) -> Floats:
    """The nats of every token but the first by its frequency, one added to each count (Laplace)."""
    counts = np.bincount(train[1:], minlength=vocab_size) + 1
    nats: Floats = -np.log(counts / counts.sum())[stream[1:]]
    return nats


def _depth(stream: Ints, eot: int) -> Ints:
    """How many tokens of its document precede each, the end-of-text that opens it included."""
    positions = np.arange(len(stream))
    opened = np.maximum.accumulate(np.where(stream == eot, positions, 0))
    return np.concatenate(([0], positions[1:] - opened[:-1]))


def _discounts(counts: Ints) -> Floats:
    """What is taken off counts of 0, 1, 2 and 3 or more: Chen and Goodman's equation 17.

    Where so few n-grams were seen that one is not defined, it is that of absolute discounting.
    """
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    if not n1 or not n2:
        return np.array([0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    three = 3 - 4 * y * n4 / n3 if n3 else 2 * y
    return np.array([0, 1 - 2 * y * n2 / n1, max(0.0, 2 - 3 * y * n3 / n2), max(0.0, three)])
