"""The law of `slm.sizing.law` fitted on runs, and what else they could have given.

Approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3): Huber loss of the logarithms,
L-BFGS from the best of a grid of starts. The same runs give the same bits: nothing here is random
but by a fixed seed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, nnls

from slm.errors import UserError
from slm.records import Frozen
from slm.sizing.law import (
    DATA_REPEATS,
    PARAMETER_REPEATS,
    Array,
    Counted,
    Interval,
    Law,
    Point,
    interval,
    log_loss,
)

HUBER = 1e-3  # of a difference of logarithms: beyond 0.1 % it counts linearly
EXPONENT = 0.36  # prior of both: their mean in Besiroglu et al. 2024 (arXiv:2404.10102)
EXPONENT_SPREAD = 0.5  # of its logarithm; so far off it weighs as a run that is off by HUBER
REPEATS_SPREAD = 0.7  # likewise of R*
MIN_EPOCHS = 2.0  # of some run, so that R* is fitted
MIN_LEVELS = 3  # sizes, or amounts of data, so that the runs determine an exponent
STARTS = (0.15, 0.3, 0.5, 0.8, 1.2)  # of both exponents
DESCENTS = 6  # from the best of the grid
RESAMPLES = 200
MAX_ITERATIONS = 200
STEP = 1e-5  # of central differences

# The order of the logarithms that are fitted. A and B are taken at the runs' mean size and data.
NAMES = ("E", "A", "alpha", "B", "beta", "repeats")


class Fit(Frozen):
    """A law, how well it fits, and what else the same runs could have given."""

    law: Law
    counted: Counted  # as N
    loss: float  # mean Huber loss of a run, in units of HUBER squared
    compared: dict[str, float]  # the loss of every form that was tried
    residuals: tuple[float, ...]  # log of measured over fitted, of each point
    assumed: dict[str, str]  # what the runs do not determine, and what it was taken for
    intervals: dict[str, Interval]
    resampled: tuple[Law, ...]  # of the bootstrap
    noise: tuple[float, ...]  # of a further run in each resample, a factor of bits per byte

    @property
    def scatter(self) -> float:
        """The usual distance of a run from the law, as a share of its bits per byte."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    def predict(
        self, parameters: float, tokens: float, unique: float = math.inf, *, run: bool = True
    ) -> Interval:
        """Bits per byte of a model: of one run, whose seed counts, or else of the law alone."""
        laws = np.array([float(law.bpb(parameters, tokens, unique)) for law in self.resampled])
        values = laws * np.array(self.noise) if run else laws
        return interval(float(self.law.bpb(parameters, tokens, unique)), values)


# ---- fitting ----------------------------------------------------------------------------------


def fit(points: Sequence[Point], *, resamples: int = RESAMPLES) -> Fit:
    """The law of these runs, by the count of parameters that fits them better.

    Where a run repeats its data, excess parameters are tried as worth less and as worth the same.
    Raises UserError for runs of fewer than two sizes or two amounts of data.
    """
    for kind, values in (
        ("sizes", {p.parameters["total"] for p in points}),
        ("amounts of data", {p.tokens for p in points}),
    ):
        if len(values) < 2:
            raise UserError(
                f"a fit needs runs of at least two {kind}; {len(points)} runs with "
                f"{len(values)} are there"
            )
    repeats = any(p.tokens > p.unique_tokens for p in points)
    forms = [
        _Problem.of(points, counted, excess)
        for counted in ("non-embedding", "total")
        for excess in ((None, PARAMETER_REPEATS) if repeats else (None,))
    ]
    solved = [problem.solve() for problem in forms]
    best = min(range(len(forms)), key=lambda i: solved[i][1])
    compared = {f.label: loss / len(points) for f, (_, loss) in zip(forms, solved, strict=True)}
    problem, (theta, loss) = forms[best], solved[best]
    laws, noise = _bootstrap(problem, theta, points, resamples)
    law = problem.law(theta)
    return Fit(
        law=law,
        counted=problem.counted,
        loss=loss / len(points),
        compared=compared,
        residuals=tuple(problem.residuals(theta).tolist()),
        assumed=problem.reasons,
        intervals={
            name: interval(getattr(law, name), [getattr(other, name) for other in laws])
            for name in NAMES
        },
        resampled=tuple(laws),
        noise=tuple(noise),
    )


