import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.config import DataConfig
from slm.errors import CorruptionError, UserError
from slm.source.documents import FORMATS, check_contents, format_of, read_documents
from slm.source.formats import text as text_files

TEXTS = ["Once upon a time.", "Zoë said:\n\n“<|endoftext|>”", "NUL \0 inside", "", "🦊" * 50]


def read(path: Path, dropped: Counter[str] | None = None, **fields: Any) -> list[str]:
    data = DataConfig(source="files", path=str(path), **fields)
    arrays = read_documents(path, data, Counter() if dropped is None else dropped)
    return [text for array in arrays for text in array.to_pylist()]


def trimmed(piece: str) -> str:
    """A piece without blank lines at its ends, and blanks at its end."""
    lines = piece.splitlines(keepends=True)
    while lines and not lines[0].strip():
        del lines[0]
    return "".join(lines).rstrip()


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_arrow(path: Path, columns: dict[str, Any], open_writer: Any) -> Path:
    """An Arrow file or stream, of several batches."""
    table = pa.table(columns)
    with open_writer(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path


def write_json(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(texts: list[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([("id", "text"), *((str(i), text) for i, text in enumerate(texts))])
    return file.getvalue().encode()


def as_json(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "A.NDJSON", "a b/é.jsonl"])
@pytest.mark.parametrize("compress", ["", ".gz", ".zst"])
def test_rows_come_back_from_every_format(tmp_path: Path, name: str, compress: str) -> None:
    path = tmp_path / (name + compress)
    path.parent.mkdir(exist_ok=True)
    data = as_csv(TEXTS) if ".csv" in name else as_json(TEXTS)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compress]
    path.write_bytes(pack(data))
    assert read(path) == [text.replace("\r\n", "\n") for text in TEXTS]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_every_arrow_text_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"text": pa.array([*TEXTS, None]).cast(kind)}
    dropped: Counter[str] = Counter()
    assert read(write_parquet(tmp_path / "a.parquet", columns), dropped) == TEXTS
    for name, write in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        assert read(write_arrow(tmp_path / name, columns, write), dropped) == TEXTS
    assert dropped == {"null": 3}


def test_a_column_of_nulls_alone_is_counted(tmp_path: Path) -> None:
    dropped: Counter[str] = Counter()
    columns = {"text": pa.nulls(5), "id": [1, 2, 3, 4, 5]}
    assert read(write_parquet(tmp_path / "a.parquet", columns), dropped) == []
    assert dropped == {"null": 5}


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.99])
def test_an_arrow_file_cut_short_is_refused(tmp_path: Path, write: Any, keep: float) -> None:
    path = write_arrow(tmp_path / "a.arrow", {"text": ["word " * 9] * 1000}, write)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptionError, match=r"a\.arrow"):
        read(path)


def test_parquet_rows_keep_their_order_over_row_groups(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=700)
    assert read(path) == texts


def test_text_is_one_document_a_file_or_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\n<|endoftext|>\n three \n<|endoftext|>\n".encode())
    assert read(path) == ["one\ntwo\n<|endoftext|>\n three \n<|endoftext|>\n"]
    assert read(path, separator="<|endoftext|>") == ["one\ntwo", " three"]
    assert read(path, separator="\n") == ["one", "two", "<|endoftext|>", " three", "<|endoftext|>"]
    assert read(path, separator="\r\n") == read(path, separator="\n")


