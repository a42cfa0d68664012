"""Passages of token sequences as 64-bit hashes, so that they can be looked for in whole corpora.

Polynomial hashes (Karp and Rabin 1987) modulo 2^64 of random numbers that stand for the tokens, so
two passages that differ have one hash about once in 10^19. Every passage of a length is hashed in a
few operations on arrays.
"""

import numpy as np
import numpy.typing as npt

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]


def token_values(vocab_size: int) -> Hashes:
    """The random number that stands for each token, (V,); the same in every process."""
    draws = np.random.Generator(np.random.PCG64(0))
    return draws.integers(0, 2**64, size=vocab_size, dtype=np.uint64)


class Hashed:
    """A sequence of tokens' values, whose passages can be hashed."""

    def __init__(self, values: Hashes) -> None:
        self.sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * _powers(_BASE, len(values)), out=self.sums[1:])
        self.inverse = _powers(pow(_BASE, -1, 2**64), len(values))

    def passages(self, length: int) -> Hashes:
        """The hashes of the passages of a length, wherever one fits."""
        count = max(0, len(self) - length + 1)
        return (self.sums[length:] - self.sums[:count]) * self.inverse[:count]

    def between(self, starts: Places, stops: Places) -> Hashes:
        """The hashes of the passages from `starts` up to `stops`, which may differ in length."""
        return (self.sums[stops] - self.sums[starts]) * self.inverse[starts]

    def __len__(self) -> int:
        return len(self.inverse)


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², … modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
