"""The columns that are kept next to each document: `data.columns`.

They are one JSON object per document, whatever the format of the files, so that the same values
come out of any of them, and a column may hold other types in other rows or files:

    text               columns
    A cat sat.         {"lang": "en", "score": 0.93, "tags": ["pets"]}
    Ein Hund bellte.   {"lang": "de", "score": null, "tags": []}

What JSON has no form for is text: dates and times in ISO form, decimals, bytes as UTF-8.
"""

import datetime
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from slm.config import DataConfig
from slm.errors import UserError, excerpt, listing, unknown
from slm.source.formats.paths import is_text, split_path
from slm.source.formats.template import Row

TEXT, COLUMNS = "text", "columns"  # of the parquet files of a source
MAX_OBJECTS_WITHOUT = 10_000  # that may lack a column before it is looked for in vain
MAX_NAMES = 1000  # that a message can choose the nearest from
NAMES = b"slm.columns"  # in the metadata of that field: the names of what it holds


class Kept:
    """The columns of a dataset that `data.columns` names.

    An object of JSON may lack any of them, and so may all of a file: whether a name is wrong shows
    over all files.
    """

    def __init__(self, data: DataConfig) -> None:
        self.names = list(data.columns)
        self._missing = set(self.names)  # in every object so far
        self._present: dict[str, None] = {}  # names in them
        self._objects = 0

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def field(self) -> pa.Field:
        """The field of the parquet files that holds them."""
        names = json.dumps(self.names).encode()
        return pa.field(COLUMNS, pa.string(), nullable=False, metadata={NAMES: names})

    def check(self, where: object, names: Iterable[str]) -> None:
        """Raise UserError unless `names`, all columns of `where`, have each of them once."""
        present = list(names)
        for name in self.names:
            if name not in present:
                raise UserError(f"{where}: data.columns: {_unknown(name, present)}")
            if present.count(name) > 1:
                raise UserError(
                    f"{where}: {present.count(name)} columns are called {excerpt(name)!r}: "
                    "rename all but one"
                )

    def note(self, where: object, row: Row) -> None:
        """Take in the names of an object of JSON. Raise UserError where many have lacked one."""
        if not self._missing:
            return
        self._missing -= row.keys()
        self._objects += 1
        if len(self._present) < MAX_NAMES:
            self._present.update(dict.fromkeys(row))
        if self._objects == MAX_OBJECTS_WITHOUT:
            self.check_noted(where)

    def check_noted(self, where: object) -> None:
        """Raise UserError where no object of JSON so far had one of the columns."""
        if self._objects and self._missing:
            seen = (name for name in self.names if name not in self._missing)
            self.check(where, {**self._present, **dict.fromkeys(seen)})

    def check_format(self, where: object, kind: str | None) -> None:
        """Raise UserError where files of a format have no columns; `kind`: None of an archive."""
        if self.names and kind in ("text", None):
            have = "text files have" if kind else "an archive of text files has"
            raise UserError(
                f"{where}: data.columns names {listing(self.names)}, and {have} no columns but the "
                f"document itself ({TEXT}): leave data.columns out, or give parquet, Arrow, JSON "
                "lines, CSV or TSV"
            )

    def of_row(self, where: object, row: Row) -> str:
        """Those of a row; what it lacks is null."""
        return _json(where, {name: row.get(name) for name in self.names})

    def of_batch(self, where: object, batch: pa.RecordBatch) -> list[str]:
        """Those of each row of a batch."""
        values = [_values(where, name, batch.column(name)) for name in self.names]
        rows = zip(*values, strict=True)
        return [_json(where, dict(zip(self.names, row, strict=True))) for row in rows]


def _unknown(name: str, present: Sequence[str]) -> str:
    whole = split_path(name)[0]
    if whole in present:
        text = f"unknown column {excerpt(repr(name))}: name {whole!r}, which it is in"
    else:
        text = str(unknown("column", name, present))
    return text if "valid: " in text else f"{text} (columns: {listing(present)})"


def _values(where: object, name: str, column: pa.Array) -> list[Any]:
    """The values of a column as Python has them; stray bytes of text are surrogates."""
    try:
        if is_text(column.type):
            raw = column.cast(pa.large_binary()).to_pylist()
            return [each if each is None else _decoded(each) for each in raw]
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        values: list[Any] = column.to_pylist()
        return values
    except (UnicodeDecodeError, ValueError, pa.ArrowException) as error:
        raise _unreadable(where, name, error) from error


def _json(where: object, values: Row) -> str:
    try:
        return json.dumps(values, default=_as_text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unreadable(where, listing(values), error) from error


def _as_text(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _decoded(value) if isinstance(value, bytes) else str(value)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _unreadable(where: object, name: str, error: Exception) -> UserError:
    return UserError(
        f"{where}: column {excerpt(name)} of data.columns has a value that cannot be kept "
        f"({excerpt(str(error))}): leave the column out, or convert it"
    )