def test_the_first_line_of_a_piece_keeps_its_indentation(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("def f():\n    return 1\n\n    indented \n  second\n \n\n \n\t\n\n\n\tx\n\n")
    pieces = ["def f():\n    return 1", "    indented \n  second", "\tx"]
    assert read(path, separator="\n\n") == pieces


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(
            st.characters(
                exclude_characters="|\ufeff",
                exclude_categories=["Cs", "Cc"],
                include_characters="\n\t\f\x85",
            )
        )
    ),
    chunk=st.integers(1, 9),
)
def test_pieces_of_any_size_give_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], chunk: int
) -> None:
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("||||".join(texts).encode())
    assert read(path, separator="||||") == [trimmed(t) for t in texts if t.strip()]
    rows = [{"text": text} for text in texts]
    for name, content in (
        ("a.json", json.dumps(rows)),
        ("b.json", json.dumps(rows, indent=2, ensure_ascii=False)),
        ("a.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read(tmp_path / name) == texts


def test_a_document_larger_than_any_buffer(tmp_path: Path) -> None:
    large = "é" * 6_000_000
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": large}, ensure_ascii=False) + "\n" + '{"text": "b"}')
    assert read(path) == [large, "b"]


def test_a_document_that_arrow_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.txt").write_text("ä\n" * 50)
    with pytest.raises(UserError, match=r"a\.txt: a document of 150 bytes.*data\.separator"):
        read(tmp_path / "a.txt")
    assert len(read(tmp_path / "a.txt", separator="\n")) == 50


def test_a_template_joins_columns(tmp_path: Path) -> None:
    rows = [{"title": "T", "body": "B"}, {"title": None, "body": "C"}, {"title": "{U}", "body": ""}]
    expected = ["{T}\n\nB.", "{{U}}\n\n."]
    columns = {name: [row[name] for row in rows] for name in ("title", "body")}
    for path in (
        write_json(tmp_path / "a.jsonl", rows),
        write_parquet(tmp_path / "a.parquet", columns),
    ):
        dropped: Counter[str] = Counter()
        assert read(path, dropped, template="{{{title}}}\n\n{body}.") == expected
        assert dropped == {"null": 1}


CHAT = [
    {"id": 1, "messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Yes"}]},
    {"id": 2, "messages": [{"role": "user", "content": "é"}]},
    {"id": 3, "messages": []},
    {"id": 4, "messages": None},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_template_takes_one_item_of_a_list(tmp_path: Path, name: str) -> None:
    columns = {key: [row[key] for row in CHAT] for key in CHAT[0]}
    path = tmp_path / name
    write_json(path, CHAT) if name == "a.jsonl" else write_parquet(path, columns)
    dropped: Counter[str] = Counter()
    both = "{messages[0].content} → {messages[1].content}"
    assert read(path, dropped, template=both) == ["Hi → Yes"]
    assert dropped == {"null": 3}
    assert read(path, template="{messages[-1].content}") == ["Yes", "é"]
    assert read(path, text_column="messages[0].role") == ["user", "user"]
    for template, message in (
        ("{messages[0]}", r"column 'messages\[0\]' is not text.*in it"),
        ("{messages}", r"set data.template, such as \{messages\[\].content\} in it"),
        ("{id[0]}", "column 'id\\[0\\]'"),
        ("{message[0].content}", "unknown column 'message'|did you mean 'messages'"),
    ):
        with pytest.raises(UserError, match=message):
            read(path, template=template)


@pytest.mark.parametrize(
    "template", ["{", "no column", "{}", "{text!r}", "{text:>9}", "{text.__class__}", "{text[0]}"]
)
def test_a_template_that_is_more_than_columns_is_refused(tmp_path: Path, template: str) -> None:
    path = write_json(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UserError):
        read(path, template=template)


def test_rows_that_are_not_text_are_left_out_and_counted(tmp_path: Path) -> None:
    dropped: Counter[str] = Counter()
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "\\ud800"}\n{"text": null}\n{"other": 1}\n')
    assert read(path, dropped) == ["a"]
    assert dropped == {"null": 2, "not text": 1}

    dropped.clear()
    stray = pa.array([b"a", b"\xff\xfe", None, "é".encode()])
    text = pa.Array.from_buffers(pa.string(), len(stray), stray.buffers())
    assert read(write_parquet(tmp_path / "a.parquet", {"text": text}), dropped) == ["a", "é"]
    assert dropped == {"null": 1, "not text": 1}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_file_that_is_not_utf8_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk)
    path = tmp_path / name
    good = {"a.txt": b"a", "a.jsonl": b'{"text": "a"}', "a.csv": b"text"}[name]
    path.write_bytes(good + b"\n" + good + b"\n" + "Zoë".encode("latin-1") + b"\nmore\n")
    with pytest.raises(UserError, match=rf"{name}, line 3: not UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.json", '{\n "text": "a"\n}', r"a\.json, line 1: not JSON.*jq -c"),
        ("a.json", '["a"]', r"a\.json, element 1: a JSON str, not an object"),
        ("a.json", '[{"text": "a"}, {"text" "b"}]', r"a\.json, element 2: not JSON"),
        ("a.json", '[{"text": "a"}, {"text": "b"', r"a\.json, element 2: not JSON"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', r"a\.json, element 1: no ',' or ']' follows"),
        ("a.json", '[{"text": "a"}', r"a\.json, element 1: no ',' or ']' follows"),
        ("a.json", '[{"text": "a"}]\n[]', r"a\.json: something follows the end of its array"),
        ("a.jsonl", '{"texts": "a"}', r"unknown column 'text': did you mean 'texts'"),
        ("a.jsonl", '{"text": 5, "name": "b"}', r"'text' is not text but .*int.*columns: name"),
        ("a.csv", "id,body\n1,b\n", r"a\.csv: unknown column 'text'"),
        ("a.csv", "id,text\n1,b\n2\n", r"a\.csv, line 3: 1 fields, the header names 2"),
        ("a.csv", 'id,text\n0,"a\nb"\n1,"c\nd\n', r"a\.csv, line 4: a quote opens in this row"),
        ("a.csv", 'id,text\n1,"b" c\n', r"a\.csv, line 2: not CSV .*inside a field as"),
        ("a.csv", 'id,text\n1,"a \\"b\\" c"\n', r"a\.csv, line 2: .*escaped by backslashes"),
        ("a.csv", "id;text\n1;b, c\n", r"a\.csv: .* separated by ';', not by commas"),
        ("a.csv", '"id";"text"\n"1";"b"\n', r"a\.csv: .* separated by ';', not by commas"),
        ("a.csv", "id\ttext\n1\tb\n", r"a\.csv: .* separated by tabs, .*name it \.tsv"),
        ("a.tsv", "id,text\n1,b\n", r"a\.tsv: .* separated by commas, .*name it \.csv"),
        ("a.csv", "text,text\n1,b\n", r"a\.csv: 2 columns are called 'text'"),
        ("a.xml", "<a/>", r"a\.xml is not in a supported format.*data\.format=text"),
    ],
)
def test_a_wrong_file_is_named_with_the_remedy(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), [{"text": "a"}])
    with pytest.raises(UserError, match=r"caf\\xe9\.jsonl is not UTF-8.*rename"):
        read(path)


