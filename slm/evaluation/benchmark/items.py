"""What a task consists of: items with one right answer among several, and how rows become items.

A minimal pair is an item of two sentences, of which the first is the right one, without a context.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

from slm.errors import UserError, excerpt, listing
from slm.storage import sha256_json

Kind = Literal["minimal_pairs", "multiple_choice"]
Row: TypeAlias = Mapping[str, Any]

# The columns that are read, each by any of these names.
GOOD, BAD = ("good", "sentence_good"), ("bad", "sentence_bad")
PARADIGM, FIELD = ("paradigm", "UID"), ("field",)
CONTEXT = ("context", "question", "ctx", "prompt")
CHOICES = ("choices", "endings", "options")
ANSWER = ("answer", "label", "gold", "answerKey")


class Item(NamedTuple):
    """A context and what may follow it."""

    context: str  # empty: the choices begin a document
    choices: tuple[str, ...]
    answer: int  # index of the right choice
    group: str | None = None  # paradigm
    field: str | None = None  # that the paradigm belongs to


@dataclass(frozen=True)
class Task:
    """The items of a benchmark, in order."""

    name: str
    kind: Kind
    source: str  # where they were read from, as it was given
    items: tuple[Item, ...]

    @cached_property
    def sha256(self) -> str:
        """Of its kind and its items: of the same task from a file, a folder or the hub the same."""
        return sha256_json([self.kind, self.items])


def minimal_pair(good: str, bad: str, group: str | None = None, field: str | None = None) -> Item:
    """A pair of sentences as an item."""
    return Item("", (good, bad), 0, group, field)


def item_of(row: Row, where: str, default_group: str | None) -> tuple[Kind, Item]:
    """The item of a row of a file.

    Args:
        where: file and place, for messages.
        default_group: its paradigm, where the row names none.

    Raises UserError where the row is neither a minimal pair nor a question with choices.
    """
    group = _text(row, PARADIGM, where) or default_group
    field = _text(row, FIELD, where)
    good, bad = _text(row, GOOD, where), _text(row, BAD, where)
    if good is not None and bad is not None:
        _check_choices((good, bad), where)
        return "minimal_pairs", minimal_pair(good, bad, group, field)
    choices, labels = _choices(row, where)
    answer = _value(row, ANSWER)
    if choices is None or answer is None:
        raise UserError(
            f"{where}: neither a minimal pair, columns {GOOD[0]} and {BAD[0]}, nor a question, "
            f"columns {CONTEXT[0]}, {CHOICES[0]} and {ANSWER[0]}; its columns: {listing(row)}"
        )
    _check_choices(choices, where)
    context = _text(row, CONTEXT, where) or ""
    index = _index(answer, choices, labels, where)
    return "multiple_choice", Item(context, choices, index, group, field)


def _value(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(row: Row, names: tuple[str, ...], where: str) -> str | None:
    value = _value(row, names)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {names[0]}={excerpt(repr(value))} is not a text")
    return value


def _choices(row: Row, where: str) -> tuple[tuple[str, ...] | None, list[str]]:
    """The choices of a row and their labels, if they have any.

    A list of texts, the same as JSON text (in a CSV file), or a mapping of `text` and `label`.
    """
    value, labels = _value(row, CHOICES), []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(
                f'{where}: {CHOICES[0]}={excerpt(value)} is not a JSON list such as ["yes", "no"]'
            ) from None
    if isinstance(value, Mapping):
        labels = [str(label) for label in value.get("label") or []]
        value = value.get("text")
    if value is None:
        return None, []
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where}: {CHOICES[0]}={excerpt(repr(value))} is not a list of texts")
    return tuple(value), labels


def _check_choices(choices: tuple[str, ...], where: str) -> None:
    if len(choices) < 2:
        raise UserError(f"{where}: one choice alone cannot be chosen: give two or more")
    if "" in choices:
        raise UserError(f"{where}: an empty choice has no probability: give it a text")


def _index(answer: Any, choices: tuple[str, ...], labels: list[str], where: str) -> int:
    """The index of the right choice, from that index, its label, or its text."""
    text = str(answer)
    if text in labels:
        return labels.index(text)
    if isinstance(answer, str) and choices.count(answer) == 1:
        return choices.index(answer)
    if not isinstance(answer, bool) and text.isascii() and text.isdigit():
        index = int(text)
        if index < len(choices):
            return index
    raise UserError(
        f"{where}: {ANSWER[0]}={excerpt(repr(answer))} is none of its {len(choices)} choices: give "
        "the index of one, from 0, or its text"
    )
