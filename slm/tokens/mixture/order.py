"""The order of a mixture: which source each row of a training is from, and which of its rows.

Rows come in cycles of `CYCLE_ROWS`. In each of them a source has its exact share, by largest
remainder, at places that are permuted by (seed, the cycle's first row). A row's place within its
source is the number of that source's rows before it, which is arithmetic: so the order is a pure
function of (seed, step), and no process has to count.

Wiki and code, weighted 0.7 and 0.3, have 700 and 300 rows of every cycle. Before row 2,345 are two
whole cycles, so 1,400 rows of wiki and 600 of code, and those of each among the first 345 rows of
the third: 235 and 110 with this seed.

>>> parts = [Part("wiki", windows=5000, weights=(0.7,)), Part("code", windows=450, weights=(0.3,))]
>>> order = make_order(parts, seed=1)
>>> order.stretches
(Stretch(first=0, shares=(700, 300), before=(0, 0)),)
>>> order.counts(2345)
(1635, 710)
>>> of_parts, places = order.rows(2342, 2346)
>>> of_parts.tolist(), places.tolist()
([0, 0, 0, 1], [1632, 1633, 1634, 710])

With `max_epochs=2` code may have 900 rows. Its 300 fit into three whole cycles, after which it
leaves, and wiki has all rows:

>>> parts[1] = Part("code", windows=450, weights=(0.3,), max_epochs=2)
>>> for stretch in make_order(parts, seed=1).stretches:
...     print(stretch.first, stretch.shares, stretch.before)
0 (700, 300) (0, 0)
3000 (1000, 0) (2100, 900)

A phase begins its cycles anew at the row of its first step. With two phases, of which the second
begins at row 2,500, the first ends inside its third cycle, whose rows so far count:

>>> parts = [Part("wiki", 5000, weights=(0.7, 0.2)), Part("code", 450, weights=(0.3, 0.8))]
>>> for stretch in make_order(parts, seed=1, ends=[2500]).stretches:
...     print(stretch.first, stretch.shares, stretch.before)
0 (700, 300) (0, 0)
2500 (200, 800) (1745, 755)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slm.config import PipelineConfig
from slm.errors import UserError, listing
from slm.records import Plan, Shards
from slm.run_folder import RunFolder
from slm.tokens.permutation import derive_seed, permute

CYCLE_ROWS = 1000
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What the order needs to know of a source."""

    name: str
    windows: int  # rows of an epoch
    weights: tuple[float, ...]  # in each phase
    max_epochs: float | None = None

    @property
    def allowance(self) -> float:
        """The rows that it may have; infinity where `max_epochs` is null."""
        return math.inf if self.max_epochs is None else math.floor(self.max_epochs * self.windows)


class Stretch(NamedTuple):
    """Rows in whole cycles of the same shares, the last of which may be cut by the next stretch."""

    first: int  # row
    shares: tuple[int, ...]  # rows of each part in a whole cycle
    before: tuple[int, ...]  # rows of each part before `first`


@dataclass(frozen=True)
class Order:
    """The order of a training on a mixture; the last stretch has no end."""

    names: tuple[str, ...]
    stretches: tuple[Stretch, ...]
    seed: int

    def rows(self, start: int, stop: int) -> tuple[I64, I64]:
        """The part of each of the rows `start` to `stop`, and the row's place in it; (R,) each."""
        parts, places = np.empty((2, stop - start), dtype=np.int64)
        row = start
        while row < stop:
            stretch, cycle, within, end = self._at(row)
            end = min(end, stop)
            of_cycle, ranks = cycle_rows(self.seed, row - within, stretch.shares)
            inside = slice(within, within + end - row)
            before = np.array(stretch.before) + cycle * np.array(stretch.shares)  # (P,)
            here = slice(row - start, end - start)
            parts[here] = of_cycle[inside]
            places[here] = before[of_cycle[inside]] + ranks[inside]
            row = end
        return parts, places

    def counts(self, row: int) -> tuple[int, ...]:
        """The rows of each part among the first `row` rows."""
        stretch, cycle, within, _ = self._at(row)
        of_cycle, _ = cycle_rows(self.seed, row - within, stretch.shares)
        cut = np.bincount(of_cycle[:within], minlength=len(self.names))  # (P,)
        counts = np.array(stretch.before) + cycle * np.array(stretch.shares) + cut
        return tuple(counts.tolist())

    def until(self, row: int) -> tuple[Stretch, ...]:
        """The stretches that begin before a row: all that the rows before it depend on."""
        return tuple(stretch for stretch in self.stretches if stretch.first < row)

    def _at(self, row: int) -> tuple[Stretch, int, int, int]:
        """The stretch of a row, its cycle there and its place in that; the cycle's end."""
        index = max(i for i, stretch in enumerate(self.stretches) if stretch.first <= row)
        stretch = self.stretches[index]
        cycle, within = divmod(row - stretch.first, CYCLE_ROWS)
        end = row - within + CYCLE_ROWS
        if index + 1 < len(self.stretches):
            end = min(end, self.stretches[index + 1].first)
        return stretch, cycle, within, end


