"""Whole numbers in any notation: 1e4 → 10000."""

from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from slm.recipes.settings import Kinds, invalid

MAX_DIGITS = 30  # of a whole number: 1e999999999 is no number that anything could count to


def plain_numbers(fields: Any, kinds: Kinds, key: str = "") -> Any:
    """The fields, with the numbers of settings that take whole ones as such: 1e4 → 10000.

    YAML reads 1e4 as text and 1.0e+4 as a float. Raises UserError for 1.5 and for true.
    """
    if isinstance(fields, dict):
        prefix = f"{key}." if key else ""
        return {k: plain_numbers(v, kinds, f"{prefix}{k}") for k, v in fields.items()}
    kind, words = kinds.get(key, (None, ""))
    if not _takes(int, kind) or _takes(float, kind):
        if isinstance(fields, bool) and _takes(float, kind):
            raise invalid(key, fields, words)
        return fields
    if isinstance(fields, list | tuple):
        return [_whole(value, key, kind, words) for value in fields]
    return _whole(fields, key, kind, words)


def _whole(value: Any, key: str, kind: Any, words: str) -> Any:
    """A whole number in any notation as an integer; what is no number as it is."""
    if isinstance(value, bool) and not _takes(bool, kind):
        raise invalid(key, value, words)
    if isinstance(value, bool) or not isinstance(value, str | float):
        return value
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return value
    if number.is_finite() and number.adjusted() < MAX_DIGITS and number == number.to_integral():
        return int(number)
    raise invalid(key, value, words)


def _takes(kind: type, annotation: Any) -> bool:
    """Whether an annotation allows values of a type, in a union or a list too."""
    return annotation is kind or any(_takes(kind, part) for part in get_args(annotation))
