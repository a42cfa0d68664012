"""What each setting of a sweep changes in bits per byte, all other settings taken into account.

One linear model of all trials: a choice has a coefficient for each of its values, a range a slope
and a curvature (on a logarithmic scale where it is one). Its intervals do not suppose that all
trials vary alike: the covariance HC3 of MacKinnon and White, Journal of Econometrics 29 (1985),
which Long and Ervin, The American Statistician 54 (2000), recommend for few observations.

A trial that nearly diverged would decide every coefficient. So a trial counts as no worse than
`MAX_DISTANCE` times the median's distance from the best, as fANOVA cuts off at a threshold: Hutter,
Hoos and Leyton-Brown, ICML 2014.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.evaluation.intervals import CONFIDENCE, fewer_bits
from slm.records import Frozen

Floats = npt.NDArray[np.float64]

MAX_DISTANCE = 3
MIN_PER_COEFFICIENT = 2  # trials
MIN_TRIALS = 5  # that have a setting which only some trials have
LEVELS = (1 / 6, 1 / 2, 5 / 6)  # quantiles of the values of a range: the middles of its thirds
ROUNDING = 1e-8


@dataclass(frozen=True)
class Tried:
    """A setting of the space, and the value that each of N trials has for it."""

    name: str
    values: Sequence[Any]  # (N,): of a trial that does not have it, anything
    present: npt.NDArray[np.bool_]  # (N,): which trials have it
    is_range: bool
    log: bool = False

    @property
    def trials(self) -> int:
        return int(self.present.sum())

    @property
    def own(self) -> list[Any]:
        """The values of the trials that have it."""
        return [value for value, has in zip(self.values, self.present, strict=True) if has]


class Level(Frozen):
    """One value of a setting compared with the setting's reference, in bits per byte."""

    value: Any
    difference: float | None  # None: the trials do not separate it from other settings
    low: float | None  # the 95 % interval; None: not known, such as of one trial alone
    high: float | None

    @property
    def better(self) -> bool | None:
        """Whether it is better than the reference; None where that is not shown."""
        return fewer_bits(self.low, self.high)


class Effect(Frozen):
    """What a setting changes: of each value tried the difference from `reference`.

    Of a range, the middle of what was tried is compared with the middles of the lower and of the
    upper third.
    """

    setting: str
    trials: int  # that have it
    reference: Any
    levels: tuple[Level, ...]
    note: str = ""  # why there are no levels


def effects(settings: Sequence[Tried], bpb: Floats) -> tuple[Effect, ...]:
    """The effect of each setting.

    `bpb`: of each trial, (N,).
    """
    capped = np.minimum(bpb, bpb.min() + MAX_DISTANCE * (np.median(bpb) - bpb.min()))
    usable = [s for s in settings if not _why_not(s)]
    fitted = _fit(usable, capped)
    results = []
    for setting in settings:
        note = _why_not(setting) or ("" if fitted else _too_few(usable, len(bpb)))
        if note or fitted is None:
            effect = Effect(
                setting=setting.name, trials=setting.trials, reference=None, levels=(), note=note
            )
        else:
            effect = fitted.effect(setting)
        results.append(effect)
    return tuple(results)


def _why_not(setting: Tried) -> str:
    """Why a setting cannot be in the model; empty where it can."""
    if len(_distinct(setting.own)) < 2:
        return "every trial that has it has the same value"
    if setting.trials < MIN_TRIALS and not setting.present.all():
        return f"{setting.trials} trials have it: too few"
    return ""