def test_a_column_that_is_not_text_lists_those_that_are(tmp_path: Path) -> None:
    columns = {"text": [2], "n": [1], "story": ["b"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match="'text' is not text but int64; text columns: story"):
        read(path)
    with pytest.raises(UserError, match="unknown column 'storry': did you mean 'story'"):
        read(path, text_column="storry")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_page_names_file_and_row_group(tmp_path: Path, compression: str) -> None:
    texts = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(1000)]
    path = write_parquet(
        tmp_path / "a.parquet",
        {"text": texts},
        row_group_size=250,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 200] ^= 1
    path.write_bytes(content)
    arrays = read_documents(path, DataConfig(source="files", path=str(path)), Counter())
    assert next(arrays).to_pylist() + next(arrays).to_pylist() == texts[:500]
    with pytest.raises(CorruptionError, match=r"a\.parquet, row group 2 of 4"):
        next(arrays)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_never_a_short_file(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    texts = [f"document {i}" for i in range(2000)]
    if name.endswith(".parquet"):
        write_parquet(path, {"text": texts})
    else:
        pack = gzip.compress if name.endswith(".gz") else zstandard.compress
        path.write_bytes(pack(as_json(texts)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptionError, match=name):
        read(path)


def test_formats_by_name() -> None:
    assert format_of(Path("x/a.b.JSONL.gz")) == "jsonl"
    assert format_of(Path("a.txt.zst")) == "text"
    assert format_of(Path("README.md")) is None
    assert format_of(Path("a.md.gz"), "text") == format_of(Path("Makefile"), "text") == "text"
    assert format_of(Path("a.txt"), "jsonl") == "jsonl"
    assert format_of(Path("a.parquet.gz")) is None
    assert format_of(Path("gz")) is None
    assert format_of(Path("a.gz")) is None


# ---- nested columns ---------------------------------------------------------------------------


NESTED = [
    {
        "lines": ["a", None, "b"],
        "chat": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": None}],
        "meta": {"title": "T"},
    },
    {"lines": [], "chat": None, "meta": {"title": None}},
    {"lines": ["c"], "chat": [{"role": "user", "content": "é"}], "meta": None},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_a_path_leads_into_lists_and_objects(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        write_json(path, NESTED)
    elif name == "a.json":
        path.write_text(json.dumps(NESTED))
    else:
        columns = {key: [row[key] for row in NESTED] for key in NESTED[0]}
        if name == "a.parquet":
            write_parquet(path, columns)
        else:
            write_arrow(path, columns, pa.ipc.new_stream)
    dropped: Counter[str] = Counter()
    assert read(path, dropped, text_column="lines[]") == ["a\nb", "c"]
    assert read(path, dropped, text_column="chat[].content") == ["Hi", "é"]
    assert read(path, dropped, template="{meta.title}: {chat[].role}") == ["T: user\nbot"]
    assert dropped == {"null": 4}
    for column, remedy in (
        ("lines", "lines[]"),
        ("chat", "chat[].content"),
        ("chat.content", "chat[].content"),
        ("meta[]", "meta.title"),
    ):
        with pytest.raises(UserError, match=r"is not text") as refused:
            read(path, text_column=column)
        assert f"such as data.text_column={remedy}" in str(refused.value)
    with pytest.raises(
        UserError, match=r"unknown column 'text'.*data\.text_column=chat\[\]\.content"
    ):
        read(path)


def test_a_column_whose_name_looks_like_a_path_is_that_column(tmp_path: Path) -> None:
    rows = [{"a.b": "x", "a": {"b": "y"}}]
    assert read(write_json(tmp_path / "a.jsonl", rows), text_column="a.b") == ["x"]
    columns = {"a.b": ["x"], "c": ["y"]}
    assert read(write_parquet(tmp_path / "a.parquet", columns), text_column="a.b") == ["x"]


# ---- what is something else -------------------------------------------------------------------


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", content)
    return buffer.getvalue()


OTHERS = {
    "pointer": (POINTER, r"is a git-lfs pointer: .*git lfs pull"),
    "gzip": (gzip.compress(b"text"), r"is a gzip file: add \.gz"),
    "zstd": (zstandard.compress(b"text"), r"is a zstd file: add \.zst"),
    "xz": (lzma.compress(b"text"), r"is an xz file: .*unxz"),
    "bzip2": (bz2.compress(b"text"), r"is a bzip2 file: .*bunzip2"),
    "tar": (tar_of(b"text"), r"is a tar archive: .*tar -xf"),
    "zip": (zip_of(b"text"), r"is a zip archive: .*unzip"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"is a PNG image"),
    "pdf": (b"%PDF-1.7\n1 0 obj", r"is a PDF: .*pdftotext"),
}
NO_TEXT = {
    "utf-16": ("Once upon a time. Zoë".encode("utf-16"), r"is a UTF-16 file: .*utf-16 -t utf-8"),
    "utf-16le": ("Once upon a time.".encode("utf-16-le"), r"is a UTF-16 file: .*-f utf-16le"),
    "utf-16be": ("Once upon a time.".encode("utf-16-be"), r"is a UTF-16 file: .*-f utf-16be"),
    "cyrillic": ("Привет, мир и ты".encode("utf-16-le"), r"is a UTF-16 file: .*-f utf-16le"),
    "binary": (bytes(range(128)) * 9, r"is a binary file"),
}


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in FORMATS])
@pytest.mark.parametrize("other", OTHERS)
def test_the_same_message_in_every_format(tmp_path: Path, name: str, other: str) -> None:
    content, message = OTHERS[other]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)} {message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.md"])
@pytest.mark.parametrize("other", {**OTHERS, **NO_TEXT})
@pytest.mark.parametrize("compress", ["", ".gz", ".zst"])
def test_what_is_no_text_is_refused_compressed_or_not(
    tmp_path: Path, name: str, other: str, compress: str
) -> None:
    content, message = {**OTHERS, **NO_TEXT}[other]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compress]
    path = tmp_path / (name + compress)
    path.write_bytes(pack(content))
    with pytest.raises(UserError, match=message):
        read(path, format="text" if name == "a.md" else None)


