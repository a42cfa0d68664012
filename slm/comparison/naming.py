"""Settings and figures of a comparison as short texts."""

from collections.abc import Iterable, Mapping
from typing import Any

from slm.figures import count, duration


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys → their last parts, where these differ.

    >>> short_names(["model.n_layer", "train.seed"])
    {"model.n_layer": "n_layer", "train.seed": "seed"}
    """
    last = {key: key.rpartition(".")[2] for key in keys}
    names = list(last.values())
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def settings_text(settings: Mapping[str, Any]) -> str:
    """`n_layer=6 learning_rate=0.003`."""
    names = short_names(settings)
    return " ".join(f"{names[key]}={shown_value(value)}" for key, value in settings.items())


def shown_value(value: Any) -> str:
    """A setting's value in few characters."""
    if value is None:
        return "none"
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
