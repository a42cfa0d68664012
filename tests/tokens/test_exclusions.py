"""Where every row of a source went, and that no key depends on the files that hold it."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_encode import make_config, make_source

from slm import storage
from slm.records import EXCLUDED, ROWS, Shards, Source, SourceSplit
from slm.source.stories import stories
from slm.tokens import encode as encode_stage
from slm.tokens import units
from slm.tokens.cleaning import ALSO_IN_VAL, BY_FUNCTION, DUPLICATE, EMPTY, NEAR_DUPLICATE
from slm.tokens.encode import encode
from slm.tokens.exclusions import SourceRows, document_rows, read_excluded
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2

TEXTS = list(stories(3, 0, 60))
COPIES = [TEXTS[5], " \n", "short", TEXTS[7], TEXTS[9] + " The end."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return gpt2(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch, base: Tokenizer) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(encode_stage, "gpt2", lambda root: base)


def source_texts(source: Source) -> dict[tuple[str, int], str]:
    return {
        (name, row): text
        for split in source.splits.values()
        for name in split.files
        for row, text in enumerate(pq.read_table(source.path / name)["text"].to_pylist())
    }


def placed(source: Source, shards: Shards, split: str) -> list[tuple[str, int]]:
    rows, place = document_rows(shards, split), SourceRows(source)
    assert rows is not None
    return [place(row) for row in rows.tolist()]


def texts_of(shards: Shards, split: str) -> list[str]:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    return [tokenizer.decode(ids.tolist()) for ids in documents(shards, split)]


@pytest.mark.parametrize(("own_val", "vocab_size"), [(True, 600), (False, 50257)])
def test_every_row_is_in_train_or_val_or_excluded_with_its_reason(
    tmp_path: Path, own_val: bool, vocab_size: int
) -> None:
    splits = {"train": TEXTS + COPIES}
    if own_val:
        splits["val"] = [TEXTS[7], "Of its own.", "Of its own."]
    source = make_source(tmp_path, splits)
    clean = {"min_chars": 8, "exact_duplicates": "everywhere", "near_duplicates": 0.8}
    config = make_config(clean=clean, vocab_size=vocab_size, val_fraction=0.2)
    shards = encode(config, source, root=tmp_path)
    texts, excluded = source_texts(source), list(read_excluded(shards))
    kept = {split: placed(source, shards, split) for split in ROWS}
    every = [*kept["train"], *kept["val"], *((each.file, each.row) for each in excluded)]
    assert sorted(every) == sorted(texts)
    for split, places in kept.items():
        assert texts_of(shards, split) == [texts[place] for place in places]
    assert Counter(each.reason for each in excluded) == shards.dropped
    assert {EMPTY, NEAR_DUPLICATE} < shards.dropped.keys()
    for each in excluded:
        assert texts[each.file, each.row].startswith(each.text.removesuffix("…"))
        assert each.bytes == len(texts[each.file, each.row].encode())
        if each.reason in (DUPLICATE, ALSO_IN_VAL):
            assert each.of is not None
            assert texts[each.of["file"], each.of["row"]] == texts[each.file, each.row]
    near = next(each for each in excluded if each.reason == NEAR_DUPLICATE)
    assert near.of == {"file": "train_00000.parquet", "row": 9}
    if own_val:
        counts = Counter((each.reason, each.split) for each in excluded)
        assert counts[DUPLICATE, "val"] == 1
        assert counts[ALSO_IN_VAL, "train"] == 2


def test_of_a_few_documents_both_parts_are_of_the_same_row(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": [*TEXTS[:4], " "]})
    shards = encode(make_config(), source, root=tmp_path)
    texts = source_texts(source)
    for head, end in zip(
        placed(source, shards, "train"), placed(source, shards, "val"), strict=True
    ):
        assert head == end
    parts = zip(texts_of(shards, "train"), texts_of(shards, "val"), strict=True)
    assert ["".join(each) for each in parts] == list(texts.values())[:4]
    assert [(each.split, each.row) for each in read_excluded(shards)] == [("train", 4)]


def test_the_files_are_recorded_and_no_key_depends_on_them(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": TEXTS + COPIES})
    shards = encode(make_config(), source, root=tmp_path)
    assert {EXCLUDED, *ROWS.values()} < shards.files.keys()
    older = {name: e for name, e in shards.files.items() if name not in Shards.no_content}
    before = storage.sha256_json({name: entry.sha256 for name, entry in older.items()})
    assert storage.content_hash(shards) == before
    (shards.path / EXCLUDED).write_bytes(b"")
    assert storage.mismatches(shards.path, shards.files)


def test_a_row_that_a_filter_drops_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def keep(text):\n    return 'dog' not in text\n")
    recipe = {"data": {"clean": {"filter": "own.py:keep"}}}
    (tmp_path / "pipelines.yaml").write_text(
        json.dumps({"name": "own", "recipes": {"own": recipe}})
    )
    source = make_source(tmp_path, {"train": [*TEXTS, "A dog."]})
    config = make_config(clean={"filter": str(tmp_path / "own.py:keep")})
    shards = encode(config, source, root=tmp_path)
    named = {(each.file, each.row) for each in read_excluded(shards, BY_FUNCTION)}
    assert named == {place for place, text in source_texts(source).items() if "dog" in text}
    assert len(named) == shards.dropped[BY_FUNCTION]


def test_rows_are_counted_over_the_files_of_a_source(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("text", pa.string())])
    for name, count in (("val_0", 2), ("train_0", 3), ("train_1", 1)):
        pq.write_table(pa.table([["x"] * count], schema=schema), tmp_path / name)
    split = {"documents": 1, "bytes": 1}
    splits = {
        "train": SourceSplit(files=["train_0", "train_1"], **split),
        "val": SourceSplit(files=["val_0"], **split),
    }
    place = SourceRows(Source(key="k", dataset="d", revision="", splits=splits, path=tmp_path))
    assert [place(i) for i in (0, 1, 2, 4, 5)] == [
        ("val_0", 0), ("val_0", 1), ("train_0", 0), ("train_0", 2), ("train_1", 0),
    ]  # fmt: skip
    assert place.ranges()["train_1"] == range(5, 6)
