"""Seeds derived from seeds, and permutations of a range that need no table."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

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
