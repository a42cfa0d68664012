"""Encoding: the same bytes however it is done, nothing lost, nothing unverified."""

import json
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, InUse, SlmError, UserError
from slm.recipes import parse_overrides
from slm.records import Shards, Source, SourceSplit
from slm.source.download import download
from slm.source.stories import stories
from slm.tokens import encode as encode_stage
from slm.tokens import units
from slm.tokens.cleaning import document_hash
from slm.tokens.encode import encode, encode_key
from slm.tokens.holdout import split_end
from slm.tokens.shards.inspecting import inspect, verify
from slm.tokens.shards.reading import documents, read_shards, read_tokens
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer, gpt2
from slm.tokens.workers import Workers

STORIES = list(stories(1, 0, 200))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return gpt2(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch, base: Tokenizer) -> None:
    """Several units even of little text, and a tokenizer that is loaded once."""
    monkeypatch.setattr(units, "UNIT_BYTES", 30_000)
    monkeypatch.setattr(encode_stage, "gpt2", lambda root: base)
    storage.reset_fault_points()


def make_source(root: Path, splits: dict[str, list[str]], rows: int = 20) -> Source:
    """A source as the download stage leaves it, in row groups of `rows` documents."""
    folder = root / "source"
    folder.mkdir(parents=True)
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    written = {}
    for split, texts in splits.items():
        path = folder / f"{split}_00000.parquet"
        pq.write_table(pa.table([texts], schema=schema), path, row_group_size=rows)
        size = sum(len(text.encode()) for text in texts)
        written[split] = SourceSplit(files=[path.name], documents=len(texts), bytes=size)
    record = Source(key="k" * 64, dataset="test", revision="", splits=written, path=folder)
    files = storage.describe_files(folder, folder.iterdir())
    record = record.model_copy(update={"files": files})
    storage.write_record(folder, record)
    return record


def make_config(**data: Any) -> PipelineConfig:
    fields = {"source": "stories", "documents": 1, "val_fraction": 0.1, **data}
    return PipelineConfig.model_validate(
        {"recipe": "test", "data": fields, "train": {"max_steps": 1}}
    )


def hashes(record: Shards) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in record.files.items()}


def texts_of(record: Shards, split: str) -> list[str]:
    tokenizer = Tokenizer.load(record.path / "tokenizer.tiktoken")
    return [tokenizer.decode(ids.tolist()) for ids in documents(record, split)]


# ---- what is in the shards --------------------------------------------------------------------


def test_shards_hold_every_document_in_order(tmp_path: Path) -> None:
    record = encode(make_config(), make_source(tmp_path, {"train": STORIES}), root=tmp_path)
    train, val = texts_of(record, "train"), texts_of(record, "val")
    assert sorted(train + val) == sorted(STORIES)
    assert train == [text for text in STORIES if text in set(train)]
    assert len(val) == record.splits["val"].documents > 5
    assert record.splits["train"].bytes == sum(len(text.encode()) for text in train)
    assert sum(record.length_histogram.values()) == 200
    assert record.vocab_size == 50_257


def test_the_layout_is_llm_cs(tmp_path: Path, base: Tokenizer) -> None:
    record = encode(make_config(), make_source(tmp_path, {"train": STORIES}), root=tmp_path)
    data = (record.path / "train_00000.bin").read_bytes()
    header = np.frombuffer(data[:1024], "<i4")
    tokens = np.frombuffer(data[1024:], "<u2")
    assert header[:3].tolist() == [20240520, 1, len(tokens)]
    assert not header[3:].any()
    expected = [
        i
        for text in texts_of(record, "train")
        for i in (50256, *base.encoding.encode_ordinary(text))
    ]
    assert tokens.tolist() == expected
    assert read_tokens(record.path / "train_00000.bin").tolist() == expected


def test_bytes_are_what_they_were(tmp_path: Path) -> None:
    """Golden hashes: where they change, ENCODE_VERSION goes up."""
    source = make_source(tmp_path, {"train": [f"Story {i}. It's  a\n\ntest." for i in range(99)]})
    record = encode(make_config(vocab_size=400), source, root=tmp_path)
    assert {name: digest[:16] for name, digest in hashes(record).items()} == GOLDEN


