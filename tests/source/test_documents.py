import csv
import gzip
import hashlib
import io
import json
import os
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
from slm.source import documents
from slm.source.documents import format_of, read_documents

TEXTS = ["Once upon a time.", "Zoë said:\n\n“<|endoftext|>”", "NUL \0 inside", "", "🦊" * 50]


def read(path: Path, dropped: Counter[str] | None = None, **fields: Any) -> list[str]:
    data = DataConfig(source="files", path=str(path), **fields)
    arrays = read_documents(path, data, Counter() if dropped is None else dropped)
    return [text for array in arrays for text in array.to_pylist()]


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
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
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_arrow_text_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": pa.array(TEXTS).cast(kind)})
    assert read(path) == TEXTS


def test_parquet_rows_keep_their_order_over_row_groups(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=700)
    assert read(path) == texts


def test_text_is_one_document_a_file_or_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\n<|endoftext|>\n three \n<|endoftext|>\n".encode())
    assert read(path) == ["one\ntwo\n<|endoftext|>\n three \n<|endoftext|>\n"]
    assert read(path, separator="<|endoftext|>") == ["one\ntwo", "three"]
    assert read(path, separator="\n") == ["one", "two", "<|endoftext|>", "three", "<|endoftext|>"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="|\r\ufeff", exclude_categories=["Cs"]))
    ),
    chunk=st.integers(1, 9),
)
def test_pieces_of_any_size_give_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], chunk: int
) -> None:
    monkeypatch.setattr(documents, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("||||".join(texts).encode())
    assert read(path, separator="||||") == [t.strip() for t in texts if t.strip()]


def test_a_document_larger_than_any_buffer(tmp_path: Path) -> None:
    large = "é" * 6_000_000
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": large}, ensure_ascii=False) + "\n" + '{"text": "b"}')
    assert read(path) == [large, "b"]


def test_a_document_that_arrow_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
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
    monkeypatch.setattr(documents, "CHUNK_BYTES", chunk)
    path = tmp_path / name
    good = {"a.txt": b"a", "a.jsonl": b'{"text": "a"}', "a.csv": b"text"}[name]
    path.write_bytes(good + b"\n" + good + b"\n" + "Zoë".encode("latin-1") + b"\nmore\n")
    with pytest.raises(UserError, match=rf"{name}, line 3: not UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.json", '[\n {"text": "a"}\n]', r"a\.json, line 1: not JSON.*jq -c"),
        ("a.json", '[{"text": "a"}]', r"a\.json, line 1: a JSON list, not an object"),
        ("a.jsonl", '{"texts": "a"}', r"unknown column 'text': did you mean 'texts'"),
        ("a.jsonl", '{"text": 5, "name": "b"}', r"'text' is not text but .*int.*columns: name"),
        ("a.csv", "id,body\n1,b\n", r"a\.csv: unknown column 'text'"),
        ("a.csv", "id,text\n1,b\n2\n", r"a\.csv, line 3: 1 fields, the header names 2"),
        ("a.csv", 'id,text\n1,"b\n', r"a\.csv, line 3: not CSV"),
        ("a.csv", "id;text\n1;b, c\n", r"a\.csv: .* separated by ';', not by commas"),
        ("a.xml", "<a/>", r"a\.xml is not in a supported format"),
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
    columns = {"text": pa.array([b"a"]), "n": [1], "story": ["b"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match="'text' is not text but binary; text columns: story"):
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
    assert format_of(Path("a.txt.zst")) == "txt"
    assert format_of(Path("a.parquet.gz")) is None
    assert format_of(Path("gz")) is None
    assert format_of(Path("a.gz")) is None
