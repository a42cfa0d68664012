"""Files of documents → Arrow arrays of text, a few megabytes at a time, whatever the format.

parquet · JSON lines · CSV with a header · plain text (one document per file, or split on a
separator). The last three may be compressed (.gz, .zst) and must be UTF-8.

Only text is passed on. A file that is not UTF-8 is an error that names the line; a row whose value
is null, or has no UTF-8 form (a lone surrogate escaped in JSON, stray bytes in parquet), is left
out and counted.
"""

import codecs
import csv
import io
import json
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm.config import DataConfig
from slm.errors import CorruptionError, UserError, unknown

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".txt": "txt",
}
COMPRESSIONS = (".gz", ".zst")
NULL, NOT_TEXT = "null", "not text"  # why a row is left out

MAX_DOCUMENT_BYTES = 2_000_000_000  # of a document: Arrow's strings end at 2 GiB
CHUNK_BYTES = 4 << 20
_BATCH_ROWS = 1024

Row = dict[str, Any]


def format_of(path: PurePath) -> str | None:
    """`parquet`, `jsonl`, `csv` or `txt` by a file's name; None for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if packed:
        suffixes.pop()
    kind = FORMATS.get(suffixes[-1]) if suffixes else None
    return None if packed and kind == "parquet" else kind


def read_documents(path: Path, data: DataConfig, dropped: Counter[str]) -> Iterator[pa.Array]:
    """The documents of one file in order, as arrays of type string without nulls.

    Args:
        path: the file; its name gives the format.
        data: `text_column`, or the `template` that joins several columns; `separator` of text.
        dropped: gets the number of rows left out, by reason.

    Raises UserError where the file is not of that format, lacks the column or is not UTF-8,
    CorruptionError where its bytes are damaged.
    """
    check_name(path)
    template = Template(data)
    kind = format_of(path)
    if kind == "parquet":
        arrays = _read_parquet(path, template)
    elif kind == "jsonl":
        arrays = _batches(path, _join_rows(path, _json_rows(path), template))
    elif kind == "csv":
        arrays = _batches(path, _join_rows(path, _csv_rows(path, template), template))
    elif kind == "txt":
        arrays = _batches(path, _text_documents(path, data.separator))
    else:
        raise UserError(f"{path} is not in a supported format: {', '.join(FORMATS)}")
    return (_only_text(array, dropped) for array in arrays)


def check_name(name: PurePath | str, where: str = "") -> None:
    """Raises UserError for a name that is not UTF-8, which neither records nor Arrow can hold."""
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        # A stray byte is a surrogate in Python's names: "caf\udce9" is shown as caf\xe9.
        shown = re.sub("[\udc80-\udcff]", lambda m: rf"\x{ord(m[0]) - 0xDC00:02x}", str(name))
        shown = shown.encode(errors="backslashreplace").decode()
        raise UserError(
            rf"{where}the name {shown} is not UTF-8 (\x… are its stray bytes): rename it"
        ) from error


def _only_text(array: pa.Array, dropped: Counter[str]) -> pa.Array:
    """Binary values → the strings among them; the others are counted."""
    dropped[NULL] += array.null_count
    array = array.drop_null()
    try:
        return array.cast(pa.string())  # checks that the bytes are UTF-8
    except pa.ArrowInvalid:
        texts = [value for value in array.to_pylist() if _is_utf8(value)]
        dropped[NOT_TEXT] += len(array) - len(texts)
        return pa.array(texts, pa.binary()).cast(pa.string())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- templates --------------------------------------------------------------------------------


class Template:
    """`"{title}\\n\\n{body}"`: literal text and the columns between it."""

    def __init__(self, data: DataConfig) -> None:
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

    def check(self, where: Path | str, names: Iterable[str]) -> None:
        """Raises UserError if the columns `names` of `where` lack one that is joined."""
        present = list(names)
        for column in self.columns:
            if column not in present:
                raise UserError(
                    f"{where}: {unknown('column', column, present)} "
                    f"(columns: {', '.join(present) or 'none'}; set data.text_column)"
                )

    def join(self, row: Row) -> bytes | None:
        """The document of a row; None where one of its columns is null."""
        values = [row.get(column) for column in self.columns]
        if None in values:
            return None
        texts = [literal + (row[column] if column else "") for literal, column in self.parts]
        return "".join(texts).encode("utf-8", "surrogatepass")

    def join_batch(self, batch: pa.RecordBatch) -> pa.Array:
        """The documents of a batch, as bytes; null where one of the columns is null."""
        pieces: list[Any] = []
        for literal, column in self.parts:
            pieces.append(pa.scalar(literal.encode(), pa.large_binary()))
            if column is not None:
                pieces.append(batch.column(column).cast(pa.large_binary()))
        return pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))


# ---- parquet ----------------------------------------------------------------------------------


def _read_parquet(path: Path, template: Template) -> Iterator[pa.Array]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptionError(f"{path} cannot be read as parquet: {_first_line(error)}") from error
    with file:
        schema = file.schema_arrow
        template.check(path, schema.names)
        _check_types(path, schema, template.columns)
        for group in range(file.num_row_groups):
            rows = 0
            try:
                for batch in file.iter_batches(_BATCH_ROWS, [group], template.columns):
                    rows += len(batch)
                    yield template.join_batch(batch)
            except (pa.ArrowException, OSError) as error:
                raise CorruptionError(
                    f"{path}, row group {group} of {file.num_row_groups}: {_first_line(error)}; "
                    "the file is damaged: get it again"
                ) from error
            if rows != file.metadata.row_group(group).num_rows:
                raise CorruptionError(
                    f"{path}, row group {group}: {rows} rows, not as many as its footer records"
                )


def _check_types(path: Path, schema: pa.Schema, columns: Iterable[str]) -> None:
    texts = [field.name for field in schema if _is_text(field.type)]
    for column in columns:
        if (kind := schema.field(column).type) and not _is_text(kind):
            raise _not_text(path, column, kind, texts)


def _not_text(where: object, column: str, kind: object, texts: list[str]) -> UserError:
    return UserError(
        f"{where}: column {column!r} is not text but {kind}; "
        f"text columns: {', '.join(texts) or 'none'}; set data.text_column"
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- JSON lines, CSV, text --------------------------------------------------------------------


def _chunks(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces, decompressed, newlines as `\\n`."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    lines = 1
    try:
        if path.suffix.lower() in COMPRESSIONS and not path.stat().st_size:
            raise EOFError
        with pa.input_stream(str(path), compression="detect") as stream:
            ended = False
            while not ended:
                data = stream.read(CHUNK_BYTES)
                ended = not data
                text = decoder.decode(data, final=ended)
                lines += text.count("\n")
                yield text
    except UnicodeDecodeError as error:
        lines += bytes(error.object)[: error.start].count(b"\n")
        raise UserError(
            f"{path}, line {lines}: not UTF-8 text ({error.reason}); convert the file, for "
            "example with iconv -t utf-8"
        ) from error
    except EOFError as error:
        raise CorruptionError(f"{path} is empty, not even a compressed file") from error
    except (pa.ArrowException, OSError) as error:
        if not path.is_file():
            raise UserError(f"{path} does not exist") from error
        raise CorruptionError(f"{path} is damaged or cut short: {_first_line(error)}") from error


def _split(chunks: Iterable[str], separator: str) -> Iterator[str]:
    pending = ""
    for chunk in chunks:
        *whole, pending = (pending + chunk).split(separator)
        yield from whole
    yield pending


def _text_documents(path: Path, separator: str | None) -> Iterator[bytes]:
    if separator is None:
        yield "".join(_chunks(path)).encode()
        return
    for piece in _split(_chunks(path), separator):
        if text := piece.strip():  # nothing follows the last separator
            yield text.encode()


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_split(_chunks(path), "\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); write one object per line, without "
                "line breaks in it, for example with jq -c"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: a JSON {type(row).__name__}, not an object; write one "
                "object per line, for example with jq -c '.[]'"
            )
        yield number, row


def _csv_rows(path: Path, template: Template) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default is 128 kB per field
    reader = csv.reader((line + "\n" for line in _split(_chunks(path), "\n")), strict=True)
    try:
        names = next(reader, [])
        if len(names) == 1 and names[0] not in template.columns:
            _check_separator(path, names[0])
        for values in reader:
            if not values:
                continue
            if len(values) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(values)} fields, "
                    f"the header names {len(names)}"
                )
            yield reader.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _check_separator(path: Path, header: str) -> None:
    if separator := re.search(r"[;\t|]", header):
        raise UserError(
            f"{path}: its fields seem to be separated by {separator[0]!r}, not by commas (header: "
            f"{header!r}); save it with commas or as JSON lines"
        )


def _join_rows(
    path: Path, rows: Iterable[tuple[int, Row]], template: Template
) -> Iterator[bytes | None]:
    for position, (number, row) in enumerate(rows):
        if position == 0:
            template.check(path, row)
        for column in template.columns:
            if not isinstance(value := row.get(column), str | None):
                texts = [name for name in row if isinstance(row[name], str)]
                kind = f"a JSON {type(value).__name__}"
                raise _not_text(f"{path}, line {number}", column, kind, texts)
        yield template.join(row)


def _batches(path: Path, documents: Iterable[bytes | None]) -> Iterator[pa.Array]:
    """Documents → arrays of some megabytes, at least one document each."""
    batch: list[bytes | None] = []
    size = 0
    for document in documents:
        if document and len(document) > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{path}: a document of {len(document):,} bytes; the largest possible has "
                f"{MAX_DOCUMENT_BYTES:,}; set data.separator to split a text file"
            )
        batch.append(document)
        size += len(document or b"")
        if size >= CHUNK_BYTES:
            yield pa.array(batch, pa.large_binary())
            batch, size = [], 0
    if batch:
        yield pa.array(batch, pa.large_binary())
