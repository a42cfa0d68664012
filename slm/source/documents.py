"""Files of documents → Arrow arrays of text, a few megabytes at a time, whatever the format.

parquet · Arrow · JSON lines or an array of objects · CSV and TSV with a header · plain text (one
document per file, or split on a separator). The last four may be compressed (.gz, .zst) and must
be UTF-8. A zip or tar archive has the documents of its text files.

Only text is passed on, and with it what `data.columns` keeps. A file that is something else than
its name promises, or is not UTF-8, is an error that says so; a row whose value is null, or has no
UTF-8 form (a lone surrogate escaped in JSON, stray bytes in parquet), is left out and counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc

from slm.config import DataConfig
from slm.errors import UserError, check_utf8
from slm.source.formats import text
from slm.source.formats.archives import archive_documents, archive_of
from slm.source.formats.columns import read_arrow, read_parquet
from slm.source.formats.contents import COMPRESSIONS, refuse_others
from slm.source.formats.csv_rows import csv_rows
from slm.source.formats.json_rows import json_rows
from slm.source.formats.kept import COLUMNS, TEXT, Kept
from slm.source.formats.paths import Misfit, json_paths
from slm.source.formats.template import Row, Template, not_text

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
_COLUMNAR = ("parquet", "arrow")  # they are compressed inside
_DELIMITERS = {"csv": ",", "tsv": "\t"}
NULL, NOT_TEXT = "null", "not text"  # why a row is left out
Document = tuple[bytes | None, str | None]  # and what is kept next to it
_MAX_ROWS_WITHOUT = 10_000  # that may lack a column before it is looked for in vain


def format_of(path: PurePath, chosen: str | None = None) -> str | None:
    """`parquet`, `arrow`, `jsonl`, `csv`, `tsv` or `text`; None for a file that is not read.

    Args:
        path: its name gives the format, a compression after it allowed.
        chosen: `data.format`, which is the format of every file where it is set.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if packed:
        suffixes.pop()
    kind = chosen or (FORMATS.get(suffixes[-1]) if suffixes else None)
    return None if packed and kind in _COLUMNAR else kind


def unsupported(where: object) -> UserError:
    """The error for a file of no format that is read."""
    return UserError(
        f"{where} is not in a supported format: {', '.join(FORMATS)}, or an archive (.zip, .tar, "
        ".tar.gz) of text files; --set data.format=text reads any other as text"
    )


def read_documents(
    path: Path,
    data: DataConfig,
    dropped: Counter[str],
    *,
    checked: bool = False,
    kept: Kept | None = None,
) -> Iterator[pa.Array]:
    """The documents of one file in order, as arrays of type string without nulls.

    With `data.columns` as arrays of structs without nulls: `text`, and `columns` as JSON.

    Args:
        path: the file; its name gives the format, unless `data.format` does.
        data: `text_column`, or the `template` that joins several columns; `columns`, which are kept
            next to them; `separator` of text.
        dropped: gets the number of rows left out, by reason.
        checked: whether `check_contents` was called with the file.
        kept: those columns, over several files; None: this is the only one.

    Raises UserError where the file is not of that format, lacks the column or is not UTF-8,
    CorruptionError where its bytes are damaged.
    """
    check_name(path)
    check_kept(path, path, data)
    if archive_of(path):
        arrays = _batches(path, map(_alone, archive_documents(path, data, dropped)))
        return map(partial(_only_text, path, dropped), arrays)
    template, kept = Template(data), kept or Kept(data)
    if not checked:
        check_contents([path], data)
    kind = format_of(path, data.format)
    if kind == "parquet":
        arrays = read_parquet(path, template, kept)
    elif kind == "arrow":
        arrays = read_arrow(path, template, kept)
    elif kind == "jsonl":
        rows = _noted(path, json_rows(path), kept)
        arrays = _batches(path, _join_rows(path, rows, template, kept))
    elif kind in _DELIMITERS:
        rows = csv_rows(path, template, _DELIMITERS[kind], kept)
        arrays = _batches(path, _join_rows(path, rows, template, kept))
    elif kind == "text":
        arrays = _batches(path, map(_alone, text.text_documents(path, data.separator)))
    else:
        raise unsupported(path)
    return map(partial(_only_text, path, dropped), arrays)


def check_kept(where: object, path: PurePath, data: DataConfig) -> None:
    """Raise UserError where `data.columns` names columns, and a file of this name has none."""
    Kept(data).check_format(where, None if archive_of(path) else format_of(path, data.format))


def check_contents(paths: Iterable[Path], data: DataConfig) -> None:
    """Raise UserError where files are something else than their names promise, with counts.

    Only their beginnings are read.
    """
    every = sorted(paths, key=lambda path: str(format_of(path, data.format)))
    for kind, files in groupby(every, key=lambda path: format_of(path, data.format)):
        named = [path for path in files if archive_of(path) is None]
        if kind is not None and named:
            expected = kind if kind in _COLUMNAR else None
            allowed = (data.separator or "").encode() if kind == "text" else b""
            refuse_others(f"data.path={data.path}", named, expected, allowed)


