"""Tables that the look-up commands print."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slm.errors import UserError
from slm.records import Shards

FREQUENT_TOKENS = 20


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


def shards(record: Shards) -> RenderableType:
    """What shards hold: counts by split, documents left out, lengths, the most frequent tokens."""
    splits = rows(
        ("", "documents", "tokens", "bytes", "bytes a token", "files"),
        (
            (name, s.documents, s.tokens, s.bytes, s.bytes / max(1, s.tokens), len(s.files))
            for name, s in record.splits.items()
        ),
    )
    dropped = rows(("", "documents left out"), record.dropped.items())
    histogram = sorted(record.length_histogram.items(), key=lambda entry: int(entry[0]))
    lengths = rows(("up to so many tokens", "documents"), histogram)
    tokens = rows(("", "most frequent tokens of train"), _most_frequent(record))
    return Group(*_spaced(pairs({"shards": record.path}), splits, dropped, lengths, tokens))


def document(record: Shards, number: int) -> RenderableType:
    """A document of the train split, and how it was cut into tokens."""
    from slm.shards import documents
    from slm.tokenizer import Tokenizer

    ids = next(islice(documents(record, "train"), number, None), None)
    if ids is None:
        count = record.splits["train"].documents
        raise UserError(f"--document {number}: the train split has documents 0 to {count - 1}")
    tokenizer = Tokenizer.load(record.path / "tokenizer.tiktoken")
    pieces = " ".join(f"{id}:{tokenizer.decode([id])!r}" for id in ids.tolist())
    return Group(*_spaced(Text(tokenizer.decode(ids.tolist())), Text(pieces)))


def _most_frequent(record: Shards) -> Iterable[tuple[str, int]]:
    import numpy as np

    from slm.shards import read_tokens
    from slm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(record.path / "tokenizer.tiktoken")
    counts = np.zeros(record.vocab_size, dtype=np.int64)
    for name in record.splits["train"].files:
        counts += np.bincount(read_tokens(record.path / name), minlength=record.vocab_size)
    for token in counts.argsort()[::-1][:FREQUENT_TOKENS].tolist():
        text = "<|endoftext|>" if token == record.eot else repr(tokenizer.decode([token]))
        yield text, int(counts[token])


def _spaced(*parts: RenderableType) -> Iterable[RenderableType]:
    for part in parts:
        if not isinstance(part, Table) or part.row_count:
            yield part
            yield ""