GOLDEN = {
    "excluded.jsonl": "e3b0c44298fc1c14",
    "tokenizer.json": "73f1d11fe3e74ca0",
    "tokenizer.tiktoken": "646de9dd2b07e007",
    "train_00000.bin": "b2887f20b9395b31",
    "train.rows": "75dcdee5f5690a2e",
    "val.rows": "02cd57374675edf5",
    "val_00000.bin": "780c39aa22dc58cf",
}


def test_a_trimmed_vocabulary_is_counted_on_train_and_encodes_as_its_tokenizer(
    tmp_path: Path,
) -> None:
    source = make_source(tmp_path, {"train": STORIES[:150], "val": ["Zimbabwe " * 500 + "!"]})
    record = encode(make_config(vocab_size=1000), source, root=tmp_path)
    tokenizer = Tokenizer.load(record.path / "tokenizer.tiktoken")
    assert (tokenizer.n_vocab, tokenizer.eot) == (record.vocab_size, record.eot) == (1000, 999)
    assert tokenizer.sha256 == record.tokenizer_sha256
    assert b" Zimbabwe" not in tokenizer.tokens
    assert b" there" in tokenizer.tokens
    expected = [tokenizer.encoding.encode_ordinary(text) for text in STORIES[:150]]
    assert [ids.tolist() for ids in documents(record, "train")] == expected
    assert json.loads((record.path / "tokenizer.json").read_text())["model"]["vocab"]["!"] == 0


def test_a_document_stays_in_its_split_when_the_dataset_grows(tmp_path: Path) -> None:
    small = make_source(tmp_path / "a", {"train": STORIES[:100]})
    large = make_source(tmp_path / "b", {"train": STORIES[::-1]})
    first = encode(make_config(), small, root=tmp_path / "a")
    second = encode(make_config(), large, root=tmp_path / "b")
    assert set(texts_of(first, "val")) == set(texts_of(second, "val")) & set(STORIES[:100])


def test_the_datasets_own_val_split_is_used_and_dropped_from_train(tmp_path: Path) -> None:
    val = STORIES[:10]
    source = make_source(tmp_path, {"train": STORIES[5:50] + STORIES[20:22], "val": val})
    record = encode(make_config(), source, root=tmp_path)
    assert texts_of(record, "val") == val
    assert texts_of(record, "train") == STORIES[10:50] + STORIES[20:22]
    assert record.dropped == {"also in val": 5}
    assert record.cleaning["dropped"]["also in val"]["examples"][0][:40] == STORIES[5][:40]


def test_cleaning_is_applied_and_counted(tmp_path: Path) -> None:
    texts = [*STORIES[:50], STORIES[0], STORIES[1] + " Goodbye.", "schÃ¶n", "x" * 9000, "", " \n"]
    source = make_source(tmp_path, {"train": texts, "val": STORIES[100:110]})
    clean = {
        "fix_text": True,
        "max_chars": 5000,
        "exact_duplicates": "everywhere",
        "near_duplicates": 0.8,
    }
    record = encode(make_config(clean=clean), source, root=tmp_path)
    assert texts_of(record, "train") == [*STORIES[:50], "schön"]
    assert record.dropped == {"too long": 1, "empty": 2, "duplicate": 1, "near-duplicate": 1}
    assert record.cleaning["changed"]["text fixed"]["examples"] == [["schÃ¶n", "schön"]]


def test_odd_documents_are_kept_and_empty_ones_dropped(tmp_path: Path, base: Tokenizer) -> None:
    odd = [END_OF_TEXT, f"a{END_OF_TEXT}b", "\0", "a\0b", "\ufeff", "\x1b[0m", "x" * 70_000]
    odd += [" " * 5000 + "x", "\n\n\n\n a", "日本語" * 100, "\u2028 \u3000 x", "'s 'll ''re"]
    texts = [*odd, "", " ", "\t\n", *STORIES[:20]]
    random.Random(0).shuffle(texts)
    record = encode(
        make_config(), make_source(tmp_path, {"train": texts, "val": ["x"]}), root=tmp_path
    )
    kept = [text for text in texts if text.strip()]
    assert texts_of(record, "train") == kept
    assert record.dropped == {"empty": 3}
    tokens = read_tokens(record.path / "train_00000.bin")
    assert (tokens == base.eot).sum() == len(kept) == record.splits["train"].documents


