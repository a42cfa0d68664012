"""Settings and figures of a comparison as short texts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from slm.comparison.reading import RECIPE
from slm.comparison.results import ComparedRun, Comparison
from slm.figures import count, duration

MAX_SETTINGS = 6  # in which groups differ: with a column and charts each


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys → their last parts, where these differ; `data.seed` is never only `seed`.

    >>> short_names(["model.n_layer", "data.seed"])
    {"model.n_layer": "n_layer", "data.seed": "data.seed"}
    """
    last = {key: key.rpartition(".")[2] for key in keys}
    names = [*last.values(), "seed"]
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def brief_settings(compared: Comparison) -> list[str]:
    """The settings that a table has room for: all, or where many differ the recipe and those in
    which the runs of one recipe differ.
    """
    every = list(compared.settings)
    if len(every) <= MAX_SETTINGS:
        return every
    of_recipe: dict[Any, list[ComparedRun]] = defaultdict(list)
    for run in compared.runs:
        of_recipe[run.settings.get(RECIPE)].append(run)
    within = [
        key
        for key in every
        if any(run.settings.get(key) != same[0].settings.get(key)
               for same in of_recipe.values() for run in same)
    ]  # fmt: skip
    recipe = [RECIPE] if RECIPE in every else []
    return [*recipe, *within][:MAX_SETTINGS]


def settings_text(settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """`n_layer=6 learning_rate=0.003`."""
    names = short_names(keys)
    return " ".join(f"{name}={shown_value(settings.get(key))}" for key, name in names.items())


def shown_value(value: Any) -> str:
    """A setting's value in few characters."""
    if value is None:
        return "none"
    if value == "":
        return "''"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def signed(value: float) -> str:
    """A difference in bits per byte."""
    return f"{value:+.4f}".replace("-", "−")


def amount(value: float | None, unit: str) -> str:
    """Seconds, tokens or FLOPs; a dash for what is not known."""
    if value is None:
        return "–"
    return duration(value) if unit == "s" else count(value, unit)
