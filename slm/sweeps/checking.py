"""Whether the config takes every value of a space, before anything runs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from slm import keys
from slm.errors import UserError, listing
from slm.recipes import load_recipe
from slm.size import DIALS
from slm.sweeps.space import Dimension, Space, check_conditions, combinations, together

MAX_CHECKED = 1024  # combinations of the ends of ranges
# Other values would hold out other documents, and scores on other documents have no order.
HELD_OUT = (
    "data.source", "data.path", "data.config_name", "data.revision", "data.val_split",
    "data.val_fraction", "data.text_column", "data.template", "data.format", "data.separator",
    "evaluate.documents",
)  # fmt: skip


def checked_space(
    recipe: str, overrides: Mapping[str, Any], space: Mapping[str, Dimension]
) -> dict[str, Dimension]:
    """The same space, with its values as the config has them: 1e4 of a whole number as 10000.

    Raises UserError for a setting that no score depends on, a condition that cannot hold, and for
    whatever the config refuses: of choices every combination, of ranges their ends.
    """
    for key in space:
        _check_setting(key)
    check_conditions(space)
    known: dict[str, dict[str, Any]] = {key: {} for key in space}
    for values in corners(space):
        try:
            flat = keys.with_sources(load_recipe(recipe, together(overrides, values)).flat())
        except UserError as error:
            raise UserError(f"the space has {_shown(values)}, which is refused: {error}") from error
        for key, value in values.items():
            known[key][repr(value)] = flat[key]
    return {key: _as_known(dimension, key, known) for key, dimension in space.items()}


def _check_setting(key: str) -> None:
    """Raises UserError for a setting that makes no trial better, or none comparable."""
    stages = ("download", "tokenizer", "encode", "train", "select")
    scored = {name for stage in stages for name in keys.names_of(stage)}
    of_source = re.sub(r"^data\.sources\.[^.]+\.", "", key)
    if of_source != key and of_source in keys.OF_SOURCE["train"]:
        return
    if key in HELD_OUT or of_source != key:
        raise UserError(
            f"{key} cannot be in the space: other values hold out other documents, and their "
            "scores could not be compared; make a sweep of each"
        )
    if key not in scored and key not in ("evaluate.checkpoint", *DIALS):
        raise UserError(f"{key} cannot be in the space: no model depends on it")


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of the choices and of the ends of ranges; of very many each value once."""
    ends = {
        key: Dimension(choices=dimension.corners, when=dimension.when)
        for key, dimension in space.items()
    }
    every = combinations(ends)
    if every is not None and (len(every) <= MAX_CHECKED or _is_finite(space)):
        yield from every
        return
    for key, dimension in ends.items():
        others = {name: each for name, each in ends.items() if name != key}
        for value in dimension.choices:
            one = {**others, key: Dimension(choices=(value,), when=dimension.when)}
            firsts = {name: each.choices[:1] for name, each in one.items()}
            yield dict(zip(firsts, (each[0] for each in firsts.values()), strict=True))


def _is_finite(space: Space) -> bool:
    return all(dimension.values is not None for dimension in space.values())


def _shown(values: Mapping[str, Any]) -> str:
    return listing(f"{key}={value}" for key, value in values.items())


def _as_known(dimension: Dimension, key: str, known: Mapping[str, Mapping[str, Any]]) -> Dimension:
    """A dimension with its values, and those of its condition, as the config has them."""
    when = {
        name: tuple(known[name].get(repr(value), value) for value in values)
        for name, values in dimension.when.items()
    }
    if dimension.choices:
        choices = tuple(known[key].get(repr(value), value) for value in dimension.choices)
        return dimension.model_copy(update={"choices": choices, "when": when})
    low, high = (known[key].get(repr(value), value) for value in dimension.corners)
    whole = isinstance(low, int) and isinstance(high, int)
    return dimension.model_copy(
        update={
            "integer": dimension.integer or whole,
            "low": float(low),
            "high": float(high),
            "when": when,
        }
    )