@pytest.mark.parametrize(
    ("count", "largest"), [(400, 200_000), pytest.param(10_000, 50_000_000, marks=pytest.mark.slow)]
)
def test_odd_documents_from_a_file_to_shards(
    tmp_path: Path, base: Tokenizer, count: int, largest: int
) -> None:
    kinds: dict[str, Callable[[int], str | None]] = {
        "special": lambda i: f"{END_OF_TEXT}{i}{END_OF_TEXT}",
        "only special": lambda i: END_OF_TEXT,
        "NUL": lambda i: f"\0 {i}\0\0 a\0b",
        "surrogate": lambda i: f"{i} \ud800 and \udc00",
        "empty": lambda i: "",
        "blank": lambda i: " \n\t\u3000",
        "null": lambda i: None,
        "foreign": lambda i: f"{i} naïve—«слово» 日本語 😀\u2028",
        "story": lambda i: STORIES[i % 200],
    }
    draws = random.Random(0)
    drawn = [draws.choice(list(kinds)) for _ in range(count - 1)]
    texts = [kinds[kind](i) for i, kind in enumerate(drawn)]
    texts.insert(count // 2, ("One long day. " * (largest // 14 + 1))[:largest])
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    config = make_config(source="files", path=str(path), documents=None)
    source = download(config, root=tmp_path)
    record = encode(config, source, root=tmp_path)

    number = Counter(drawn)
    assert source.dropped == {"null": number["null"], "not text": number["surrogate"]}
    assert record.dropped == {"empty": number["empty"] + number["blank"]}
    left_out = {"null", "surrogate", "empty", "blank"}
    long = texts.pop(count // 2)
    kept = [text for kind, text in zip(drawn, texts, strict=True) if kind not in left_out] + [long]
    assert sorted(texts_of(record, "train") + texts_of(record, "val")) == sorted(kept)
    assert verify(record.path)["documents"] == len(kept)
    for split in record.splits.values():
        tokens = [read_tokens(record.path / name) for name in split.files]
        assert sum(int((t == base.eot).sum()) for t in tokens) == split.documents


def test_shards_hold_whole_documents_up_to_their_size(tmp_path: Path) -> None:
    texts = [*STORIES[:60], "word " * 3000, *STORIES[60:100]]
    source = make_source(tmp_path, {"train": texts, "val": ["x"]})
    record = encode(make_config(shard_tokens=2000), source, root=tmp_path)
    train = record.splits["train"]
    assert len(train.files) > 5
    assert texts_of(record, "train") == texts
    sizes = [train.counts[name].tokens for name in train.files]
    alone = sizes.index(max(sizes))
    assert train.counts[train.files[alone]].documents == 1
    assert max(sizes[:alone] + sizes[alone + 1 :]) <= 2000
    assert verify(record.path)["tokens"] == sum(sizes) + 2


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 70_000, 100)
    tokens = np.array([69_999, 1, 65_536, 69_999, 2], np.uint32)
    writer.add(tokens, np.array([3, 2]), np.array([10, 20]))
    split = writer.close()
    path = tmp_path / split.files[0]
    assert np.fromfile(path, "<i4", 3).tolist() == [20240801, 7, 5]
    assert read_tokens(path).tolist() == tokens.tolist()
    assert read_tokens(path).dtype == np.uint32


# ---- the split and cleaning -------------------------------------------------------------------

MOJIBAKE = [f"schÃ¶n {i}" for i in range(100)]


def test_fixing_text_moves_no_document_to_the_other_split(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": MOJIBAKE})
    numbers = []
    for fix_text in (False, True):
        config = make_config(val_fraction=0.3, clean={"fix_text": fix_text})
        record = encode(config, source, root=tmp_path)
        numbers.append([[t.split()[1] for t in texts_of(record, s)] for s in ("train", "val")])
        assert ("schön" in texts_of(record, "val")[0]) == fix_text
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("unit_bytes", [1, 1 << 30])
def test_a_document_and_its_repaired_copy_are_not_in_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    repaired = [text.replace("Ã¶", "ö") for text in MOJIBAKE]
    source = make_source(tmp_path, {"train": MOJIBAKE + repaired}, rows=7)
    config = make_config(val_fraction=0.5, clean={"fix_text": True})
    record = encode(config, source, root=tmp_path)
    train, val = set(texts_of(record, "train")), set(texts_of(record, "val"))
    assert train | val == set(repaired)
    assert not train & val
    assert record.dropped == {"also in val": 27, "also in train": 24}


def test_only_the_key_of_fixed_text_is_of_a_new_version(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES[:80]})
    for fix_text, version in ((False, 1), (True, 2)):
        config = make_config(clean={"fix_text": fix_text})
        fields, inputs = keys.stage_fields("encode", config), storage.content_hash(source)
        expected = keys.stage_key("encode", version, fields, inputs)
        assert encode_key(config, source, None) == expected


def test_the_source_is_locked_while_it_is_encoded(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES})
    lock = storage.lock_of(source.path)
    seen: list[str] = []

    def try_to_delete(task: str, done: float, total: float | None) -> None:
        seen.append(task)
        with pytest.raises(InUse), storage.lock(lock, wait=False):
            pass

    encode(make_config(vocab_size=700), source, root=tmp_path, progress=try_to_delete)
    assert {"encode", "trim"} == set(seen)
    with storage.lock(lock, wait=False):
        pass


