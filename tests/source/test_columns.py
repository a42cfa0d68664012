"""The columns that a source keeps next to its documents: the same values from every format."""

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import slm.source.formats.kept
from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import Source
from slm.source import download as download_stage
from slm.source.download import download
from slm.source.reading import columns_of, documents_sha256, kept_columns, source_texts

Config = Callable[..., PipelineConfig]

ROWS: list[dict[str, Any]] = [
    {"text": "A cat sat.", "lang": "en", "score": 0.5, "tags": ["a", "b"], "meta": {"url": "u"}},
    {"text": "Ein Hund.", "lang": "de", "score": None, "tags": [], "meta": {"url": None}},
    {"text": None, "lang": "xx", "score": 9.0, "tags": None, "meta": None},  # is left out
    {"text": "Zoë ran.", "lang": None, "score": 2.0, "tags": None, "meta": None},
]
NAMES = ["lang", "score", "tags", "meta"]
KEPT = [{name: row[name] for name in NAMES} for row in ROWS if row["text"] is not None]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config_of(tiny_config: Config) -> Callable[..., PipelineConfig]:
    def config(path: Path, columns: list[str], **fields: Any) -> PipelineConfig:
        given = {"source": "files", "path": str(path), "columns": columns, **fields}
        settings = {f"data.{key}": value for key, value in given.items()}
        return tiny_config(**{"data.documents": None, **settings})

    return config


def kept(source: Source) -> list[Any]:
    """What is kept next to each document, in order."""
    files = [name for split in source.splits.values() for name in split.files]
    rows = [
        (source.path / f, i)
        for f in files
        for i in range(pq.read_metadata(source.path / f).num_rows)
    ]
    return [columns_of(path, row) for path, row in rows]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.json"])
def test_every_format_gives_the_same_values(
    tmp_path: Path, data_root: Path, config_of: Config, name: str
) -> None:
    source = download(config_of(write(tmp_path / name, ROWS), NAMES))
    assert list(source_texts(source)) == ["A cat sat.", "Ein Hund.", "Zoë ran."]
    assert kept(source) == KEPT
    assert kept_columns(source) == NAMES
    assert source.dropped == {"null": 1}
    assert source.splits["train"].bytes == sum(len(t.encode()) for t in source_texts(source))


def test_a_csv_has_texts(tmp_path: Path, data_root: Path, config_of: Config) -> None:
    (tmp_path / "a.csv").write_text("lang,text,score\nen,A cat.,0.5\n,A dog.,\n")
    source = download(config_of(tmp_path / "a.csv", ["score", "lang"]))
    assert kept(source) == [{"score": "0.5", "lang": "en"}, {"score": "", "lang": ""}]


def test_values_of_other_types_in_other_rows_and_files(
    tmp_path: Path, data_root: Path, config_of: Config
) -> None:
    values = [1, 1.5, "one", [1, "a"], {"a": {"b": None}}, None, True, 2**80, float("nan")]
    rows = [{"text": f"t{i}", "v": value} for i, value in enumerate(values)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [*rows[:4], {"text": "no such column here"}])
    write(tmp_path / "in" / "b.jsonl", rows[4:])
    seen = [each["v"] for each in kept(download(config_of(tmp_path / "in", ["v"])))]
    assert seen[:4] + seen[5:-1] == values[:-1]
    assert seen[4] is None
    assert seen[-1] != seen[-1]  # not a number


