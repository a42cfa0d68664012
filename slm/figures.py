"""How figures are shown to people."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPR_LINES, REPR_WIDTH, MAX_REPR_TEXT = 2, 100, 24


def size(count: float) -> str:
    """Bytes: 1,234,567 is 1.2 MB."""
    return f"{count:,.0f} B" if count < 1000 else _scaled(count, "B")


def count(number: float, unit: str = "") -> str:
    """How many: 1,234,567 is 1.2 M, and of a unit such as FLOP 1.2 MFLOP."""
    text = f"{number:,.0f} {unit}" if number < 10_000 else _scaled(number, unit)
    return text.rstrip()


def counted(number: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def two_lines(head: str, values: Mapping[str, Any]) -> str:
    """The repr of an object of many values: figures and names first, of two lines at most.

    Texts are cut, and of lists and mappings only their length is given.
    """
    parts = [f"{name}={_brief(value)}" for name, value in sorted(values.items(), key=_weight)]
    lines, limit = [f"{head}("], REPR_WIDTH - 2
    for number, part in enumerate(parts):
        text = part + (", " if number + 1 < len(parts) else ")")
        if len(lines[-1]) + len(text) > limit:
            if len(lines) == REPR_LINES:
                return "\n".join(lines).rstrip(", ") + ", …)"
            lines.append("  ")
        lines[-1] += text
    return "\n".join(line.rstrip() for line in lines) + (")" if not parts else "")


def _weight(entry: tuple[str, Any]) -> int:
    """Figures and names come first, then hashes, then what holds other values."""
    value = entry[1]
    return 2 if isinstance(value, Mapping | list | tuple) else int(_is_hash(value))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _brief(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"<{counted(len(value), 'item')}>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if _is_hash(value):
        return f"{value[:12]}…"
    if isinstance(value, str) and len(value) > MAX_REPR_TEXT:
        return repr(value[: MAX_REPR_TEXT - 1] + "…")
    return str(value) if isinstance(value, Path) else repr(value)


def _scaled(value: float, unit: str) -> str:
    """A value of at least 1000 in thousands, millions and so on, with one decimal."""
    power = 0
    while value >= 1000 and power < len(_PREFIXES):
        value, power = value / 1000, power + 1
    return f"{value:,.1f} {_PREFIXES[power - 1]}{unit}"


_PREFIXES = "kMGTPE"


def duration(seconds: float) -> str:
    """The two largest of hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def date(moment: float | None) -> str | None:
    """Unix seconds as a date and a time of this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else None