# ---- what is refused --------------------------------------------------------------------------


def test_a_dataset_with_nothing_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": ["ab", ""], "val": STORIES[:2]})
    with pytest.raises(UserError, match=r"train split of test.*1 too short, 1 empty.*loosen data"):
        encode(make_config(clean={"min_chars": 3}), source, root=tmp_path)


@pytest.mark.parametrize(
    ("texts", "data", "words"),
    [
        (STORIES[:20], {"val_fraction": 0.0}, r"val split.*: raise data\.val_fraction=0\.0$"),
        (STORIES[:20], {"val_fraction": 1.0}, r"train split.*: lower data\.val_fraction=1\.0$"),
        (
            ["ab"] * 50,
            {"clean": {"min_chars": 3}},
            r"train split.*: loosen data\.clean\.min_chars=3, or give more documents$",
        ),
        (
            [STORIES[0]] * 50,
            {"clean": {"exact_duplicates": "everywhere"}},
            r"val split.*: loosen data\.clean\.exact_duplicates=everywhere, or give more",
        ),
        (["", " "], {}, r"train split.*: give more documents$"),
        (["x"], {}, r"val split.*: give more documents$"),
    ],
)
def test_an_empty_split_names_the_setting_that_is_to_blame(
    texts: list[str], data: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = make_source(tmp_path, {"train": texts})
    with pytest.raises(UserError, match=words):
        encode(make_config(**data), source, root=tmp_path)
    assert not list((tmp_path / "shards").glob("test-*"))


# ---- small sets -------------------------------------------------------------------------------


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("count", "held_out"), [(12, 1), (60, 6), (100, 10), (190, 10)])
def test_a_small_set_holds_out_the_documents_of_the_lowest_hashes(
    count: int, held_out: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(val_fraction=0.01)
    record = encode(config, make_source(tmp_path, {"train": STORIES[:count]}), root=tmp_path)
    by_hash = sorted(
        STORIES[:count],
        key=lambda text: int.from_bytes(document_hash(text.encode()), "little"),
    )
    assert set(texts_of(record, "val")) == set(by_hash[:held_out])
    assert set(texts_of(record, "train")) == set(by_hash[held_out:])
    (line,) = lines_of(caplog)
    assert line.startswith(f"val: {held_out} of {count} documents (")
    assert "data.val_fraction=0.01" in line
    assert record.cleaning["held_out"]["documents"] == held_out


def test_copies_in_a_small_set_count_once(tmp_path: Path) -> None:
    texts = [STORIES[0]] * 40 + STORIES[1:3]
    source = make_source(tmp_path, {"train": texts})
    record = encode(make_config(val_fraction=0.01), source, root=tmp_path)
    train, val = set(texts_of(record, "train")), set(texts_of(record, "val"))
    assert len(val) == 1
    assert train | val == set(texts)
    assert not train & val


@pytest.mark.parametrize("unit_bytes", [1, 1 << 30])
@pytest.mark.parametrize("vocab_size", [600, 50_257])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_of_a_few_documents_the_ends_are_held_out(
    count: int,
    vocab_size: int,
    unit_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    texts = [" ".join(STORIES[20 * i : 20 * i + 20]) for i in range(count)]
    source = make_source(tmp_path, {"train": texts}, rows=1)
    config = make_config(val_fraction=0.01, vocab_size=vocab_size)
    record = encode(config, source, root=tmp_path)
    train, val = texts_of(record, "train"), texts_of(record, "val")
    assert [head + end for head, end in zip(train, val, strict=True)] == texts
    for text, end in zip(texts, val, strict=True):
        assert 0.1 <= len(end) / len(text) <= 0.2
    (line,) = lines_of(caplog)
    tokens = record.splits["val"].tokens
    assert f"({tokens:,} tokens): there are fewer than 10 documents ({count})" in line
    assert record.cleaning["held_out"] | {"tokens": 0} == {
        "rule": "ends", "val_fraction": 0.01, "documents": count, "tokens": 0, "of": count,
    }  # fmt: skip


def test_a_reused_small_set_reports_what_it_holds_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, source = make_config(), make_source(tmp_path, {"train": STORIES[:1]})
    first = encode(config, source, root=tmp_path)
    second = encode(config, source, root=tmp_path)
    assert (first.reused, second.reused) == (False, True)
    assert len(lines_of(caplog)) == 2
    assert len(set(lines_of(caplog))) == 1


def test_only_small_sets_have_another_key(tmp_path: Path) -> None:
    """Where draws by hash suffice, shards keep key and bytes: 80 documents × 0.1 are a tenth."""
    for count, data, is_small in (
        (80, {}, False),
        (80, {"val_fraction": 0.09}, True),
        (3, {"val_fraction": 0.34}, False),
        (3, {"val_fraction": 0.33}, True),
        (3, {"val_fraction": 0.0}, False),
        (3, {"clean": {"min_chars": 9}}, True),
    ):
        config = make_config(**data)
        source = make_source(tmp_path / f"{count} {data}", {"train": STORIES[:count]})
        fields, inputs = keys.stage_fields("encode", config), storage.content_hash(source)
        before = keys.stage_key("encode", 1, fields, inputs)
        assert (encode_key(config, source, None) != before) == is_small
    own = make_source(tmp_path / "own", {"train": STORIES[:3], "val": STORIES[3:5]})
    fields, inputs = keys.stage_fields("encode", config), storage.content_hash(own)
    assert encode_key(config, own, None) == keys.stage_key("encode", 1, fields, inputs)


def test_a_draw_that_would_hold_out_nothing_holds_out_the_minimum(tmp_path: Path) -> None:
    """Such sets were refused before, so their key stays: no other bytes ever had it."""
    fraction, count = 0.1, 20
    texts = [
        text
        for text in STORIES
        if int.from_bytes(document_hash(text.encode()), "little") >= fraction * 2**64
    ][:count]
    config, source = make_config(), make_source(tmp_path, {"train": texts})
    record = encode(config, source, root=tmp_path)
    assert [record.splits[split].documents for split in ("train", "val")] == [18, 2]
    assert record.cleaning["held_out"]["rule"] == "lowest hashes"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a" * 70 + "\n\n" + "b" * 10 + "\n\n" + "c c " * 4, "c c " * 4),
        ("a" * 82 + "\n" + "b b " * 4, "b b " * 4),
        ("a" * 82 + ". " + "b b " * 4, " " + "b b " * 4),
        ("a" * 83 + " " + "b" * 16, " " + "b" * 16),
        ("日" * 100, "日" * 10),
        ("x", ""),
        (" " * 99 + "x", ""),
        ("x" + " " * 99, ""),
    ],
)
def test_the_end_of_a_document_begins_at_its_largest_border(text: str, end: str) -> None:
    assert split_end(text) == (text.removesuffix(end), end)