def check_name(name: PurePath | str, where: str = "") -> None:
    """Raise UserError for a name that is not UTF-8, which neither records nor Arrow can hold."""
    check_utf8(str(name), f"{where}the name", "rename it")


def check_separator(paths: Iterable[Path], data: DataConfig) -> Iterator[Path]:
    """The same files. Raises UserError where `data.separator` occurs in no text file of them.

    Text is searched until it occurs: mostly the beginning of the first file.
    """
    rest = iter(paths)
    passed: list[Path] = []
    for path in rest:
        passed.append(path)
        if data.separator is None or format_of(path, data.format) != "text":
            break
        if text.occurs(path, data.separator):
            break
    else:
        if passed:
            raise UserError(
                f"data.path={data.path}: data.separator={data.separator!r} occurs nowhere in "
                f"{len(passed):,} text file(s), so that each would be one document; "
                r"\n is a line break: --set 'data.separator=\n\n' splits at empty lines"
            )
    yield from passed
    yield from rest


def _only_text(path: Path, dropped: Counter[str], array: pa.Array) -> pa.Array:
    """Binary values → the strings among them; the others are counted. Of structs, their texts."""
    if pa.types.is_struct(array.type):
        return _only_rows(path, dropped, *array.flatten())
    dropped[NULL] += array.null_count
    array = array.drop_null()
    text.check_size(path, pc.max(pc.binary_length(array)).as_py() or 0)
    try:
        return array.cast(pa.string())  # checks that the bytes are UTF-8
    except pa.ArrowInvalid:
        texts = [value for value in array.to_pylist() if _is_utf8(value)]
        dropped[NOT_TEXT] += len(array) - len(texts)
        return pa.array(texts, pa.binary()).cast(pa.string())


def _only_rows(path: Path, dropped: Counter[str], texts: pa.Array, kept: pa.Array) -> pa.Array:
    """The same of texts and what is kept next to each."""
    present = texts.is_valid()
    strings = _only_text(path, dropped, texts)
    kept = kept.filter(present)
    if len(strings) < len(kept):  # some are not UTF-8
        kept = kept.filter(pa.array([_is_utf8(value) for value in texts.drop_null().to_pylist()]))
    return pa.StructArray.from_arrays([strings, kept], [TEXT, COLUMNS])


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _join_rows(
    path: Path, rows: Iterable[tuple[str, Row]], template: Template, kept: Kept
) -> Iterator[Document]:
    """The documents of rows; null where a row lacks a column of the text or has null there."""
    missing = set(template.columns)  # in every row so far
    seen: Row = {}
    for number, (place, row) in enumerate(rows):
        values = template.values(row)
        if missing:
            missing -= {c for c, v in zip(template.columns, values, strict=True) if v is not None}
            missing -= row.keys()
            seen = {**row, **seen} if len(seen) < 1000 else seen
            if number == _MAX_ROWS_WITHOUT:
                template.check(path, seen, json_paths(seen))
        for column, value in zip(template.columns, values, strict=True):
            if not isinstance(value, str | None):
                kind = value.kind if isinstance(value, Misfit) else type(value).__name__
                where = f"{path}, {place}"
                raise not_text(where, column, f"a JSON {kind}", json_paths(row), template)
        yield template.join(values), kept.of_row(f"{path}, {place}", row) if kept else None
    if missing and seen:
        template.check(path, seen, json_paths(seen))


def _noted(path: Path, rows: Iterable[tuple[str, Row]], kept: Kept) -> Iterator[tuple[str, Row]]:
    """The same rows; `kept` takes in their names."""
    for place, row in rows:
        kept.note(path, row)
        yield place, row


def _alone(document: bytes) -> Document:
    return document, None


def _batches(path: Path, documents: Iterable[Document]) -> Iterator[pa.Array]:
    """Documents → arrays of some megabytes, at least one document each."""
    batch: list[bytes | None] = []
    columns: list[str] = []
    size = 0
    for document, kept in documents:
        length = len(document or b"")
        text.check_size(path, length)
        batch.append(document)
        del document  # so that a large one is in memory once
        size += length
        if kept is not None:
            columns.append(kept)
            size += len(kept)
        if size >= text.CHUNK_BYTES:
            yield _array_of(batch, columns)
            size = 0
    if batch:
        yield _array_of(batch, columns)


def _array_of(batch: list[bytes | None], columns: list[str]) -> pa.Array:
    array = pa.array(batch, pa.large_binary())
    batch.clear()
    if columns:
        kept = pa.array(columns, pa.string())
        columns.clear()
        return pa.StructArray.from_arrays([array, kept], [TEXT, COLUMNS])
    return array
