"""The errors that a user can meet.

SlmError                 exit 1: something failed; the message says what and where
├── UserError            exit 2: bad input; the message names what, which value, the remedy
│   └── NewerFormat      exit 2: a file that a newer slm wrote; nothing is touched
├── CorruptionError      exit 1: bytes on disk are not the bytes that were recorded
├── TrainingError        exit 1: the training process failed (killed, no room on the disk)
│   └── Untrainable      exit 1: by its settings, which fail again (not finite, out of memory)
├── InUse                exit 1: another process holds the lock
└── Interrupted          exit 130: stopped by a signal, state saved
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_EXCERPT = 100  # characters of a text from data in a message
MAX_LISTED = 30  # names in one


class SlmError(Exception):
    """Something failed in a way that the message explains."""

    exit_code = 1


class UserError(SlmError):
    """Bad input. The message names what, which value, and the remedy."""

    exit_code = 2


class NewerFormat(UserError):
    """A file of a newer format than this slm reads: no damage, and left as it is."""


class CorruptionError(SlmError):
    """Bytes on disk are not the bytes that were recorded."""


class TrainingError(SlmError):
    """The training process failed."""


class Untrainable(TrainingError):
    """These settings do not train: the loss diverged, they do not fit into memory, or are refused.

    The same settings fail again; whatever else a TrainingError is of may pass.
    """


class InUse(SlmError):
    """Another process holds the lock."""


class Interrupted(SlmError):
    """Stopped by a signal after the state was saved."""

    exit_code = 130


def excerpt(text: object, limit: int = MAX_EXCERPT) -> str:
    """A text from data as a message shows it: printable, and shortened where it is long.

    A stray byte is a surrogate in Python's names: `caf\\udce9` is shown as `caf\\xe9`.
    """
    shown = str(text)
    if len(shown) > limit:
        shown = f"{shown[:limit]}… ({len(shown):,} characters)"
    shown = re.sub("[\udc80-\udcff]", lambda m: rf"\x{ord(m[0]) - 0xDC00:02x}", shown)
    return shown.encode(errors="backslashreplace").decode()


def listing(names: Iterable[object], limit: int = MAX_LISTED) -> str:
    """`a, b, c`, or the first names and how many more there are; `none` of none."""
    every = list(names)
    more = f" and {len(every) - limit:,} more" if len(every) > limit else ""
    return (", ".join(map(excerpt, every[:limit])) or "none") + more


def check_utf8(text: str, what: str, remedy: str) -> None:
    """Raise UserError for a text that has no UTF-8 form, which neither records nor Arrow hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            rf"{what} {excerpt(text, 1000)} is not UTF-8 (\x… are its stray bytes): {remedy}"
        ) from error


def unknown(what: str, value: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest valid one."""
    names = sorted(valid)
    near = get_close_matches(value, [n for n in names if len(n) <= MAX_EXCERPT], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid: {listing(names)}"
    return UserError(f"unknown {what} {excerpt(repr(value))}: {hint}")


# How pydantic words what a value should have been → what to write.
_PLAIN = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"^Value error, (.+)", r"\1"),
        (r"^Assertion failed, (.+)", r"\1"),
        (r"^Field required", "it is missing"),
        (r"^Extra inputs are not permitted", "there is no such key"),
        (r"^Input should be (?:a valid|an?) integer.*", "give a whole number"),
        (r"^Input should be (?:a valid|a) number.*", "give a number"),
        (r"^Input should be (?:a valid|a) string.*", "give a text"),
        (r"^Input should be (?:a valid|a) boolean.*", "give true or false"),
        (r"^Input should be (?:a valid|an?) (?:list|tuple|set|frozenset|array).*", "give a list"),
        (r"^Input should be (?:a valid|an?) (?:dictionary|mapping|object|instance).*",
         "give a mapping of names to values"),
        (r"^Input should be None", "give null"),
        (r"^Input should be greater than or equal to (.+)", r"give \1 or more"),
        (r"^Input should be greater than (.+)", r"give more than \1"),
        (r"^Input should be less than or equal to (.+)", r"give \1 or less"),
        (r"^Input should be less than (.+)", r"give less than \1"),
        (r"^Input should be a finite number", "give a finite number"),
        (r"^Input should be (.+)", r"give \1"),
        (r"^(?:String|Value|List|Tuple|Dictionary) should have at least (.+)", r"give at least \1"),
        (r"^(?:String|Value|List|Tuple|Dictionary) should have at most (.+)", r"give at most \1"),
        (r"^String should match pattern (.+)", r"give a text of the form \1"),
    )
)  # fmt: skip


def plain(message: str) -> str:
    """What pydantic says of a value, as what to write: `Input should be a valid tuple` → a list."""
    for pattern, words in _PLAIN:
        if pattern.match(message):
            return pattern.sub(words, message)
    return message


def first_invalid(error: "ValidationError") -> str:
    """The first thing that is wrong in a file that was read: `data.seed: give a whole number`."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {plain(first['msg'])}" if place else plain(first["msg"])
