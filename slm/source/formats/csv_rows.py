"""CSV and TSV with a header → rows."""

import csv
from collections.abc import Iterator
from pathlib import Path

from slm.errors import MAX_EXCERPT, UserError, excerpt
from slm.source.formats.kept import Kept
from slm.source.formats.template import Row, Template
from slm.source.formats.text import MAX_DOCUMENT_BYTES, lines_of

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "';'", "|": "'|'"}
_REMEDIES = {
    ",": "name it .csv, or set data.format=csv",
    "\t": "name it .tsv, or set data.format=tsv",
}


class _Lines:
    """The lines of a file as `csv.reader` takes them, and what it took for the present row."""

    def __init__(self, path: Path) -> None:
        self.lines = lines_of(path)
        self.begin_row(0)

    def begin_row(self, line: int) -> None:
        self.row = line + 1  # the line in which the row begins
        self.first = ""
        self.backslashes = False  # before quotes

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.first = self.first or line
        self.backslashes |= '\\"' in line
        return line + "\n"


def csv_rows(
    path: Path, template: Template, delimiter: str, kept: Kept | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file by the names in its first line, each with its place, such as `line 3`.

    Raises UserError where a row does not fit the header, or a quote is not closed.
    """
    csv.field_size_limit(MAX_DOCUMENT_BYTES)  # the default is 128 kB per field
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        _check_header(path, lines.first, names, template, delimiter)
        if kept:
            kept.check(path, names)
        lines.begin_row(reader.line_num)
        for values in reader:
            if values and len(values) != len(names):
                raise UserError(
                    f"{path}, line {lines.row}: {len(values)} fields, the header names "
                    f"{len(names)}; a field with {_DELIMITERS[delimiter]} in it must be in quotes"
                )
            if values:
                yield f"line {lines.row}", dict(zip(names, values, strict=True))
            lines.begin_row(reader.line_num)
    except csv.Error as error:
        if reader.line_num <= 1:
            _check_delimiter(path, lines.first, [], template, delimiter)
        raise _not_csv(path, lines, reader.line_num, error) from error


def _check_header(
    path: Path, line: str, names: list[str], template: Template, delimiter: str
) -> None:
    """Raise UserError for a header that is none, or that lacks a column."""
    if not set(template.columns) <= set(names):
        _check_delimiter(path, line, names, template, delimiter)
        if any(len(name) > MAX_EXCERPT for name in names):
            raise UserError(
                f"{path} has no header: its first line is {excerpt(line)!r}; add a line before it "
                f"that names the columns, such as {template.columns[0]}"
            )
    template.check(path, names)


def _check_delimiter(
    path: Path, header: str, names: list[str], template: Template, delimiter: str
) -> None:
    """Raise UserError where another delimiter gives the columns, or more of them than one."""
    for other in _DELIMITERS:
        fields = next(csv.reader([header], delimiter=other), [])
        if other == delimiter or len(fields) <= max(1, len(names)):
            continue
        if len(names) <= 1 or set(template.columns) <= set(fields):
            remedy = _REMEDIES.get(other, "save it with commas or as JSON lines")
            raise UserError(
                f"{path}: its fields seem to be separated by {_DELIMITERS[other]}, not by "
                f"{_DELIMITERS[delimiter]} (header: {excerpt(header)!r}); {remedy}"
            )


def _not_csv(path: Path, lines: _Lines, last: int, error: csv.Error) -> UserError:
    """The error for a row that cannot be parsed, with the line in which it begins."""
    where = f"{path}, line {lines.row}"
    if lines.backslashes:
        return UserError(
            rf'{where}: quotes seem to be escaped by backslashes ({error}): write "" for each \"'
        )
    if "unexpected end of data" in str(error):
        return UserError(
            f"{where}: a quote opens in this row and is never closed; close it, or write "
            'quotes inside a field as ""'
        )
    until = f" to {last}" if last > lines.row else ""
    return UserError(f'{where}{until}: not CSV ({error}); write quotes inside a field as ""')