def test_a_few_control_characters_are_text(tmp_path: Path) -> None:
    texts = ["\x1b[31mred\x1b[0m", "NUL \0 inside", "page\x0cpage", "mustard " * 40, "ï»¿"]
    for text in texts:
        (tmp_path / "a.txt").write_text(text)
        assert read(tmp_path / "a.txt") == [text]
    (tmp_path / "a.txt").write_text("\0".join("abcdefghi"))
    assert read(tmp_path / "a.txt", separator="\0") == list("abcdefghi")


def test_control_characters_after_the_beginning_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 1000 + bytes(100_000))
    with pytest.raises(UserError, match=r"a\.txt.*control characters"):
        read(tmp_path / "a.txt")


def test_a_compressed_name_without_compression_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_text("text")
    with pytest.raises(UserError, match=r"a\.txt\.gz is a file without gzip compression: remove"):
        read(tmp_path / "a.txt.gz")


def test_files_that_are_something_else_are_counted(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.txt").write_bytes(POINTER if i < 5 else b"text")
    (tmp_path / "8.txt").write_bytes(zip_of(b"text"))
    data = DataConfig(source="files", path=str(tmp_path))
    with pytest.raises(UserError) as refused:
        check_contents(tmp_path.iterdir(), data)
    message = str(refused.value)
    assert "5 of 9 files are git-lfs pointers" in message
    assert "1 of 9 files is a zip archive (8.txt)" in message


def test_a_long_zstd_window_is_named(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(as_json(["a"])) + packer.flush())
    with pytest.raises(UserError, match=r"longer window.*zstd -d --long=31 a\.jsonl\.zst"):
        read(path)


# ---- messages and odd rows --------------------------------------------------------------------


def test_values_from_data_are_shortened_in_messages(tmp_path: Path) -> None:
    long = "word " * 8000
    (tmp_path / "a.csv").write_text(f'"{long}"\n"{long}"\n')
    with pytest.raises(UserError, match=r"a\.csv has no header: its first line is") as refused:
        read(tmp_path / "a.csv")
    assert len(str(refused.value)) < 600
    columns = {f"column {i} {long}": ["a"] for i in range(100)}
    for path in (
        write_parquet(tmp_path / "a.parquet", columns),
        write_json(tmp_path / "a.jsonl", [dict.fromkeys(columns, "a")]),
    ):
        with pytest.raises(UserError, match=r"unknown column 'text'.* and 70 more") as refused:
            read(path)
        assert len(str(refused.value)) < 10_000


def test_a_parquet_file_with_two_columns_of_a_name(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "text", "other"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns are called 'text': rename"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_column="other") == ["c"]


def test_a_first_row_without_the_column_is_a_null_like_any_other(tmp_path: Path) -> None:
    dropped: Counter[str] = Counter()
    rows = [{"meta": "header"}, {"text": "a"}, {"meta": "b"}]
    assert read(write_json(tmp_path / "a.jsonl", rows), dropped) == ["a"]
    assert dropped == {"null": 2}


def test_a_column_that_no_row_has_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"texts": "a"}\n' * 10_001 + "no JSON\n")
    with pytest.raises(UserError, match="did you mean 'texts'"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_large_number_in_another_field_is_no_problem(tmp_path: Path, name: str) -> None:
    row = '{"n": ' + "7" * 5000 + ', "text": "a"}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    assert read(tmp_path / name) == ["a"]


def test_a_tsv_file_is_separated_by_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\ta, "b"\n2\t"c\td"\n')
    assert read(tmp_path / "a.tsv") == ['a, "b"', "c\td"]


def test_a_format_that_is_chosen_reads_any_name(tmp_path: Path) -> None:
    for name in ("a.md", "a.py", "notes", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        assert read(tmp_path / name, format="text") == ['{"text": "a"}\n']
        assert read(tmp_path / name, format="jsonl") == ["a"]


# ---- bounded by bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("dictionary", [True, False])
def test_batches_are_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    """Also where many rows are one entry of a dictionary, so that the file is small."""
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 10_000)
    texts = ["x" * 2_000, *["y" * 4_000] * 300, *map(str, range(3000)), "z" * 20_000]
    columns = {"text": pa.array(texts), "kind": pa.array(texts).dictionary_encode()}
    paths = [
        write_parquet(tmp_path / "a.parquet", columns, use_dictionary=dictionary),
        write_arrow(tmp_path / "a.arrow", columns, pa.ipc.new_file),
        write_json(tmp_path / "a.jsonl", [{"text": text, "kind": text} for text in texts]),
    ]
    for path in paths:
        for column in ("text", "kind"):
            data = DataConfig(source="files", path=str(path), text_column=column)
            arrays = list(read_documents(path, data, Counter()))
            assert [text for array in arrays for text in array.to_pylist()] == texts
            sizes = [sum(map(len, array.to_pylist())) for array in arrays]
            assert max(sizes[:-1]) <= 10_000 + 4_000