def test_one_text_file_names_the_separator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join("".join(s.split("\n")) for s in STORIES))
    config = make_config(source="files", path=str(tmp_path / "book.txt"), documents=None)
    encode(config, download(config, root=tmp_path), root=tmp_path)
    line = lines_of(caplog)[-1]
    assert "; a text file is one document unless it is split" in line
    _, example = shlex.split(line.partition("; a text")[2].partition(": ")[2])
    (separator,) = parse_overrides([example]).values()
    data = config.data.model_copy(update={"separator": separator})
    split = config.model_copy(update={"data": data})
    record = encode(split, download(split, root=tmp_path), root=tmp_path)
    assert sum(each.documents for each in record.splits.values()) == len(STORIES)


def test_texts_that_repeat_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Tokenizer
) -> None:
    """The file holds one copy, so its footer records a fraction of their bytes."""
    text = "a fox ran home. " * 8000
    config = make_config(source="files", path=str(tmp_path / "in.jsonl"), documents=None)
    lines = [json.dumps({"text": text}) + "\n"] * 60
    (tmp_path / "in.jsonl").write_text("".join(lines))
    source = download(config, root=tmp_path)
    base.save(tmp_path / "tokenizer")
    monkeypatch.setattr(units, "UNIT_BYTES", 4 << 20)
    [unit] = units.plan_units(source, tmp_path / "tokenizer", config.data.clean, tmp_path)
    assert unit.text_bytes < len(text) * 60 / 5
    batches = []
    encode_utf8 = Tokenizer.encode_utf8

    def watched(self: Tokenizer, documents: list[bytes]) -> Any:
        batches.append(sum(map(len, documents)))
        return encode_utf8(self, documents)

    monkeypatch.setattr(Tokenizer, "encode_utf8", watched)
    units.encode_unit(unit)
    assert sum(batches) == 60 * len(text)
    assert max(batches) <= units.BATCH_BYTES + len(text)


