"""The errors that a user can meet.

SlmError                 exit 1: something failed; the message says what and where
├── UserError            exit 2: bad input; the message names what, which value, the remedy
│   └── NewerFormat      exit 2: a file that a newer slm wrote; nothing is touched
├── CorruptionError      exit 1: bytes on disk are not the bytes that were recorded
├── TrainingError        exit 1: the training process failed (not finite, out of memory, killed)
├── InUse                exit 1: another process holds the lock
└── Interrupted          exit 130: stopped by a signal, state saved
"""

from collections.abc import Iterable
from difflib import get_close_matches


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


def unknown(what: str, value: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest valid one."""
    names = sorted(valid)
    near = get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names) or 'none'}"
    return UserError(f"unknown {what} {value!r}: {hint}")
