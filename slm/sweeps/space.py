"""The space of a sweep: for each setting its choices or its range, and when it applies.

As text: `2,4,6` or `adamw,muon` are choices, `0:0.2` is a range of numbers, `int:2:8` of whole
ones; `log:1e-3:1e-2` and `log:int:16:256` are even in the logarithm. In YAML a list is choices too,
and a mapping adds a condition: `{range: "log:1e-3:1e-1", when: {train.optimizer: muon}}`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Self

from pydantic import Field, model_validator

from slm.config import LIMITS
from slm.errors import UserError, excerpt, listing, unknown
from slm.other_names import unknown_setting
from slm.recipes import dotted_keys, is_setting, parse_overrides, sections
from slm.records import Frozen
from slm.storage import to_json

MAX_COMBINATIONS = 4096  # of a grid, and of a space whose combinations are counted
DIGITS = 6  # of a number drawn from a range
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"((?:(?:log|int):){{0,2}})({_NUMBER}):({_NUMBER})")
_FORMS = "2,4,6 (choices), 0:0.2 (a range), int:2:8, log:1e-3:1e-2, log:int:16:256"

Space = Mapping[str, "Dimension"]  # by dotted key


class Dimension(Frozen):
    """The values that one setting may take: choices, or a range from `low` to `high`."""

    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False  # whether it is even in the logarithm
    integer: bool = False
    # Other settings → the values with which this one applies.
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.choices) == (self.low is not None):
            raise ValueError("a dimension has choices, or a range")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Every value, where they are finite in number; None of a range of numbers."""
        if self.choices:
            return self.choices
        if not self.integer:
            return None
        assert self.low is not None
        assert self.high is not None
        return tuple(range(int(self.low), int(self.high) + 1))

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that stand for all in a check: every choice, or both ends of a range."""
        if self.choices:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        ends = (self.low, self.high)
        return tuple(int(end) if self.integer else float(end) for end in ends)

    def at(self, share: float) -> Any:
        """The value at a share, from 0 up to 1, of the dimension.

        >>> Dimension(choices=(2, 4, 6)).at(0.5), Dimension(low=0, high=0.2).at(0.5)
        (4, 0.1)
        """
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        assert self.low is not None
        assert self.high is not None
        low, high = self.low, self.high
        if self.integer:  # every whole number has an interval of width 1
            low, high = low - 0.5, high + 0.5
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> Any:
        """The nearest value of a range that is written with few digits."""
        low, high = self.corners
        near = math.floor(value + 0.5) if self.integer else float(f"{value:.{DIGITS}g}")
        return min(max(near, low), high)

    @property
    def text(self) -> str:
        """As it is written on the command line, without its condition."""
        if self.choices:
            return ",".join(map(written, self.choices))
        kind = f"{'log:' * self.log}{'int:' * self.integer}"
        low, high = self.corners
        return f"{kind}{low:g}:{high:g}" if not self.integer else f"{kind}{low}:{high}"


def written(value: Any) -> str:
    """A value as it is written: null for None, true and false."""
    return value if isinstance(value, str) else to_json(value)


# ---- reading ----------------------------------------------------------------------------------


def parse_space(assignments: Sequence[str]) -> dict[str, Dimension]:
    """`["model.n_layer=2,4"]` → the dimensions by their keys. Raises UserError."""
    space: dict[str, Dimension] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(
                f"--space {excerpt(repr(assignment))} is not KEY=VALUES, such as model.n_layer=2,4"
            )
        if key in space:
            raise UserError(f"--space names {key} twice: give it once")
        space[key] = parse_dimension(key, text)
    return space


def parse_dimension(key: str, given: Any) -> Dimension:
    """A dimension from its text, from a list of choices, or from a mapping with a condition.

    Raises UserError naming the key and the value.
    """
    if not is_setting(key):
        known = list(dotted_keys())
        raise unknown_setting(key, [*known, *sections()])
    if isinstance(given, Mapping):
        return _conditional(key, given)
    if isinstance(given, list | tuple):
        return _of_choices(key, given)
    if isinstance(given, str):
        return _of_text(key, given)
    return _of_choices(key, [given])


def _conditional(key: str, fields: Mapping[Any, Any]) -> Dimension:
    parts = dict(fields)
    when = parts.pop("when", None) or {}
    for name in parts:
        if name not in ("range", "choices"):
            raise unknown(f"key of the space of {key}", str(name), ["range", "choices", "when"])
    if len(parts) != 1 or not isinstance(when, Mapping):
        raise UserError(
            f"the space of {key}: give `range` or `choices`, and `when` as a mapping of settings "
            "to values"
        )
    conditions = {
        str(name): tuple(value) if isinstance(value, list | tuple) else (value,)
        for name, value in when.items()
    }
    return parse_dimension(key, next(iter(parts.values()))).model_copy(update={"when": conditions})


def _of_text(key: str, text: str) -> Dimension:
    if parsed := _RANGE.fullmatch(text.strip()):
        kinds = [kind for kind in parsed[1].split(":") if kind]
        if len(set(kinds)) == len(kinds):
            return _of_range(key, text, kinds, parsed[2], parsed[3])
    if re.match(r"(log|int):", text) or not text.strip():
        raise UserError(f"the space of {key}: {excerpt(repr(text))} is none of {_FORMS}")
    parts = [part.strip() for part in text.split(",")]
    return _of_choices(key, [parse_overrides([f"{key}={part}"])[key] for part in parts])


def _of_range(key: str, text: str, kinds: list[str], first: str, last: str) -> Dimension:
    log, integer = "log" in kinds, "int" in kinds
    low, high = float(first), float(last)
    at = f"the space of {key}: {text}"
    if integer and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{at}: int takes whole numbers")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{at}: both ends must be finite numbers")
    if low >= high:
        raise UserError(f"{at} is empty: its first number must be below its second")
    if log and low <= 0:
        raise UserError(f"{at}: a logarithm needs numbers above 0")
    return Dimension(low=low, high=high, log=log, integer=integer)


def _of_choices(key: str, values: Sequence[Any]) -> Dimension:
    if not values:
        raise UserError(f"the space of {key} is empty: give {_FORMS}")
    if twice := [value for value in values if list(values).count(value) > 1]:
        raise UserError(f"the space of {key} has {excerpt(repr(twice[0]))} twice: give it once")
    return Dimension(choices=tuple(values))


# ---- conditions -------------------------------------------------------------------------------


def check_conditions(space: Space) -> None:
    """Raises UserError where a condition names no dimension, a value it never has, or a circle."""
    for key, dimension in space.items():
        for name, values in dimension.when.items():
            if name not in space:
                raise unknown(f"setting in the condition of {key}", name, space)
            possible = space[name].values
            never = [v for v in values if possible is not None and v not in possible]
            if possible is None or never:
                raise UserError(
                    f"the condition of {key}: {name} "
                    + (f"is never {never[0]!r}: its values are {listing(possible or ())}"
                       if never else "has a range of numbers; conditions are on choices")
                )  # fmt: skip
    order(space)


def order(space: Space) -> list[str]:
    """The keys of a space, each after those that its condition is on, else as they were given.

    Raises UserError where conditions are on each other in a circle.
    """
    ordered: list[str] = []
    left = list(space)
    while left:
        free = [key for key in left if all(name in ordered for name in space[key].when)]
        if not free:
            raise UserError(f"the conditions of {listing(left)} are on each other in a circle")
        ordered.append(free[0])
        left.remove(free[0])
    return ordered


def applies(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    """Whether a dimension's condition holds, given the values of those that it is on."""
    return all(values.get(name) in allowed for name, allowed in dimension.when.items())