def _too_few(settings: Sequence[Tried], trials: int) -> str:
    least = MIN_PER_COEFFICIENT * _width(settings, curved=False)
    return f"{trials} trials are too few for these settings: at least {least} are needed"


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Values without repetition, as JSON distinguishes them: 1 and true are two."""
    return list({(type(value), repr(value)): value for value in values}.values())


# ---- the model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """The columns of a setting: those of a value, and the values that are compared."""

    setting: Tried
    curved: bool

    @property
    def reference(self) -> Any:
        """Of choices the value of the most trials, of those the first; of a range its middle."""
        own = self.setting.own
        if self.setting.is_range:
            return _at(own, 1 / 2)
        return max(_distinct(own), key=lambda value: sum(_same(value, other) for other in own))

    @property
    def values(self) -> list[Any]:
        """The values that are compared with the reference."""
        own = self.setting.own
        values = [_at(own, q) for q in LEVELS] if self.setting.is_range else own
        return [value for value in _distinct(values) if not _same(value, self.reference)]

    def row(self, value: Any) -> Floats:
        """(K,): what the columns have for a value; zeros for the reference.

        Choices adamw (reference), muon, lion: muon is [1, 0]. A range on a log scale at twice the
        middle, of which the farthest value is four times: [0.5, 0.25].
        """
        if not self.setting.is_range:
            return np.array([float(_same(value, other)) for other in self.values])
        middle = self._scaled(self.reference)
        spread = max(abs(self._scaled(other) - middle) for other in self.setting.own)
        x = (self._scaled(value) - middle) / spread
        return np.array([x, x * x] if self.curved else [x])

    def _scaled(self, value: float) -> float:
        return float(np.log(value)) if self.setting.log else float(value)

    def columns(self) -> Floats:
        """(N, K): a trial that does not have the setting has zeros."""
        zeros = np.zeros_like(self.row(self.reference))
        pairs = zip(self.setting.values, self.setting.present, strict=True)
        return np.stack([self.row(value) if has else zeros for value, has in pairs])


@dataclass(frozen=True)
class _Fit:
    """The model fitted to N trials, with K coefficients in all."""

    terms: Sequence[_Term]
    starts: dict[str, int]  # setting → its first coefficient
    coefficients: Floats  # (K,)
    inverse: Floats  # (K, N): the pseudo-inverse of the matrix
    resolved: Floats  # (K, K): what of the coefficients the trials determine
    residuals: Floats  # (N,): each over 1 - its leverage
    leverage: Floats  # (N,)
    quantile: float  # of Student's t

    def effect(self, setting: Tried) -> Effect:
        term = next(term for term in self.terms if term.setting is setting)
        levels = tuple(self._level(term, value) for value in term.values)
        return Effect(
            setting=setting.name, trials=setting.trials, reference=term.reference, levels=levels
        )

    def _level(self, term: _Term, value: Any) -> Level:
        contrast = np.zeros(len(self.coefficients))
        row = term.row(value)
        start = self.starts[term.setting.name]
        contrast[start : start + len(row)] = row
        if np.abs(contrast @ self.resolved - contrast).max() > ROUNDING:
            return Level(value=value, difference=None, low=None, high=None)
        difference = float(contrast @ self.coefficients)
        weights = contrast @ self.inverse  # (N,): of each trial in the difference
        if (self.leverage[np.abs(weights) > ROUNDING] > 1 - ROUNDING).any():
            return Level(value=value, difference=difference, low=None, high=None)
        error = float(np.sqrt(((weights * self.residuals) ** 2).sum()))
        width = self.quantile * error
        return Level(
            value=value, difference=difference, low=difference - width, high=difference + width
        )


def _width(settings: Sequence[Tried], *, curved: bool) -> int:
    """How many coefficients a model has."""
    return 1 + sum(len(_Term(s, curved).row(_Term(s, curved).reference)) for s in settings)


def _fit(settings: Sequence[Tried], bpb: Floats) -> _Fit | None:
    """The model, with curvatures where the trials suffice; None where they suffice for neither."""
    from scipy.special import stdtrit

    trials = len(bpb)
    enough = (
        c for c in (True, False) if trials >= MIN_PER_COEFFICIENT * _width(settings, curved=c)
    )
    curved = next(enough, None)
    if curved is None or not settings:
        return None
    terms = [_Term(setting, curved) for setting in settings]
    blocks = [np.ones((trials, 1)), *(term.columns() for term in terms)]
    starts = np.cumsum([block.shape[1] for block in blocks])[:-1].tolist()
    matrix = np.hstack(blocks)  # (N, K)
    inverse = np.linalg.pinv(matrix)
    coefficients = inverse @ bpb
    leverage = np.einsum("nk,kn->n", matrix, inverse)
    residuals = (bpb - matrix @ coefficients) / np.maximum(1 - leverage, ROUNDING)
    freedom = trials - np.linalg.matrix_rank(matrix)
    return _Fit(
        terms=terms,
        starts={term.setting.name: start for term, start in zip(terms, starts, strict=True)},
        coefficients=coefficients,
        inverse=inverse,
        resolved=inverse @ matrix,
        residuals=residuals,
        leverage=leverage,
        quantile=float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2)),
    )


def _at(values: Sequence[float], quantile: float) -> Any:
    """The value at a quantile, one that was tried."""
    ordered = sorted(values)
    return ordered[round(quantile * (len(ordered) - 1))]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)
