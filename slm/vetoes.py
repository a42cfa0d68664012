"""What disqualifies a model whatever its loss: samples that are broken, or copied from the data.

Both are measured against human text of the same kind, the held-out documents: stories repeat
themselves, and templates recur word for word, without any model's doing.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
Hashes = npt.NDArray[np.uint64]

RUNS = (4, 8, 16, 32, 64, 128)  # tokens: the lengths at which verbatim runs are looked for
NGRAM = 4
REPEATED = 0.5  # a text with a larger share of repeated n-grams runs in circles
WINDOW = 1 << 20  # tokens hashed at a time
HUMAN_QUANTILE = 0.95
_BASE = 0x9E3779B97F4A7C15  # any odd number: it has an inverse modulo 2^64


def degenerate(text: str, ids: Ids) -> str | None:
    """Why a text is broken: "empty", "invalid" or "repetitive"; None where it is not."""
    if not text.strip():
        return "empty"
    if "\ufffd" in text or "\0" in text:
        return "invalid"
    if repetition(ids) > REPEATED:
        return "repetitive"
    return None


def repetition(ids: Ids) -> float:
    """The share of the n-grams of a text that occurred in it before."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def memorised_share(samples: Sequence[int], human: Sequence[int]) -> float:
    """The share of samples that copy a longer run than nearly all human texts do.

    Args:
        samples, human: what `longest_runs` gives for samples and for held-out documents. About
            one human text in twenty is above the line itself.
    """
    line = np.quantile(human, HUMAN_QUANTILE)
    return float(np.mean(np.array(samples) > line))


def longest_runs(texts: Sequence[Ids], train: Iterable[Ids], vocab_size: int) -> list[int]:
    """For each text, the longest of RUNS of which a window stands in the training tokens, else 0.

    Windows are compared by 64-bit polynomial hashes (Karp & Rabin 1987) of random numbers that
    stand for the tokens. Time grows with the tokens of `train` alone.

    Args:
        texts: token ids, an array a text.
        train: token ids, an array a shard.
    """
    values = np.random.Generator(np.random.PCG64(0)).integers(
        0, 2**64, size=vocab_size, dtype=np.uint64
    )
    probes = {n: [_hashes(values[text], n) for text in texts] for n in RUNS}
    wanted = {n: np.unique(np.concatenate(hashes)) for n, hashes in probes.items()}
    found = {n: np.zeros(len(hashes), dtype=bool) for n, hashes in wanted.items()}
    for shard in train:
        for start in range(0, len(shard), WINDOW):
            chunk = values[shard[start : start + WINDOW + max(RUNS) - 1]]
            for n in RUNS:
                _mark(wanted[n], found[n], _hashes(chunk, n))
    longest = [0] * len(texts)
    for n in RUNS:
        for number, hashes in enumerate(probes[n]):
            if found[n][np.searchsorted(wanted[n], hashes)].any():
                longest[number] = n
    return longest


def _hashes(values: Hashes, n: int) -> Hashes:
    """The hash of every window of n values, wherever the window stands; arithmetic mod 2^64."""
    if len(values) < n:
        return np.empty(0, np.uint64)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(_BASE, len(values)), out=sums[1:])
    inverse = _powers(pow(_BASE, -1, 2**64), len(values) - n + 1)
    return (sums[n:] - sums[:-n]) * inverse


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², … modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def _mark(wanted: Hashes, found: npt.NDArray[np.bool_], hashes: Hashes) -> None:
    """Sets `found` where a wanted hash is among the hashes."""
    if not len(wanted):
        return
    likely = np.zeros(1 << 16, dtype=bool)  # by their first bits: rules nearly all others out
    likely[wanted >> np.uint64(48)] = True
    hashes = hashes[likely[hashes >> np.uint64(48)]]
    places = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
    found[places[wanted[places] == hashes]] = True