@lru_cache(maxsize=8)
def cycle_rows(seed: int, first: int, shares: tuple[int, ...]) -> tuple[I64, I64]:
    """The part of each row of a cycle, and how many rows of its part are before it in the cycle."""
    slots = permute(
        np.arange(CYCLE_ROWS, dtype=np.uint64), CYCLE_ROWS, derive_seed(seed, "cycle"), first
    )
    parts = np.searchsorted(np.cumsum(shares), slots.astype(np.int64), side="right")
    by_part = np.argsort(parts, kind="stable")
    ranks = np.empty(CYCLE_ROWS, dtype=np.int64)
    starts = np.cumsum([0, *shares[:-1]])  # (P,)
    ranks[by_part] = np.arange(CYCLE_ROWS) - np.repeat(starts, shares)
    return parts, ranks


def cycle_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The rows of a cycle that each part has: exact, by largest remainder, the first of equals.

    >>> cycle_shares([1, 1, 1]), cycle_shares([0.7, 0.3, 0])
    ((334, 333, 333), (700, 300, 0))
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    quotas = [CYCLE_ROWS * weight / sum(exact) for weight in exact]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: CYCLE_ROWS - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


# ---- the stretches of a training --------------------------------------------------------------


class Exhausted(UserError):
    """No source has rows left. `row` is the first one without a source."""

    def __init__(self, row: int, counts: tuple[int, ...]) -> None:
        super().__init__(f"no source has a row {row}")
        self.row, self.counts = row, counts


def make_order(
    parts: Sequence[Part], seed: int, ends: Sequence[int] = (), rows: int | None = None
) -> Order:
    """The order of some parts, as a list of stretches that is fixed before step 1.

    A part whose `max_epochs` do not cover a further whole cycle has no row of it, and its share
    goes to the others in proportion, until a phase in which they do.

    Args:
        ends: the first row after each phase but the last.
        rows: of the whole training; None: not known.

    Raises Exhausted where `rows` are not reached.
    """
    names, none = tuple(part.name for part in parts), (0,) * len(parts)
    order = Order(names, (), seed)
    first, before = 0, none
    for phase, end in enumerate([*ends, math.inf]):
        while first < end and (rows is None or first < max(rows, 1)):
            shares = shares_left(parts, phase, before)
            if not any(shares):
                if rows is None and order.stretches:
                    return order
                raise Exhausted(first, before)
            cycles = [
                (part.allowance - count) // share
                for part, count, share in zip(parts, before, shares, strict=True)
                if share and part.max_epochs is not None
            ]
            order = Order(names, (*order.stretches, Stretch(first, shares, before)), seed)
            following = min(first + CYCLE_ROWS * min(cycles, default=math.inf), end)
            if math.isinf(following):
                return order
            first = int(following)
            before = order.counts(first)
    return order


def shares_left(parts: Sequence[Part], phase: int, before: Sequence[int]) -> tuple[int, ...]:
    """The shares of a phase from a row on; all 0 where no part may have its share of a cycle.

    `before`: the rows that each part has had.
    """
    weights = [part.weights[phase] for part in parts]
    while any(weights):
        shares = cycle_shares(weights)
        uncovered = [
            i
            for i, (part, share) in enumerate(zip(parts, shares, strict=True))
            if weights[i] and before[i] + share > part.allowance
        ]
        if not uncovered:
            return shares
        for i in uncovered:
            weights[i] = 0
    return (0,) * len(parts)


# ---- of a config, and of a run ----------------------------------------------------------------


def order_of(config: PipelineConfig, shards: Shards, plan: Plan) -> Order | None:
    """The order of a training by its plan; None where its shards are no mixture.

    `train.max_seconds` leaves `plan.max_steps` at 0 until a probe: up to it the order is that of
    the first phase. Raises UserError as `planned_order`.
    """
    steps = 0 if plan.cooldown_by_clock else plan.max_steps
    return planned_order(config, shards, plan.rows, steps)


def planned_order(
    config: PipelineConfig, shards: Shards, rows: int, max_steps: int
) -> Order | None:
    """The order of a training; None where its shards are no mixture.

    Args:
        rows: of a step.
        max_steps: 0: not known, yet or at all.

    Raises UserError where the sources cannot be trained on as the settings ask.
    """
    if not shards.parts:
        return None
    check_clock(config)
    parts, last = parts_of(config, shards), rows * max_steps
    ends = [math.ceil(until * max_steps) * rows for until in phase_ends(config)]
    try:
        order = make_order(parts, config.train.seed, ends if last else (), last or None)
    except Exhausted as error:
        raise UserError(_exhausted(parts, error, rows, max_steps)) from error
    if last:
        begun = 1 + sum(end < last for end in ends)
        for i, part in enumerate(parts):
            if any(part.weights[:begun]) and not any(s.shares[i] for s in order.stretches):
                raise UserError(_never_used(parts, i))
    return order


