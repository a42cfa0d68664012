"""The loss as a function of a model's size and of its data.

    L(N, D) = E + A / N'^alpha + B / D'^beta        bits per byte of held-out text

as of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3). Tokens D beyond the U that are unique
count for less (Muennighoff et al. 2023, arXiv:2305.16264): with R = D/U - 1 repetitions,

    D' = U + U R* (1 - exp(-R / R*))

and N' is made likewise of the parameters beyond those that are optimal for U unique tokens.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slm.records import Frozen

Array = npt.NDArray[np.float64]
Counted = Literal["non-embedding", "total"]

DATA_REPEATS = 15.39  # R* of tokens, Muennighoff et al. 2023, section 6
PARAMETER_REPEATS = 5.31  # R* of parameters, ibid.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """A trained model, as the fit sees it."""

    cell: str  # its size and its limit: points of one cell differ in the seed alone
    parameters: dict[Counted, int]
    tokens: int
    unique_tokens: int  # of the training split
    seed: int
    bpb: float


class Law(Frozen):
    """The fitted function."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    repeats: float = DATA_REPEATS
    excess: float | None = None  # R* of parameters; None: all count in full

    def bpb(
        self, parameters: npt.ArrayLike, tokens: npt.ArrayLike, unique: npt.ArrayLike = math.inf
    ) -> Array:
        """Bits per byte of models of these sizes, trained on these tokens."""
        theta = np.log([self.E, self.A, self.alpha, self.B, self.beta, self.repeats])
        n, d, u = np.broadcast_arrays(*(np.asarray(v, float) for v in (parameters, tokens, unique)))
        values = log_loss(theta, n.ravel(), d.ravel(), u.ravel(), self.excess)
        return np.asarray(np.exp(values).reshape(n.shape))


class Interval(Frozen):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """A value with the quantiles of what resamples gave."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.asarray(resampled, float), (tail, 1 - tail))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def log_loss(theta: Array, n: Array, d: Array, u: Array, excess: float | None) -> Array:
    """Log of the law, (..., runs), of theta of (..., 6) and runs of (runs,)."""
    e, a, log_alpha, b, log_beta, log_repeats = np.moveaxis(np.expand_dims(theta, -1), -2, 0)
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    unique = np.minimum(d, u)
    log_n = np.broadcast_to(np.log(n), np.broadcast_shapes(alpha.shape, np.shape(n)))
    if excess is not None:
        # Where the slopes alpha A / N^alpha and beta B / D^beta are equal, as at the optimum.
        log_optimal = (log_alpha - log_beta + a - b + beta * np.log(unique)) / alpha
        log_n = _log_effective(np.minimum(log_n, log_optimal), log_n, excess)
    log_d = _log_effective(np.log(unique), np.log(d), np.exp(log_repeats))
    terms = np.logaddexp(a - alpha * log_n, b - beta * log_d)
    return np.asarray(np.logaddexp(e, terms))


def _log_effective(log_unique: Array, log_all: Array, repeats: Array | float) -> Array:
    """Log of what is unique and of what its repetitions are worth.

    1 epoch of 5 unique tokens is worth 5; with R* = 15.39, 4 epochs are worth
    5 + 5 * 15.39 * (1 - exp(-3 / 15.39)) = 18.6, and any number less than 82.
    """
    more = np.expm1(np.minimum(log_all - log_unique, 50))  # repetitions
    return np.asarray(log_unique + np.log1p(repeats * -np.expm1(-more / repeats)))