def test_a_damaged_parquet_page_names_file_and_row_groups(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES})
    path = source.path / source.splits["train"].files[0]
    start = pq.read_metadata(path).row_group(5).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"train_00000\.parquet, row groups \d to \d"):
        encode(make_config(), source, root=tmp_path)


def test_a_source_that_is_not_text_is_damaged(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES[:5], "val": ["x"]})
    broken = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    path = source.path / source.splits["train"].files[0]
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(CorruptionError, match=r"train_00000\.parquet, row groups 0 to 0: .*utf-8"):
        encode(make_config(), source, root=tmp_path)


def test_no_shards_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="slm encode"):
        read_shards(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "magic", "count", "empty", "missing"])
def test_a_shard_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    writer = ShardWriter(tmp_path, "train", 1000, 100)
    writer.add(np.array([999, 1, 2], np.uint16), np.array([3]), np.array([5]))
    path = tmp_path / writer.close().files[0]
    data = bytearray(path.read_bytes())
    damaged = {
        "truncated": data[:-1],
        "magic": b"\0" + data[1:],
        "count": data[:8] + b"\x04" + data[9:],
        "empty": b"",
    }
    path.unlink()
    if damage != "missing":
        path.write_bytes(damaged[damage])
    with pytest.raises(CorruptionError, match=r"train_00000\.bin"):
        read_tokens(path)


def test_every_flipped_bit_is_detected_before_use(tmp_path: Path) -> None:
    record = encode(make_config(), make_source(tmp_path, {"train": STORIES[:40]}), root=tmp_path)
    draws = random.Random(0)
    files = [*record.path.glob("*.bin"), record.path / "record.json"]
    for _ in range(200):
        path = draws.choice(files)
        good = path.read_bytes()
        bit = draws.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(CorruptionError):
            read_shards(record.path)
        path.write_bytes(good)
    assert read_shards(record.path) == record


def _change_id(tokens: np.ndarray) -> None:
    tokens[5] = 50_256