def parts_of(config: PipelineConfig, shards: Shards) -> list[Part]:
    """The parts of some shards by name. Raises UserError for one too small for a row."""
    seq_len = config.model.seq_len
    parts = []
    for name, part in sorted(shards.parts.items()):  # as JSON keeps them
        source, windows = config.data.sources[name], windows_in(part.train.tokens, seq_len)
        if windows < 1:
            raise UserError(
                f"{part.train.tokens} training tokens of data.sources.{name} are too few for a "
                f"context of {seq_len}: give it more documents, leave it out, or use a smaller "
                "model.seq_len"
            )
        given = [phase.weights.get(name, source.weight) for phase in config.data.phases]
        weights = tuple(given) or (source.weight,)
        parts.append(Part(name, windows, weights, source.max_epochs))
    check_weights(parts)
    return parts


def windows_in(tokens: int, seq_len: int) -> int:
    """Rows of an epoch; one less than would fit leaves room for every epoch's offset."""
    return (tokens - 1) // seq_len - 1


def phase_ends(config: PipelineConfig) -> list[Fraction]:
    """The exact fractions of the steps at which all phases but the last end."""
    return [Fraction(repr(phase.until)) for phase in config.data.phases[:-1]]


def check_weights(parts: Sequence[Part]) -> None:
    """Raises UserError where a source has a weight, and no row of a cycle for it."""
    for phase, weights in enumerate(zip(*(part.weights for part in parts), strict=True)):
        where = f" in phase {phase + 1}" if len(parts[0].weights) > 1 else ""
        for part, weight, share in zip(parts, weights, cycle_shares(weights), strict=True):
            if weight and not share:
                raise UserError(
                    f"data.sources.{part.name} has the weight {weight:g} of "
                    f"{math.fsum(weights):g}{where}, not one of every {CYCLE_ROWS:,} rows: raise "
                    "it, or leave the source out"
                )


def check_clock(config: PipelineConfig) -> None:
    """Raises UserError where the clock decides the number of steps, which the order must know."""
    if config.train.max_seconds is None or config.train.schedule != "wsd":
        return
    sources = config.data.sources
    remedy = "use train.max_steps or train.max_tokens, or another train.schedule"
    if len(config.data.phases) > 1:
        raise UserError(
            "data.phases end at fractions of the steps, and with train.max_seconds and "
            f"train.schedule=wsd the clock decides their number during training: {remedy}"
        )
    if all(source.max_epochs is not None for source in sources.values()):
        raise UserError(
            f"all of data.sources ({listing(list(sources))}) have max_epochs, and with "
            "train.max_seconds and train.schedule=wsd nobody knows whether they are enough: leave "
            f"it out of one, or {remedy}"
        )


def _never_used(parts: Sequence[Part], i: int) -> str:
    part = parts[i]
    phase = next(phase for phase, weight in enumerate(part.weights) if weight)
    share = cycle_shares([other.weights[phase] for other in parts])[i]
    return (
        f"data.sources.{part.name}.max_epochs={part.max_epochs:g} are {part.allowance:,} rows, and "
        f"its share of every {CYCLE_ROWS:,} is {share:,}: none of it would be trained on; raise "
        f"max_epochs to {math.ceil(1000 * share / part.windows) / 1000:g} or more, lower its "
        "weight, or leave it out"
    )


def _exhausted(parts: Sequence[Part], error: Exhausted, rows: int, max_steps: int) -> str:
    used = [
        f"{part.name} {count / part.windows:.3g} of {part.max_epochs:g}"
        for part, count in zip(parts, error.counts, strict=True)
        if part.max_epochs is not None
    ]
    steps = f" of {max_steps:,}" if max_steps else ""
    reached = error.row // rows
    shorter = f", or train at most {reached:,} steps" if reached else ""
    return (
        f"after {reached:,}{steps} steps no source has rows left for a cycle of {CYCLE_ROWS:,} "
        f"(epochs: {listing(used)}): raise or leave out max_epochs in data.sources{shorter}"
    )


class Realised(NamedTuple):
    """What a training has had of a source so far."""

    rows: int
    tokens: int
    epochs: float


def realised(run: RunFolder) -> dict[str, Realised]:
    """What a run has been trained on of each source of its mixture; empty without one.

    It is computed from config, plan and step, without the tokens. Empty too where the run has made
    no step, or its shards are gone.
    """
    shards, plan, config = run.shards, run.plan, run.config
    if shards is None or plan is None:
        return {}
    order = order_of(config, shards, plan)
    if order is None:
        return {}
    step = max((e["step"] for e in run.journal if e["event"] == "step"), default=0)
    return {
        part.name: Realised(rows, rows * config.model.seq_len, rows / part.windows)
        for part, rows in zip(parts_of(config, shards), order.counts(step * plan.rows), strict=True)
    }