@dataclass(frozen=True)
class _Problem:
    """What is minimised over theta, the logarithms of `NAMES`, of which some are fixed."""

    counted: Counted
    n: Array  # parameters of each run, over their geometric mean
    d: Array  # tokens, likewise
    u: Array  # unique tokens, over the mean of the tokens
    centre: tuple[float, float]  # these means
    excess: float | None
    log_bpb: Array
    reasons: dict[str, str]
    prior: Array  # of theta; of what is not fitted the value
    spread: Array  # of the prior; inf: none
    free: npt.NDArray[np.intp]  # the indices of what is fitted

    @classmethod
    def of(cls, points: Sequence[Point], counted: Counted, excess: float | None) -> "_Problem":
        n = np.array([p.parameters[counted] for p in points], float)
        d = np.array([p.tokens for p in points], float)
        u = np.array([p.unique_tokens for p in points], float)
        centre = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
        prior = np.log([1.0, 1.0, EXPONENT, 1.0, EXPONENT, DATA_REPEATS])
        spread = np.full(len(NAMES), np.inf)
        spread[[2, 4, 5]] = EXPONENT_SPREAD, EXPONENT_SPREAD, REPEATS_SPREAD
        reasons = _assumed(n, d, u)
        free = np.arange(len(NAMES) - ("repeats" in reasons))
        log_bpb = np.log([p.bpb for p in points])
        n, d, u = n / centre[0], d / centre[1], u / centre[1]
        return cls(counted, n, d, u, centre, excess, log_bpb, reasons, prior, spread, free)

    @property
    def label(self) -> str:
        return self.counted if self.excess is None else f"{self.counted}, excess counts for less"

    def residuals(self, theta: Array) -> Array:
        """Log of measured over fitted, (..., runs) for theta of (..., 6)."""
        return self.log_bpb - log_loss(theta, self.n, self.d, self.u, self.excess)

    def loss(self, theta: Array) -> Array:
        """Huber loss of the runs and squares of the prior, in units of HUBER squared."""
        far = np.abs(self.residuals(theta)) / HUBER
        runs = np.where(far < 1, far**2 / 2, far - 0.5).sum(-1)
        off = (theta - self.prior) / self.spread
        return np.asarray(runs + (off**2).sum(-1) / 2)

    def solve(self, starts: Iterable[Array] | None = None) -> tuple[Array, float]:
        """The best theta of all starts, and its loss."""
        if starts is None:
            grid = [self.start(alpha, beta) for alpha in STARTS for beta in STARTS]
            starts = sorted(grid, key=lambda theta: float(self.loss(theta)))[:DESCENTS]
        ends = [self._descend(theta) for theta in starts]
        return min(ends, key=lambda end: end[1])

    def _descend(self, start: Array) -> tuple[Array, float]:
        """L-BFGS from a start."""
        free = self.free
        steps = np.zeros((2 * len(free) + 1, len(NAMES)))
        for row, index in enumerate(free):
            steps[2 * row + 1, index], steps[2 * row + 2, index] = STEP, -STEP

        def value_and_slope(part: Array) -> tuple[float, Array]:
            theta = start.copy()
            theta[free] = part
            values = self.loss(theta + steps)  # all differences in one call
            return float(values[0]), (values[1::2] - values[2::2]) / (2 * STEP)

        lowest = float(self.log_bpb.min())
        limits = [
            (lowest - 5, lowest),  # E, at most the best run
            (-12.0, 5.0),
            (math.log(0.02), math.log(3)),
            (-12.0, 5.0),
            (math.log(0.02), math.log(3)),
            (math.log(0.1), math.log(1000)),
        ]
        done = minimize(
            value_and_slope,
            start[free],
            jac=True,
            method="L-BFGS-B",
            bounds=[limits[index] for index in free],
            options={"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-6},
        )
        theta = start.copy()
        theta[free] = done.x
        return theta, float(done.fun)

    def start(self, alpha: float, beta: float) -> Array:
        """Theta at two exponents: E, A and B are linear given these, by least squares."""
        columns = [np.ones_like(self.n), self.n**-alpha, np.minimum(self.d, self.u) ** -beta]
        weights = np.exp(-self.log_bpb)[:, None]  # of relative errors
        linear = nnls(np.stack(columns, 1) * weights, np.ones(len(self.n)))[0]
        lowest = math.exp(self.log_bpb.min())
        e, a, b = np.clip(linear, 0.02 * lowest, [0.98 * lowest, np.inf, np.inf])
        return np.array([*np.log([e, a, alpha, b, beta]), self.prior[5]])

    def law(self, theta: Array) -> Law:
        """With A and B for parameters and tokens as they are counted."""
        e, a, alpha, b, beta, repeats = np.exp(theta).tolist()
        a, b = a * self.centre[0] ** alpha, b * self.centre[1] ** beta
        return Law(
            E=e, A=a, alpha=alpha, B=b, beta=beta, repeats=repeats, excess=self.excess
        )  # fmt: skip

    def resampled(self, log_bpb: Array, prior: Array) -> "_Problem":
        """The same runs with other results, and with another prior."""
        return _Problem(**{**vars(self), "log_bpb": log_bpb, "prior": prior})


def _assumed(n: Array, d: Array, u: Array) -> dict[str, str]:
    """What of `NAMES` the runs cannot determine, and what it is taken for."""
    reasons = {}
    for name, values, what in (("alpha", n, "sizes"), ("beta", d, "amounts of data")):
        if (levels := len(np.unique(values))) < MIN_LEVELS:
            reasons[name] = f"assumed near {EXPONENT}: {levels} {what} do not determine it"
    if (d / u).max() < MIN_EPOCHS:
        reasons["repeats"] = f"assumed: no run has {MIN_EPOCHS:.0f} epochs"
    return reasons


# ---- the band ---------------------------------------------------------------------------------


def _bootstrap(
    problem: _Problem, theta: Array, points: Sequence[Point], resamples: int
) -> tuple[list[Law], list[float]]:
    """Laws of resampled results, and the noise of a further run in each.

    The runs stay what they are; each cell, the runs of one size and one amount of data, gets the
    residuals of a cell that is drawn, all its seeds together, with a sign that is drawn. So what
    a cell has in common, and the law does not explain, stays together. Residuals of a fit are too
    small by the parameters that it has. The prior is drawn as well, so that what the runs do not
    determine is as wide in the band as it was assumed.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    names = [p.cell for p in points]
    cells = [np.array([i for i, n in enumerate(names) if n == name]) for name in sorted(set(names))]
    scale = math.sqrt(len(cells) / max(1, len(cells) - len(problem.free)))
    spread = np.where(np.isfinite(problem.spread), problem.spread, 0)
    residuals = problem.residuals(theta) * scale
    fitted = problem.log_bpb - problem.residuals(theta)
    laws, noise = [], []
    for _ in range(resamples):
        changed = fitted.copy()
        signs = generator.choice((-1.0, 1.0), len(cells) + 1)
        drawn = generator.integers(0, len(cells), len(cells) + 1)
        for cell, source, sign in zip(cells, drawn, signs, strict=False):
            seeds = cells[source][np.arange(len(cell)) % len(cells[source])]
            changed[cell] += sign * residuals[seeds]
        prior = problem.prior + spread * generator.standard_normal(len(NAMES))
        other = problem.resampled(changed, prior)
        starts = [np.where(np.isin(np.arange(len(NAMES)), problem.free), theta, prior)]
        if {"alpha", "beta"} & set(problem.reasons):
            starts.append(other.start(*np.exp(prior[[2, 4]])))
        laws.append(problem.law(other.solve(starts)[0]))
        noise.append(float(np.exp(signs[-1] * residuals[generator.choice(cells[drawn[-1]])])))
    return laws, noise