# ---- points -----------------------------------------------------------------------------------


def point(space: Space, shares: Sequence[float]) -> dict[str, Any]:
    """The settings at a point of the unit cube, an axis for each dimension as it was given.

    Those whose condition does not hold are left out.
    """
    by_key = dict(zip(space, shares, strict=True))
    values: dict[str, Any] = {}
    for key in order(space):
        if applies(space[key], values):
            values[key] = space[key].at(by_key[key])
    return {key: values[key] for key in space if key in values}


def combinations(space: Space) -> list[dict[str, Any]] | None:
    """Every combination, the last setting fastest, each once.

    None where a range has numbers, or there are more than MAX_COMBINATIONS.
    """
    values = [dimension.values for dimension in space.values()]
    finite = [each for each in values if each is not None]
    if len(finite) < len(values) or math.prod(map(len, finite)) > MAX_COMBINATIONS:
        return None
    return list(_distinct(space, product(*finite)))


def check_grid(space: Space) -> None:
    """Raises UserError where the combinations of a space cannot be listed, or are too many."""
    for key, dimension in space.items():
        if dimension.values is None:
            raise UserError(
                f"the sampler grid needs choices, and the space of {key} is the range "
                f"{dimension.text}: give values such as {key}=1,2,3, or --sampler random"
            )
    if combinations(space) is None:
        count = math.prod(len(dimension.values or ()) for dimension in space.values())
        raise UserError(
            f"the grid has {count:,} combinations, and at most {MAX_COMBINATIONS:,} are listed: "
            "give fewer values, or another sampler"
        )


def _distinct(space: Space, tuples: Iterator[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    seen = set()
    for values in tuples:
        every = dict(zip(space, values, strict=True))
        kept: dict[str, Any] = {}
        for key in order(space):
            if applies(space[key], kept):
                kept[key] = every[key]
        chosen = {key: kept[key] for key in space if key in kept}
        if (name := identity(chosen)) not in seen:
            seen.add(name)
            yield chosen


def together(overrides: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a sweep with the settings of a trial.

    A limit of the trial replaces that of the sweep, as that replaces the recipe's.
    """
    limits = {f"train.{name}" for name in LIMITS}
    replaced = limits if limits & values.keys() else set()
    return {**{key: v for key, v in overrides.items() if key not in replaced}, **values}


def identity(values: Mapping[str, Any]) -> str:
    """A text that two proposals share where they have the same values."""
    return repr(sorted(values.items()))
