"""Which of several trials is the best, and which cannot be told apart from it.

Two things make a trial's figure uncertain. Another sample of held-out documents would give another
one; as all trials are scored on the same documents, most of that cancels out of a difference. And
another seed of the training would. The first is estimated from the documents, the second from
trials of two or more seeds.

The best of N is the best by luck too. Every interval here is simultaneous: its width is the
quantile of the largest of all the deviations that chance gives (the maximum statistic), so it holds
for whichever trial happens to come out best, and needs no further correction. For comparisons with
the best: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the
best", Annals of Statistics 12 (1984). The deviations are drawn from a normal distribution with the
covariance of the documents' scores: Chernozhukov, Chetverikov and Kato, "Gaussian approximations
and multiplier bootstrap for maxima of sums", Annals of Statistics 41 (2013).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm.evaluation.intervals import CONFIDENCE

Floats = npt.NDArray[np.float64]

DRAWS = 10_000
MIN_POOLED = 5  # trials whose seeds show how much a seed changes: the better half, or so many
NEGLIGIBLE = 1e-14  # share of a variance that is rounding


@dataclass(frozen=True)
class Ranking:
    """T trials compared; figures are in bits per byte, arrays in the order of the trials."""

    mean: Floats  # (T,): over its seeds
    low: Floats  # (T,): the interval of each trial's own figure
    high: Floats
    best: int
    difference: Floats  # (T,): minus the best trial's
    difference_low: Floats
    difference_high: Floats
    seed_sd: float | None  # standard deviation between seeds of a trial; None: not known

    @property
    def close(self) -> tuple[int, ...]:
        """The trials that are not distinguishable from the best, the better first.

        Whether or not seeds are known: where they are not, by the documents alone.
        """
        order = np.argsort(self.mean, kind="stable").tolist()
        return tuple(i for i in order if i != self.best and self.difference_low[i] <= 0)


def rank(bits: Sequence[Floats], sizes: npt.NDArray[np.int64], *, draws: int = DRAWS) -> Ranking:
    """Compare trials by their bits per byte on the same documents; the same input, the same result.

    Args:
        bits: of each trial (S, D): what each of its S seeds spends on each document.
        sizes: UTF-8 bytes of each document, (D,).
        draws: of the deviations; the intervals' ends vary by about a hundredth of their width.

    There are at least two documents: one alone shows nothing of chance.
    """
    total = sizes.sum()
    seeds = [each.sum(1) / total for each in bits]  # T × (S,): bits per byte of each seed
    mean = np.array([each.mean() for each in seeds])
    counts = np.array([len(each) for each in seeds])
    covariance = _documents_covariance(np.stack([each.mean(0) for each in bits]), mean, sizes)
    seed_sd, freedom = _seed_deviation(seeds, mean)
    own = (seed_sd or 0.0) ** 2 / counts  # (T,): variance of each mean by its seeds
    deviations = _draw(covariance, own, len(sizes) - 1, freedom, draws)  # (R, T)

    variance = np.diag(covariance)
    error = np.sqrt(variance + own)
    width = error * _maximum(deviations, error)
    best = int(np.argmin(mean))
    between = variance[:, None] + variance - 2 * covariance
    between[between <= NEGLIGIBLE * (variance[:, None] + variance)] = 0
    errors = np.sqrt(between + own[:, None] + own)  # (T, T): of the difference of two trials
    gaps = np.array(
        [errors[i, best] * _maximum(deviations - deviations[:, [i]], errors[i]) for i in _to(mean)]
    )
    gaps[best] = 0
    difference = mean - mean[best]
    return Ranking(
        mean=mean,
        low=mean - width,
        high=mean + width,
        best=best,
        difference=difference,
        difference_low=difference - gaps,
        difference_high=difference + gaps,
        seed_sd=seed_sd,
    )


def _to(values: Floats) -> range:
    return range(len(values))


def _documents_covariance(bits: Floats, mean: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """(T, T): the covariance of the trials' bits per byte by the sample of documents.

    Bits per byte is a ratio of sums. What a document adds to it, to first order, is its bits beyond
    what its bytes would have at the mean, over all bytes. Two trials, documents of 1 and 3 bytes:

        bits [[2, 2], [3, 5]]  mean [1, 2]  →  added [[0.25, -0.25], [0.25, -0.25]]

    The difference between the two is the same on both documents, so its variance is 0.
    """
    added = (bits - mean[:, None] * sizes) / sizes.sum()  # (T, D)
    result: Floats = added @ added.T * len(sizes) / (len(sizes) - 1)
    return result


def _seed_deviation(seeds: Sequence[Floats], mean: Floats) -> tuple[float | None, int]:
    """Standard deviation between the seeds of a trial, and its degrees of freedom.

    It is pooled over trials: two or three seeds alone do not give one. Trials far from the best,
    such as those that nearly diverged, vary much more, so the better half is taken.
    """
    repeated = [i for i in np.argsort(mean, kind="stable") if len(seeds[i]) > 1]
    pooled = repeated[: max(MIN_POOLED, (len(repeated) + 1) // 2)]
    freedom = sum(len(seeds[i]) - 1 for i in pooled)
    if not freedom:
        return None, 0
    squares = sum(float(((seeds[i] - mean[i]) ** 2).sum()) for i in pooled)
    return float(np.sqrt(squares / freedom)), freedom


def _draw(covariance: Floats, own: Floats, documents: int, freedom: int, draws: int) -> Floats:
    """(R, T): how far chance moves the trials' means; of Student's t, as variances are estimated.

    Args:
        own: variance of each trial's mean by its seeds, (T,), with `freedom` degrees of freedom.
        documents: degrees of freedom of `covariance`.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    trials = len(own)
    jitter = 1e-9 * max(float(np.trace(covariance)), np.finfo(float).tiny) * np.eye(trials)
    root = np.linalg.cholesky(covariance + jitter)
    by_documents = generator.standard_normal((draws, trials)) @ root.T
    by_documents *= np.sqrt(documents / generator.chisquare(documents, (draws, 1)))
    if not freedom:
        return by_documents
    by_seeds = generator.standard_normal((draws, trials)) * np.sqrt(own)
    by_seeds *= np.sqrt(freedom / generator.chisquare(freedom, (draws, 1)))
    result: Floats = by_documents + by_seeds
    return result


def _maximum(deviations: Floats, errors: Floats) -> float:
    """The quantile of the largest deviation in standard errors; those without an error are 0."""
    some = errors > 0
    if not some.any():
        return 0.0
    largest = np.abs(deviations[:, some] / errors[some]).max(1)  # (R,)
    return float(np.quantile(largest, CONFIDENCE))
