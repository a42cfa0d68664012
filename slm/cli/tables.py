"""Tables that the look-up commands print."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        table.add_row(name, number(value))
    return table


def number(value: Any) -> str:
    """A value for a person: thousands in groups, four digits after the point."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def rows(names: Iterable[str], values: Iterable[Iterable[Any]]) -> Table:
    """A table with a header; numbers stand on the right."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("", "metric", "name") else "right")
    for row in values:
        table.add_row(*(number(value) for value in row))
    return table


def recipes(found: Mapping[str, Any]) -> Table:
    """The recipes of `pipelines.yaml` and what each sets."""
    table = Table(box=None, pad_edge=False)
    for name in ("recipe", "data", "model", "training"):
        table.add_column(name, overflow="fold")
    for name, recipe in found.items():
        sections = [(recipe or {}).get(section) or {} for section in ("data", "model", "train")]
        texts = ["  ".join(f"{k}={v}" for k, v in section.items()) for section in sections]
        table.add_row(name, *map(Text, texts))
    return table


def shards(found: Mapping[str, Any]) -> RenderableType:
    """What `inspect` reports: counts, documents left out, lengths, frequent tokens."""
    splits = rows(
        ("", "documents", "tokens", "bytes", "bytes a token", "files"),
        (
            (name, s["documents"], s["tokens"], s["bytes"], s["bytes"] / s["tokens"], s["files"])
            for name, s in found["splits"].items()
        ),
    )
    dropped = rows(("", "documents left out"), found["dropped"].items())
    histogram = sorted(found["length_histogram"].items(), key=lambda entry: int(entry[0]))
    lengths = rows(("up to so many tokens", "documents"), histogram)
    frequent = ((repr(entry["token"]), entry["share"]) for entry in found["frequent"])
    tokens = rows(("", "share of the most frequent tokens"), frequent)
    return Group(*_spaced(pairs({"shards": found["shards"]}), splits, dropped, lengths, tokens))


def document(found: Mapping[str, Any]) -> RenderableType:
    """A document as text, and how it was cut into tokens."""
    shown = found["document"]
    pieces = " ".join(f"{i}:{t!r}" for i, t in zip(shown["ids"], shown["tokens"], strict=True))
    head = pairs({"document": shown["number"], "split": shown["split"]})
    return Group(*_spaced(head, Text(shown["text"]), Text(pieces)))


def _spaced(*parts: RenderableType) -> Iterable[RenderableType]:
    for part in parts:
        if not isinstance(part, Table) or part.row_count:
            yield part
            yield ""
