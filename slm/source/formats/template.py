"""Which columns of a row become its document: one, a path into one, or a template of several."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slm.config import DataConfig
from slm.errors import UserError, excerpt, listing, unknown
from slm.source.formats.paths import column_of, pick, split_path

Row = dict[str, Any]


class Template:
    """`"{title}\\n\\n{body}"`: literal text and the columns between it."""

    def __init__(self, data: DataConfig) -> None:
        self.given = data.template is not None
        if data.template is None:
            self.parts: list[tuple[str, str | None]] = [("", data.text_column)]
            self.columns = [data.text_column]
            return
        try:
            parts = list(string.Formatter().parse(data.template))
        except ValueError as error:
            raise UserError(f"data.template={data.template!r} cannot be read: {error}") from error
        self.parts = [(literal, column) for literal, column, _, _ in parts]
        self.columns = [column for _, column in self.parts if column is not None]
        if any(spec or conversion for _, _, spec, conversion in parts) or "" in self.columns:
            raise UserError(
                f"data.template={data.template!r}: name columns plainly, such as {{title}}"
            )
        if not self.columns:
            raise UserError(f"data.template={data.template!r} names no column: write {{text}}")

    def check(self, where: object, names: Iterable[str], texts: Iterable[str] = ()) -> None:
        """Raise UserError if the columns of `where` lack one that is joined, or have it twice.

        Args:
            names: of all its columns.
            texts: the columns and paths that are text, for the message.
        """
        present = list(names)
        for column in self.columns:
            name = column_of(column, present)
            if name not in present:
                usable = list(texts)
                shown = f"text columns: {listing(usable)}" if usable else listing(present)
                raise UserError(
                    f"{where}: {unknown('column', name, present)} ({shown}; "
                    f"set {_setting(self, usable)})"
                )
            if present.count(name) > 1:
                raise UserError(
                    f"{where}: {present.count(name)} columns are called {excerpt(name)!r}: "
                    "rename all but one"
                )

    def values(self, row: Row) -> list[Any]:
        """The value of each column of `columns` in a row; None where it has none."""
        values = []
        for column in self.columns:
            if column in row:
                values.append(row[column])
            else:
                name, steps = split_path(column)
                values.append(pick(row.get(name), steps) if steps else None)
        return values

    def join(self, values: Sequence[str | None]) -> bytes | None:
        """The document of a row's `values`; None where one of them is null."""
        if None in values:
            return None
        rest = iter(values)
        texts = [literal + (str(next(rest)) if column else "") for literal, column in self.parts]
        return "".join(texts).encode("utf-8", "surrogatepass")

    def join_batch(self, batch: pa.RecordBatch) -> pa.Array:
        """The documents of a batch, as bytes; null where one of the columns is null."""
        pieces: list[Any] = []
        for literal, column in self.parts:
            pieces.append(pa.scalar(literal.encode(), pa.large_binary()))
            if column is not None:
                pieces.append(_column(batch, column).cast(pa.large_binary()))
        return pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))


def _column(batch: pa.RecordBatch, column: str) -> pa.Array:
    """The texts of a column or path."""
    name = column_of(column, batch.schema.names)
    values = batch.column(name)
    if name == column:
        return values
    _, steps = split_path(column)
    return pa.array([_picked(value, steps) for value in values], pa.large_binary())


def _picked(value: pa.Scalar, steps: Sequence[str]) -> bytes | None:
    try:
        text: str | bytes | None = pick(value.as_py(), steps)
    except UnicodeDecodeError:
        return b"\xff"  # it is counted among the rows that are not text
    return text.encode() if isinstance(text, str) else text


def not_text(
    where: object, column: str, kind: object, texts: Sequence[str], template: Template
) -> UserError:
    """The error for a column that is not text."""
    return UserError(
        f"{where}: column {excerpt(column)!r} is not text but {excerpt(kind)}; text columns: "
        f"{listing(texts)}; set {_setting(template, texts, column)}"
    )


def _setting(template: Template, texts: Sequence[str], column: str = "") -> str:
    """The setting that names columns, with an example where the text is inside one.

    `data.text_column, such as data.text_column=chat[].content`, or of a template with the column
    in it: `data.template, such as {chat[].content} in it`.
    """
    inside = [path for path in texts if split_path(path)[1]]
    name = split_path(column)[0]
    inside = [path for path in inside if split_path(path)[0] == name] or inside
    contents = [path for path in inside if path.endswith((".content", ".text", ".value"))]
    setting = "data.template" if template.given else "data.text_column"
    if not inside:
        return setting
    path = excerpt((contents or inside)[0])
    example = f"{{{path}}} in it" if template.given else f"data.text_column={path}"
    return f"{setting}, such as {example}"
