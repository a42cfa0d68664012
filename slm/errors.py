"""The errors that a user can meet.

SlmError                 exit 1: something failed; the message says what and where
├── UserError            exit 2: bad input; the message names what, which value, the remedy
│   └── NewerFormat      exit 2: a file that a newer slm wrote; nothing is touched
├── CorruptionError      exit 1: bytes on disk are not the bytes that were recorded
├── TrainingError        exit 1: the training process failed (not finite, out of memory, killed)
├── InUse                exit 1: another process holds the lock
└── Interrupted          exit 130: stopped by a signal, state saved
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

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
    near = get_close_matches(value, [n for n in names if len(n) <= MAX_EXCERPT], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid: {listing(names)}"
    return UserError(f"unknown {what} {excerpt(repr(value))}: {hint}")
