"""Which of several models is the best, and which cannot be told apart from it.

Two things make a score uncertain. Another sample of held-out documents would give another one; as
all models are scored on the same documents, most of that cancels out of a difference. And another
seed of the training would. The first is estimated from the documents, the second from settings
that were trained with two or more seeds.

The best of N is the best by luck too. Every interval here is simultaneous: its width is the
quantile of the largest of all the deviations that chance gives (the maximum statistic), so it holds
for whichever happens to come out best, and needs no further correction. For comparisons with the
best: Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the best",
Annals of Statistics 12 (1984). The deviations are drawn from a normal distribution with the
covariance of the documents' scores: Chernozhukov, Chetverikov and Kato, "Gaussian approximations
and multiplier bootstrap for maxima of sums", Annals of Statistics 41 (2013).

Two claims are kept apart. Which predicts better *as a model*, these very weights, the documents
alone decide. Which is better *as settings*, so that training them again would come out better too,
nothing shows where each was trained with one seed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm.evaluation.intervals import CONFIDENCE, MIN_DOCUMENTS
from slm.figures import counted

Floats = npt.NDArray[np.float64]

DRAWS = 10_000
MAX_DRAWN, MIN_DRAWS = 250_000, 1000  # numbers drawn for all candidates; of each at least
MIN_POOLED = 5  # candidates whose seeds show how much a seed changes: the better half, or so many
NEGLIGIBLE = 1e-14  # share of a variance that is rounding


@dataclass(frozen=True)
class Ranking:
    """T candidates compared, each some settings with its seeds; figures are in bits per byte.

    Arrays are in the order of the candidates. The ends of intervals are NaN where they are not
    known.
    """

    mean: Floats  # (T,): over its seeds
    low: Floats  # (T,): the interval of each candidate's own figure
    high: Floats
    best: int
    difference: Floats  # (T,): minus the best one's
    difference_low: Floats
    difference_high: Floats
    reach: Floats  # (T, T): of the difference of two to either side, over all pairs together
    seed_sd: float | None  # standard deviation between seeds of the same settings; None: not known

    @property
    def close(self) -> tuple[int, ...]:
        """Those that are not distinguishable from the best, the better first.

        Whether or not seeds are known: where they are not, by the documents alone.
        """
        order = np.argsort(self.mean, kind="stable").tolist()
        return tuple(i for i in order if i != self.best and not self.difference_low[i] > 0)


@dataclass(frozen=True)
class Verdict:
    """How sure it is that the best is better than the others, in the words of every command."""

    others: int
    close: int  # of them not distinguishable from it
    seeds_known: bool  # whether any settings were trained with two or more seeds
    doubt: str = ""  # why nothing is known of chance; empty where something is

    @property
    def distinguishable(self) -> bool:
        """Whether the best is shown to be better than every other as settings."""
        return self.seeds_known and not self.doubt and self.others > 0 and not self.close

    def text(self, names: str = "") -> str:
        """Such as `as settings better than all 4 others`; `names`: of those that are close."""
        if not self.others:
            return "the only one that was scored"
        if self.doubt:
            return f"whether it is better than the others is not known: {self.doubt}"
        shown = f"better than {_all(self.others)}"
        if self.close:
            shown = f"not distinguishable from {counted(self.close, 'other')}"
            shown += f": {names}" if names else ""
        if self.seeds_known:
            return f"as settings {shown}"
        return f"as a model {shown}; as settings not known: one seed each"

    def sentence(
        self, name: str, mean: float, low: float | None, high: float | None, names: str = ""
    ) -> str:
        """Such as `trial 7: 0.8312 bits per byte (95 %: 0.8260 to 0.8364), as settings …`."""
        figure = f"{name}: {mean:.4f} bits per byte"
        if low is not None:
            figure += f" (95 %: {low:.4f} to {high:.4f})"
        return f"{figure}{'; ' if self.doubt and self.others else ', '}{self.text(names)}"


def _all(others: int) -> str:
    return {1: "the other one", 2: "both others"}.get(others, f"all {others:,} others")


def by_held_out_text(
    texts: Sequence[tuple[npt.NDArray[np.int64], float | None]],
) -> list[list[int]]:
    """Which evaluations are of the same text, the most first: as many documents of the same bytes,
    and the same fingerprint. One that has no fingerprint is taken by the bytes alone.

    Args:
        texts: of each evaluation the UTF-8 bytes of every document, and its `text_fingerprint`.
    """
    by_sizes: dict[bytes, list[int]] = defaultdict(list)
    for i, (sizes, _) in enumerate(texts):
        by_sizes[sizes.tobytes()].append(i)
    groups: list[list[int]] = []
    for same_sizes in by_sizes.values():
        known = [texts[i][1] for i in same_sizes if texts[i][1] is not None]
        by_text: dict[float | None, list[int]] = defaultdict(list)
        for i in same_sizes:
            fingerprint = texts[i][1]
            by_text[known[0] if fingerprint is None and known else fingerprint].append(i)
        groups += by_text.values()
    return sorted(groups, key=lambda members: (-len(members), -len(texts[members[0]][0])))


def too_few(documents: int) -> str:
    """The doubt of so few documents; empty where they are enough for intervals."""
    if documents >= MIN_DOCUMENTS:
        return ""
    return f"{counted(documents, 'held-out document')} are too few"


def known(end: float) -> float | None:
    """The end of an interval, None where it is not known."""
    return None if np.isnan(end) else float(end)


def rank_by_mean(mean: Sequence[float] | Floats) -> Ranking:
    """Candidates in order, where nothing is known of chance."""
    values = np.asarray(mean, np.float64)
    unknown, best = np.full(len(values), np.nan), int(np.argmin(values))
    return Ranking(
        mean=values,
        low=unknown,
        high=unknown,
        best=best,
        difference=values - values[best],
        difference_low=unknown,
        difference_high=unknown,
        reach=np.full((len(values), len(values)), np.nan),
        seed_sd=None,
    )


def rank(bits: Sequence[Floats], sizes: npt.NDArray[np.int64], *, draws: int = DRAWS) -> Ranking:
    """Compare candidates by their bits per byte on the same documents.

    The same candidates have the same result, in whichever order they are given.

    Args:
        bits: of each candidate (S, D): what each of its S seeds spends on each document.
        sizes: UTF-8 bytes of each document, (D,).
        draws: of the deviations, at most; the intervals' ends vary by a hundredth of their width.

    There are at least two documents: one alone shows nothing of chance.
    """
    total = sizes.sum()
    unordered = [each.sum(1) / total for each in bits]  # T × (S,): bits per byte of each seed
    order = np.argsort([each.mean() for each in unordered], kind="stable")  # the best first
    seeds = [unordered[i] for i in order]
    mean = np.array([each.mean() for each in seeds])
    added = _added(np.stack([bits[i].mean(0) for i in order]), mean, sizes)  # (T, D)
    seed_sd, freedom = _seed_deviation(seeds, mean)
    own = (seed_sd or 0.0) ** 2 / np.array([len(each) for each in seeds])  # (T,): of each mean
    draws = min(draws, max(MIN_DRAWS, MAX_DRAWN // len(bits)))
    deviations = _draw(added, own, freedom, draws)  # (T, R)

    covariance = added @ added.T  # (T, T)
    variance = np.diag(covariance)
    error = np.sqrt(variance + own)
    width = error * _quantile((np.abs(deviations) * _inverse(error)[:, None]).max(0))
    between = variance[:, None] + variance - 2 * covariance
    between[between <= NEGLIGIBLE * (variance[:, None] + variance)] = 0
    np.fill_diagonal(between, 0)
    errors = np.sqrt(between + own[:, None] + own)  # (T, T): of the difference of two
    np.fill_diagonal(errors, 0)
    furthest = _furthest(deviations, errors)  # (T, R)
    gaps = errors[0] * _quantile(furthest)  # if i were the best, all others from it together
    reach = errors * _quantile(furthest.max(0))

    back = np.argsort(order)
    return Ranking(
        mean=mean[back],
        low=(mean - width)[back],
        high=(mean + width)[back],
        best=int(order[0]),
        difference=(mean - mean[0])[back],
        difference_low=(mean - mean[0] - gaps)[back],
        difference_high=(mean - mean[0] + gaps)[back],
        reach=reach[np.ix_(back, back)],
        seed_sd=seed_sd,
    )


def _added(bits: Floats, mean: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """(T, D): what each document adds to the bits per byte of each candidate.

    Times its own transpose it is their covariance by the sample of documents.

    Bits per byte is a ratio of sums. What a document adds to it, to first order, is its bits beyond
    what its bytes would have at the mean, over all bytes. Two models, documents of 1 and 3 bytes:

        bits [[2, 2], [3, 5]]  mean [1, 2]  →  [[0.25, -0.25], [0.25, -0.25]] · √(D / (D - 1))

    The difference between the two is the same on both documents, so its variance is 0.
    """
    added: Floats = (bits - mean[:, None] * sizes) / sizes.sum()
    added *= np.sqrt(len(sizes) / (len(sizes) - 1))
    return added


def _seed_deviation(seeds: Sequence[Floats], mean: Floats) -> tuple[float | None, int]:
    """Standard deviation between seeds of the same settings, and its degrees of freedom.

    It is pooled over candidates, which are the best first: two or three seeds alone do not give
    one. Those far from the best, such as those that nearly diverged, vary much more, so the better
    half is taken.
    """
    repeated = [i for i, scores in enumerate(seeds) if len(scores) > 1]
    pooled = repeated[: max(MIN_POOLED, (len(repeated) + 1) // 2)]
    freedom = sum(len(seeds[i]) - 1 for i in pooled)
    if not freedom:
        return None, 0
    squares = sum(float(((seeds[i] - mean[i]) ** 2).sum()) for i in pooled)
    return float(np.sqrt(squares / freedom)), freedom


def _draw(added: Floats, own: Floats, freedom: int, draws: int) -> Floats:
    """(T, R): how far chance moves the means; of Student's t, as variances are estimated.

    Args:
        added: what each document adds to each mean, (T, D).
        own: variance of each mean by its seeds, (T,), with `freedom` degrees of freedom.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    root = np.transpose(np.linalg.qr(added.T, mode="r"))  # (T, K): of the same covariance, small
    result: Floats = root @ generator.standard_normal((root.shape[-1], draws))
    documents = added.shape[1] - 1
    result *= np.sqrt(documents / generator.chisquare(documents, draws))
    if freedom:
        by_seeds = generator.standard_normal((len(own), draws)) * np.sqrt(own)[:, None]
        result += by_seeds * np.sqrt(freedom / generator.chisquare(freedom, draws))
    return result


def _furthest(deviations: Floats, errors: Floats) -> Floats:
    """(T, R): in each draw, how far the others move from each one at most, in standard errors."""
    result, moved = np.empty_like(deviations), np.empty_like(deviations)
    inverse = _inverse(errors)
    for i, own in enumerate(deviations):
        np.subtract(deviations, own, out=moved)
        moved *= inverse[i][:, None]
        np.abs(moved, out=moved).max(0, out=result[i])
    return result


def _inverse(errors: Floats) -> Floats:
    """1 / errors; 0 of what has none, such as the difference of two that are the same."""
    return np.divide(1.0, errors, out=np.zeros_like(errors), where=errors > 0)


def _quantile(largest: Floats) -> Floats:
    """What the largest deviations, (…, R), exceed with 5 % only, (…)."""
    return np.asarray(np.quantile(largest, CONFIDENCE, axis=-1))