def test_what_json_has_no_form_for_is_text(
    tmp_path: Path, data_root: Path, config_of: Config
) -> None:
    moment = datetime.datetime(2026, 11, 26, 23, 3, tzinfo=datetime.UTC)
    table = pa.table({
        "text": ["a cat"],
        "at": pa.array([moment], pa.timestamp("ns", "UTC")),
        "day": pa.array([moment.date()]),
        "price": pa.array([decimal.Decimal("1.50")]),
        "raw": pa.array([b"caf\xe9"], pa.binary()),
        "kind": pa.array(["k"]).dictionary_encode(),
        "nested": pa.array([{"day": moment.date(), "raw": b"ok"}]),
        "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    [values] = kept(download(config_of(tmp_path / "a.parquet", table.column_names[1:])))
    assert values == {
        "at": "2026-11-26T23:03:00+00:00", "day": "2026-11-26", "price": "1.50",
        "raw": b"caf\xe9".decode("utf-8", "surrogateescape"), "kind": "k",
        "nested": {"day": "2026-11-26", "raw": "ok"}, "pairs": [["k", 1]],
    }  # fmt: skip


def test_rows_that_are_no_text_are_left_out_with_their_columns(
    tmp_path: Path, data_root: Path, config_of: Config
) -> None:
    texts = pa.array([b"a cat", b"\xff", None, b"a dog"], pa.binary())
    pq.write_table(pa.table({"text": texts, "n": [0, 1, 2, 3]}), tmp_path / "a.parquet")
    source = download(config_of(tmp_path / "a.parquet", ["n"]))
    assert source.dropped == {"null": 1, "not text": 1}
    assert kept(source) == [{"n": 0}, {"n": 3}]


def test_text_and_columns_stay_together_over_row_groups_and_files(
    tmp_path: Path, data_root: Path, config_of: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large what is kept is: it counts where they are cut."""
    monkeypatch.setattr(download_stage, "ROW_GROUP_BYTES", 2000)
    monkeypatch.setattr(download_stage, "FILE_BYTES", 20_000)
    rows = [{"text": f"number {i}", "n": i, "page": "x" * (500 * (i % 3))} for i in range(300)]
    path = write(tmp_path / "a.jsonl", rows)
    source = download(config_of(path, ["n", "page"], documents=250))
    assert [f"number {each['n']}" for each in kept(source)] == list(source_texts(source))
    assert source.documents == 250
    assert len(source.splits["train"].files) > 2
    sizes = [
        pq.read_metadata(source.path / name).row_group(0).num_rows
        for name in source.splits["train"].files
    ]
    assert max(sizes) < 100


def test_the_bytes_do_not_depend_on_how_the_rows_came(tmp_path: Path, config_of: Config) -> None:
    files = []
    for name in ("a.parquet", "a.jsonl"):
        source = download(config_of(write(tmp_path / name, ROWS), NAMES), root=tmp_path / name[2:])
        files.append({name: entry.sha256 for name, entry in source.files.items()})
    assert files[0] == files[1]


def test_of_many_small_files_some_may_lack_a_column(
    tmp_path: Path, data_root: Path, config_of: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(12):
        write(folder / f"{i:02d}.json", [{"text": f"t{i}", **({"lang": "en"} if i == 9 else {})}])
    values = [each["lang"] for each in kept(download(config_of(folder, ["lang"])))]
    assert values == [None] * 9 + ["en", None, None]
    with pytest.raises(UserError, match=f"data.path={folder}: data.columns: unknown column 'lng'"):
        download(config_of(folder, ["lng"]))
    monkeypatch.setattr(slm.source.formats.kept, "MAX_OBJECTS_WITHOUT", 5)
    with pytest.raises(UserError, match=r"04\.json: data\.columns: unknown column 'lang'"):
        download(config_of(folder, ["lang"], documents=11))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.json", "a.csv"])
def test_a_column_that_is_not_there_is_one_message(
    tmp_path: Path, data_root: Path, config_of: Config, name: str
) -> None:
    path = tmp_path / name
    rows = [{"text": "a cat", "lang": "en", "score": 1}]
    if name == "a.csv":
        path.write_text("text,lang,score\na cat,en,1\n")
    else:
        write(path, rows)
    with pytest.raises(UserError) as raised:
        download(config_of(path, ["lng"]))
    where = f"data.path={path}" if "json" in name else path
    assert str(raised.value) == (
        f"{where}: data.columns: unknown column 'lng': did you mean 'lang'? (columns: text, lang, "
        "score)"
    )
    assert not list((data_root / "sources").glob("[!.]*")) if data_root.exists() else True
    with pytest.raises(UserError, match=r"unknown column 'xyz': valid: lang, score, text$"):
        download(config_of(path, ["xyz"]))
    with pytest.raises(UserError, match=r"unknown column 'lang\.a': name 'lang', which it is in"):
        download(config_of(path, ["lang.a"]))


def test_what_has_no_columns_is_refused(
    tmp_path: Path, data_root: Path, config_of: Config, tiny_config: Config
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("a cat")
    (folder / "b.txt").write_text("a dog")
    for path in (folder, folder / "a.txt", folder / "*.txt"):
        with pytest.raises(UserError) as raised:
            download(config_of(path, ["lang"]))
        assert str(raised.value) == (
            f"data.path={path}: data.columns names lang, and text files have no columns but the "
            "document itself (text): leave data.columns out, or give parquet, Arrow, JSON lines, "
            "CSV or TSV"
        )
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match="an archive of text files has no columns"):
        download(config_of(tmp_path / "a.zip", ["lang"]))
    with pytest.raises(UserError, match="generated stories have no columns but their text"):
        tiny_config(**{"data.columns": ["lang"]})
    with pytest.raises(UserError, match=r"data\.columns names 'a' twice"):
        tiny_config(**{"data.source": "files", "data.path": "x", "data.columns": ["a", "a"]})
    with pytest.raises(UserError, match=r"data\.columns has an empty name"):
        tiny_config(**{"data.source": "files", "data.path": "x", "data.columns": [""]})


def test_without_the_setting_nothing_is_another(
    tmp_path: Path, data_root: Path, config_of: Config
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    plain, more = config_of(path, []), config_of(path, ["lang"])
    assert "columns" not in keys.stage_fields("download", plain)
    source = download(plain)
    [name] = source.files
    assert pq.read_schema(source.path / name).names == ["text"]
    assert kept_columns(source) == []
    assert columns_of(source.path / name, 0) is None
    both = download(more)
    assert both.key != source.key
    assert documents_sha256(both, "train") != documents_sha256(source, "train")
    other = download(config_of(write(tmp_path / "b.jsonl", ROWS[::-1]), ["lang"]))
    assert documents_sha256(both, "train") != documents_sha256(other, "train")
    assert storage.content_hash(both) != storage.content_hash(source)