def _change_opening(tokens: np.ndarray) -> None:
    tokens[0] = 5


def _change_range(tokens: np.ndarray) -> None:
    tokens[5] = 60_000


@pytest.mark.parametrize("change", [_change_id, _change_opening, _change_range])
def test_verify_checks_every_token(tmp_path: Path, change: Callable[[np.ndarray], None]) -> None:
    record = encode(make_config(), make_source(tmp_path, {"train": STORIES}), root=tmp_path)
    splits = record.splits.values()
    assert verify(record.path) == {
        "files": 7,
        "documents": 200,
        "tokens": sum(split.tokens for split in splits),
        "bytes": sum(len(text.encode()) for text in STORIES),
    }
    path = record.path / "train_00000.bin"
    change(np.memmap(path, "<u2", "r+", offset=1024))
    files = record.files | storage.describe_files(record.path, [path])
    storage.write_record(record.path, record.model_copy(update={"files": files}))
    with pytest.raises(CorruptionError, match=r"train_00000\.bin holds"):
        verify(record.path)


def test_inspect_shows_counts_and_a_document_with_its_tokens(tmp_path: Path) -> None:
    record = encode(make_config(), make_source(tmp_path, {"train": STORIES}), root=tmp_path)
    shown = inspect(record.path)
    assert shown["splits"]["train"]["documents"] == record.splits["train"].documents
    assert shown["frequent"][0]["token"] in (" the", ".", ",")
    assert 0 < shown["frequent"][0]["share"] < 0.2
    assert "document" not in shown
    train, val = texts_of(record, "train"), texts_of(record, "val")
    for number, text in ((0, train[0]), (len(train) - 1, train[-1]), (len(train), val[0])):
        document = inspect(record.path, number)["document"]
        assert document["text"] == "".join(document["tokens"]) == text
    for number in (-1, 200):
        with pytest.raises(UserError, match="from 0 to 199"):
            inspect(record.path, number)


# ---- however it is done -----------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [50_257, 700])
def test_bytes_do_not_depend_on_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int
) -> None:
    config = make_config(vocab_size=vocab_size, shard_tokens=10_000)
    results = []
    for i, (unit_bytes, rows) in enumerate([(1, 15), (30_000, 20), (1 << 30, 200)]):
        monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
        source = make_source(tmp_path / str(i), {"train": STORIES}, rows)
        results.append(hashes(encode(config, source, root=tmp_path / str(i))))
    assert results[0] == results[1] == results[2]


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES})
    results = []
    for workers in (1, 2, 4):
        root = tmp_path / str(workers)
        config = make_config(vocab_size=700, workers=workers)
        results.append(hashes(encode(config, source, root=root)))
        assert not list((root / "shards").glob(".*.units"))
    assert all(result == results[0] for result in results)


def test_as_many_workers_as_the_container_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def workers(count: int) -> Workers:
        counts.append(count)
        return Workers(0)

    monkeypatch.setattr(encode_stage, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(encode_stage, "available_cores", lambda: 3)
    monkeypatch.setattr(encode_stage, "Workers", workers)
    encode(make_config(), make_source(tmp_path, {"train": STORIES}), root=tmp_path)
    assert counts == [3]


def test_a_done_stage_is_reused(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES})
    first = encode(make_config(), source, root=tmp_path)
    again = encode(make_config(workers=2), source, root=tmp_path)
    assert again.reused
    assert again.path == first.path


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[str, float, float | None]] = []
    source = make_source(tmp_path, {"train": STORIES})
    encode(
        make_config(vocab_size=700),
        source,
        root=tmp_path,
        progress=lambda *call: calls.append(call),
    )
    for stage in ("encode", "trim"):
        steps = [(done, total) for task, done, total in calls if task == stage]
        assert steps == sorted(steps)
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
        assert len(steps) > 3


def _interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> bool:
    """Encodes under a fault; whether it fired."""
    source = _source_of(tmp_path)
    storage.reset_fault_points()
    monkeypatch.setenv("SLM_FAULT", fault)
    try:
        encode(make_config(vocab_size=700), source, root=tmp_path)
    except (RuntimeError, OSError, SlmError):
        return True
    finally:
        monkeypatch.delenv("SLM_FAULT")
    return False


