"""How sure a figure is: percentile bootstraps over documents (Efron 1979), and over seeds."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000  # for the interval of val_bpb
PAIRED_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_DOCUMENTS = 20  # below that, an interval over documents cannot be trusted
MAX_DRAWS = 40_000_000  # documents that are drawn to resample many models together
MIN_RESAMPLES = 1000
MIN_TAIL = 10  # resamples beyond a percentile, so that it can be read off


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


def resampled_scores(
    bits: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Bits per byte of K models in each of R resamples of the documents, (R, K).

    The resamples are those of `paired_interval`, drawn once for all models, so that the difference
    of any two columns is paired. How many documents a resample has of each kind is one row of
    counts: with 3 documents, the draw [2, 0, 2] is the row [1, 0, 2], and counts @ bits are the
    sums of all models.

    Args:
        bits: spent on each document, (N, K).
        sizes: UTF-8 bytes of each document, (N,).
    """
    documents = len(bits)
    resamples = min(PAIRED_RESAMPLES, max(MIN_RESAMPLES, MAX_DRAWS // documents))
    generator = np.random.Generator(np.random.PCG64(0))
    scores = np.empty((resamples, bits.shape[1]))
    step = max(1, 2_000_000 // documents)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = generator.integers(0, documents, (rows, documents))  # (rows, N)
        chosen += documents * np.arange(rows)[:, None]  # a number of its own per row and document
        counts = np.bincount(chosen.ravel(), minlength=rows * documents).reshape(rows, documents)
        weights = counts.astype(np.float64)
        scores[start : start + rows] = (weights @ bits) / (weights @ sizes)[:, None]
    return scores


def percentiles(resampled: npt.NDArray[np.float64], tail: float) -> tuple[float, float]:
    """The ends that leave `tail` on either side, of a figure in many resamples, (R,).

    Where too few resamples are that far out, those of a normal distribution of the same spread.
    """
    if tail * len(resampled) >= MIN_TAIL:
        low, high = np.quantile(resampled, (tail, 1 - tail))
        return float(low), float(high)
    middle, spread = float(resampled.mean()), float(resampled.std())
    reach = NormalDist().inv_cdf(1 - tail) * spread
    return middle - reach, middle + reach


def seed_reach(*scores: Sequence[float], tail: float) -> float | None:
    """How far a mean over seeds, or the difference of two such means, reaches to either side.

    Student's t with the spread within one or two groups of seeds, pooled: a group of one seed is
    taken to spread as the other does. None where every group has one seed, which shows no spread.
    """
    freedom = sum(len(each) - 1 for each in scores)
    if not freedom:
        return None
    squares = sum(float(np.var(each)) * len(each) for each in scores)
    spread = math.sqrt(squares / freedom * sum(1 / len(each) for each in scores))
    return student_quantile(freedom, tail) * spread


@lru_cache
def student_quantile(freedom: int, tail: float) -> float:
    """The value that Student's t of whole degrees of freedom exceeds with this probability.

    The distribution is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), inverted by
    bisection over the angle atan(t / sqrt(freedom)). SciPy has it too, and takes half a second to
    import.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _student_tail(freedom, angle) > tail else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _student_tail(freedom: int, angle: float) -> float:
    """The probability beyond t = sqrt(freedom) * tan(angle), on one side."""
    is_odd = freedom % 2
    cosine = math.cos(angle)
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + is_odd, freedom - 1, 2):  # the factors 1/2, 3/4, …, or 2/3, 4/5, …
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    if is_odd:
        inside = 2 / math.pi * (angle + inside)
    return (1 - inside) / 2


def combined(
    value: float, by_documents: tuple[float, float], by_seeds: float | None
) -> tuple[float, float]:
    """The interval of a value that both the documents and the seeds make unsure.

    The reaches add up as squares, on either side alone (MOVER: Zou and Donner 2008, section 2).
    """
    low, high = by_documents
    seeds = by_seeds or 0.0
    return value - math.hypot(value - low, seeds), value + math.hypot(high - value, seeds)
