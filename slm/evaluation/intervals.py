"""How sure a figure is: percentile bootstraps over documents (Efron 1979)."""

import math

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000  # for the interval of val_bpb
PAIRED_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_DOCUMENTS = 20  # below that, an interval over documents cannot be trusted


def fewer_bits(low: float | None, high: float | None) -> bool | None:
    """Whether the interval of a difference shows fewer bits; None where it shows neither."""
    if low is None or high is None or low <= 0 <= high:
        return None
    return high < 0


def paired_interval(
    challenger: npt.NDArray[np.float64],
    champion: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    *,
    resamples: int = PAIRED_RESAMPLES,
) -> tuple[float, float, float]:
    """The difference in bits per byte and its 95 % interval, challenger minus champion.

    Both models keep the same documents in every resample, so what makes a document hard cancels
    out. Against zeros it is the interval of the challenger's own bits per byte.

    Args:
        challenger, champion: nats spent on each document, (N,).
        sizes: UTF-8 bytes of each document, (N,).
    """
    bits = (challenger - champion) / math.log(2)
    generator = np.random.Generator(np.random.PCG64(0))
    differences = np.empty(resamples)
    step = max(1, 2_000_000 // len(bits))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = generator.integers(0, len(bits), (rows, len(bits)))  # (rows, N)
        differences[start : start + rows] = bits[chosen].sum(1) / sizes[chosen].sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(bits.sum() / sizes.sum()), float(low), float(high)
