"""Spans of token sequences as 64-bit hashes, so that they can be searched for in whole corpora.

Polynomial hashes (Karp and Rabin 1987) modulo 2^64 of a random number per token: two different
spans collide about once in 10^19. All spans of a length are hashed in a few array operations.

Worked example, with base 10 and the values 7, 8, 9, 7, 8 (the real base is `_BASE`):

    values × powers   7   80   900   7000   80000
    prefix sums       0    7    87    987    7987   87987
    spans of 2        87 − 0, 987 − 7, 7987 − 87, 87987 − 987   = 87, 980, 7900, 87000
    ÷ 10^start        87, 98, 79, 87       the first and the last span are both "7 8"

Modulo 2^64 an odd base has an inverse, by whose powers the division is a product.
"""

import numpy as np
import numpy.typing as npt

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.intp]


def token_values(vocab_size: int) -> Hashes:
    """The random number of each token, (V,); the same in every process."""
    generator = np.random.Generator(np.random.PCG64(0))
    return generator.integers(0, 2**64, size=vocab_size, dtype=np.uint64)


class HashedTokens:
    """A token sequence whose spans can be hashed.

    >>> tokens = HashedTokens(token_values(10)[[7, 8, 9, 7, 8]])
    >>> bigrams = tokens.ngrams(2)  # of 7 8, 8 9, 9 7, 7 8
    >>> len(bigrams), len(set(bigrams)), bool(bigrams[0] == bigrams[3])
    (4, 3, True)
    >>> bool(tokens.spans(np.array([3]), np.array([5]))[0] == bigrams[0])
    True
    """

    def __init__(self, values: Hashes) -> None:
        """`values`: (T,), those of the tokens, by `token_values`."""
        self.sums = np.zeros(len(values) + 1, np.uint64)  # (T + 1,)
        np.cumsum(values * _powers(_BASE, len(values)), out=self.sums[1:])
        self.inverse = _powers(pow(_BASE, -1, 2**64), len(values))  # (T,)

    def ngrams(self, length: int) -> Hashes:
        """The hashes of all spans of a length, in order: (T − length + 1,), or empty."""
        count = max(0, len(self) - length + 1)
        return (self.sums[length:] - self.sums[:count]) * self.inverse[:count]

    def spans(self, starts: Positions, stops: Positions) -> Hashes:
        """The hashes of the spans from `starts` up to `stops`, which may differ in length."""
        return (self.sums[stops] - self.sums[starts]) * self.inverse[starts]

    def __len__(self) -> int:
        return len(self.inverse)


class HashFilter:
    """A table, by their first bits, of some hashes: a quick test that most others fail."""

    def __init__(self, hashes: Hashes, bits: int) -> None:
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[hashes >> self.shift] = True

    def candidates(self, hashes: Hashes) -> Positions:
        """The positions of the hashes that may be among them."""
        return np.flatnonzero(self.table[hashes >> self.shift])


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², … modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
