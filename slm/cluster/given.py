"""What the schedulers share of what a person gives: the last stage, and checks of values."""

import re
from typing import Literal

from slm.errors import UserError, excerpt

Until = Literal["encode", "train", "register"]
COMMANDS: dict[str, str] = {"encode": "encode", "train": "train", "register": "run"}


def check_until(until: str) -> None:
    if until not in COMMANDS:
        raise UserError(f"until={until!r}: give one of {', '.join(COMMANDS)}")


def positive(name: str, value: int | None) -> int | None:
    """The value. Raises UserError for what is no count."""
    if value is not None and (isinstance(value, bool) or value < 1):
        raise UserError(f"{name}={value!r}: give a whole number above 0")
    return value


def matching(name: str, value: object, form: re.Pattern[str], words: str) -> str | None:
    """The value as text, which must hold what its place takes and nothing else.

    Raises UserError, with words for what to give.
    """
    if value is None:
        return None
    if not form.fullmatch(str(value)):
        raise UserError(f"{name}={excerpt(repr(value))}: give {words}")
    return str(value)
