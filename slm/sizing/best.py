"""The best size for a budget: what a fitted law predicts for each shape, given what it costs."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.records import Frozen
from slm.size import MAX_PASSES
from slm.sizing.budgets import Budget
from slm.sizing.fit import Fit
from slm.sizing.law import Counted, Interval, interval

CLOSE = 0.005  # shapes within half a percent of the best one's bits per byte are as good


class Shape(Frozen):
    """A model of some size, and what a token costs it on this machine."""

    size: str  # as the dial takes it, or OWN
    n_layer: int
    n_embd: int
    parameters: dict[Counted, int]
    flops_per_token: float
    tok_per_sec: float | None = None  # None: not known

    def tokens(self, budget: Budget) -> float:
        """How many tokens a budget buys. Raises UserError where the speed is not known."""
        if budget.kind == "tokens":
            return budget.amount
        if budget.kind == "flops":
            return budget.amount / self.flops_per_token
        if self.tok_per_sec is None:
            raise UserError("the tokens/s of the sizes are not known on this machine")
        return self.tok_per_sec * budget.amount

    def seconds(self, tokens: float) -> float | None:
        return tokens / self.tok_per_sec if self.tok_per_sec else None


class Speeds:
    """Tokens/s of any shape, from those of some: FLOP/s are interpolated between their logarithms.

    Outside of the measured shapes FLOP/s are those of the nearest one.
    """

    def __init__(self, measured: Sequence[tuple[float, float]]) -> None:
        """`measured`: FLOPs per token, tokens/s."""
        by_cost: dict[float, list[float]] = {}
        for flops, speed in measured:
            by_cost.setdefault(flops, []).append(math.log(flops * speed))
        self._costs = np.log(sorted(by_cost))
        self._rates = np.array([np.median(by_cost[flops]) for flops in sorted(by_cost)])

    def __bool__(self) -> bool:
        return len(self._costs) > 0

    def __call__(self, flops_per_token: float) -> float:
        rate = np.interp(math.log(flops_per_token), self._costs, self._rates)
        return float(np.exp(rate)) / flops_per_token


class Best(Frozen):
    """What a budget is best spent on."""

    budget: Budget
    shape: Shape
    tokens: float
    epochs: float
    flops: float
    seconds: float | None
    bpb: Interval  # of a run
    sizes: tuple[int, int]  # parameters of the sizes that are best in 95 % of the resamples
    as_good: tuple[int, int]  # parameters of the sizes that are predicted within CLOSE of the best
    beyond: float  # its FLOPs over those of the largest run of the ladder
    at_end: bool  # whether the largest or smallest shape that was considered is the best
    bounded: bool  # whether the law alone asks for a smaller one, on more than MAX_PASSES epochs


def best_shape(
    fit: Fit,
    shapes: Sequence[Shape],
    budget: Budget,
    *,
    unique_tokens: float,
    max_flops: float,
) -> Best:
    """The shape of the lowest predicted bits per byte at a budget, of those that are `trusted`.

    Args:
        unique_tokens: of the training split.
        max_flops: of the largest run that the fit is of.
    """
    tokens = np.array([shape.tokens(budget) for shape in shapes])
    unbounded = predicted(fit, shapes, tokens, unique_tokens)
    losses = np.where(trusted(tokens, unique_tokens), unbounded, np.inf)
    best = int(losses[0].argmin())
    shape, spent = shapes[best], float(tokens[best])
    total = np.array([each.parameters["total"] for each in shapes])
    chosen = interval(float(total[best]), total[losses[1:].argmin(1)])
    good = total[losses[0] <= losses[0, best] * (1 + CLOSE)]
    return Best(
        budget=budget,
        shape=shape,
        tokens=spent,
        epochs=spent / unique_tokens,
        flops=spent * shape.flops_per_token,
        seconds=shape.seconds(spent),
        bpb=fit.predict(shape.parameters[fit.counted], spent, unique_tokens),
        sizes=(round(chosen.low), round(chosen.high)),
        as_good=(int(good.min()), int(good.max())),
        beyond=spent * shape.flops_per_token / max_flops,
        at_end=best in (0, len(shapes) - 1),
        bounded=int(unbounded[0].argmin()) != best,
    )


def trusted(tokens: npt.NDArray[np.float64], unique_tokens: float) -> npt.NDArray[np.bool_]:
    """Which trainings the law may be asked about: those of MAX_PASSES over the data or less.

    Beyond, a model overfits: its loss rises with more tokens, where the law's can only fall. Where
    all are beyond, the one of the fewest passes.
    """
    within = tokens <= MAX_PASSES * unique_tokens
    return within if within.any() else tokens == tokens.min()


def predicted(
    fit: Fit, shapes: Sequence[Shape], tokens: npt.ArrayLike, unique_tokens: float
) -> npt.NDArray[np.float64]:
    """Bits per byte by the law, then by each resampled one: (1 + resamples, shapes)."""
    sizes = [shape.parameters[fit.counted] for shape in shapes]
    laws = (fit.law, *fit.resampled)
    return np.stack([law.bpb(sizes, tokens, unique_tokens) for law in laws])
