"""How figures are shown to people."""

import time


def size(count: float) -> str:
    """Bytes: 1,234,567 is 1.2 MB."""
    return f"{count:,.0f} B" if count < 1000 else _scaled(count, "B")


def count(number: float, unit: str = "") -> str:
    """How many: 1,234,567 is 1.2 M, and of a unit such as FLOP 1.2 MFLOP."""
    text = f"{number:,.0f} {unit}" if number < 10_000 else _scaled(number, unit)
    return text.rstrip()


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