def _source_of(tmp_path: Path) -> Source:
    """The same source at every call."""
    kept = storage.read_record(tmp_path / "source", Source)
    return kept or make_source(tmp_path, {"train": STORIES[:120], "val": STORIES[115:125]})


def test_a_refused_encoding_leaves_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path, {"train": STORIES})
    with pytest.raises(UserError, match="no documents are left"):
        encode(make_config(clean={"min_chars": 10**6}), source, root=tmp_path)
    assert [path for path in (tmp_path / "shards").iterdir() if path.suffix != ".lock"] == []


def test_an_interrupted_encoding_resumes_at_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _interrupted(tmp_path, monkeypatch, "encode.unit:4:raise")
    (work,) = (tmp_path / "shards").glob(".*.units")
    finished = sorted(work.glob("*.unit"))
    assert len(finished) == 4
    finished[0].write_bytes(finished[0].read_bytes()[:-1] + b"?")
    done: list[Path] = []

    def watched(unit: units.Unit) -> None:
        done.append(unit.output)
        units.encode_unit(unit)

    monkeypatch.setattr(encode_stage, "encode_unit", watched)
    record = encode(make_config(vocab_size=700), _source_of(tmp_path), root=tmp_path)
    assert finished[0] in done, "a unit whose hash does not match is encoded again"
    assert not set(finished[1:]) & set(done)
    assert not work.exists()
    whole = encode(
        make_config(vocab_size=700), _source_of(tmp_path / "other"), root=tmp_path / "other"
    )
    assert hashes(record) == hashes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raise", "enospc", "eio"])
def test_a_fault_at_every_point_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    expected = hashes(
        encode(make_config(vocab_size=700), _source_of(tmp_path / "x"), root=tmp_path / "x")
    )
    fired = 0
    for number in range(1, 10_000):
        root = tmp_path / str(number)
        if not _interrupted(root, monkeypatch, f"*:{number}:{kind}"):
            break
        fired += 1
        assert not any((p / "record.json").exists() for p in (root / "shards").glob("test-*.tmp"))
        record = encode(make_config(vocab_size=700), _source_of(root), root=root)
        assert hashes(record) == expected
    assert fired > 40


def test_a_worker_that_is_killed_once_only_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = hashes(encode(make_config(), _source_of(tmp_path / "x"), root=tmp_path / "x"))
    monkeypatch.setenv("SLM_FAULT", "encode.unit:2:kill")
    record = encode(make_config(workers=1), _source_of(tmp_path / "y"), root=tmp_path / "y")
    assert hashes(record) == expected
    assert "train_00000.parquet, row groups" in caplog.text
    assert "killed" in caplog.text


def test_a_worker_that_is_killed_twice_is_an_error_naming_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_FAULT", "write:1:kill")
    monkeypatch.setattr(storage.faults, "requested_fault", lambda: None)  # here, not in the workers
    with pytest.raises(SlmError, match=r"_00000\.parquet, row groups \d to \d: .* killed, twice"):
        encode(make_config(workers=2), _source_of(tmp_path), root=tmp_path)
    monkeypatch.delenv("SLM_FAULT")


ENCODE = """
import sys
from pathlib import Path
from slm.config import PipelineConfig
from slm.records import Source
from slm.tokens import units
from slm.tokens.encode import encode
source = Source.model_validate_json(sys.argv[1]).model_copy(update={"path": Path(sys.argv[2])})
config = PipelineConfig.model_validate_json(sys.argv[3])
units.UNIT_BYTES = 30_000
encode(config, source, root=Path(sys.argv[4]))
"""


def _start(source: Source, config: PipelineConfig, root: Path) -> subprocess.Popen[bytes]:
    arguments = [source.model_dump_json(), str(source.path), config.model_dump_json(), str(root)]
    return subprocess.Popen([sys.executable, "-c", ENCODE, *arguments], start_new_session=True)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    source = make_source(tmp_path, {"train": list(stories(1, 0, 4000))})
    process = _start(source, make_config(workers=2), tmp_path)
    workers: list[Any] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []
