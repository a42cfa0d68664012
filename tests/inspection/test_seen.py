"""Whether a text was seen: against every row of every step, decoded and looked through."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiny_run import CLEAN, code, tiny_config
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.inspection import search, seen
from slm.inspection.search import Job, find_in_file
from slm.records import Shards
from slm.run_folder import DataRoot, RunFolder
from slm.source.download import download
from slm.source.stories import stories
from slm.tokens.encode import encode
from slm.tokens.shards.reading import documents
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training import launch, loop

TEXTS = list(stories(7, 0, 60))
ODD = {"copy": TEXTS[3], "mojibake": "A lone schÃ¶n word of nobody.", "short": "tiny zebu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two steps, of several shard files, one of whose documents is a copy."""
    root = tmp_path_factory.mktemp("data")
    path = root / "in.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*TEXTS, *ODD.values()]))
    config = tiny_config(path, max_steps=2, threads=1).model_dump(mode="json")
    config["data"]["clean"] |= {"exact_duplicates": "everywhere", "min_chars": 12}
    config["data"] |= {"shard_tokens": 9000}
    made = PipelineConfig.model_validate(config)
    shards = encode(made, download(made, root=root), root=root)
    assert len(shards.splits["train"].files) > 1
    with code(CLEAN):
        folder = launch.prepare(made, shards, root=root)
        loop.train(folder)
    return folder


def shards_of(run: RunFolder) -> Shards:
    shards = run.shards
    assert shards is not None
    return shards


def rows_of(run: RunFolder, steps: int) -> list[list[bytes]]:
    """The documents of each row of some steps, as far as it has them, decoded."""
    shards = shards_of(run)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    rows = []
    for step in range(1, steps + 1):
        for row in slm.batch_rows(run, step).rows:
            borders = np.flatnonzero(np.array(row.ids) == shards.eot)
            pieces = np.split(np.array(row.ids), borders)
            rows.append([tokenizer.decode_bytes(piece[piece != shards.eot]) for piece in pieces])
    return rows


@pytest.mark.parametrize("text", ["the little", "Once upon a time", "he", "\n\n", "zebra crossing"])
def test_counts_are_those_of_looking_through_every_row(
    run: RunFolder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 2
    result = slm.find_text(run, text)
    rows = rows_of(run, steps)
    whole = [sum(piece.count(text.encode()) for piece in row) for row in rows]
    assert result.whole == sum(whole)
    read = {(r.step, r.row) for each in result.occurrences for r in each.readings if r.whole}
    assert read == {(i // 4 + 1, i % 4) for i, count in enumerate(whole) if count}
    tokenizer = Tokenizer.load(shards_of(run).path / TOKENIZER)
    for split, count in result.documents.items():
        if split != "excluded":
            texts = [tokenizer.decode(ids.tolist()) for ids in documents(shards_of(run), split)]
            assert count == sum(text in each for each in texts)


def test_every_epoch_has_a_text_once_whole_or_in_two_parts(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window of an epoch is visited once; what is cut is in two of them."""
    shards = shards_of(run)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    text = tokenizer.decode(next(islice(documents(shards, "train"), 10, None)).tolist())[200:240]
    windows = (shards.splits["train"].tokens - 1) // 32 - 1
    monkeypatch.setattr(seen, "last_step", lambda folder: 3 * windows // 4)
    result = slm.find_text(run, text)
    [occurrence] = result.occurrences
    assert result.epochs == pytest.approx(3, abs=0.05)
    assert 3 <= result.whole + result.cut <= 7
    rows = result.whole + result.cut
    assert occurrence.whole + occurrence.cut == rows == len(occurrence.readings)
    for reading in occurrence.readings:
        if reading.step <= 2:
            row = slm.batch_rows(run, reading.step).rows[reading.row]
            assert reading.whole == (text in row.text)
    monkeypatch.setattr(seen, "ROWS_TOGETHER", 64)
    assert slm.find_text(run, text) == result


def test_a_text_that_was_not_seen_has_its_reason(run: RunFolder) -> None:
    copy = slm.find_text(run, TEXTS[3])
    assert copy.documents["excluded"] == 1
    [out] = [each for each in copy.occurrences if each.where == "excluded"]
    assert (out.file, out.row, out.reason) == ("train_00000.parquet", 60, "duplicate")
    assert out.of == "train_00000.parquet, row 3"
    short = slm.find_text(run, "zebu")
    assert short.verdict == "not seen: cleaning dropped every document that has it"
    assert short.occurrences[0].reason == "too short"
    assert slm.find_text(run, "zebra crossing").verdict == "not seen: it is not in the source"
    shards = shards_of(run)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    held_out = tokenizer.decode(next(documents(shards, "val")).tolist())
    result = slm.find_text(run, held_out)
    assert result.verdict == "not seen: it is held out"
    assert result.occurrences[0].where == "val"


def test_no_text_goes_on_in_the_next_document(tmp_path: Path) -> None:
    tokenizer = Tokenizer([*(bytes([i]) for i in range(256)), b"ab", b"cd"])
    a, b, c, d = b"abcd"
    ab, cd = 256, 257
    tokenizer.save(tmp_path / TOKENIZER)
    writer = ShardWriter(tmp_path, "train", tokenizer.n_vocab, 1000)
    eot = tokenizer.eot
    tokens = np.array([eot, ab, c, eot, b, cd, eot, c], np.uint16)
    writer.add(tokens, np.array([3, 3, 2]), np.array([3, 3, 1]))
    path = tmp_path / writer.close().files[0]

    def places(needle: bytes) -> list[tuple[int, int, int]]:
        job = Job(path, tmp_path / TOKENIZER, needle, 0, len(tokens))
        return list(zip(*(each.tolist() for each in find_in_file(job)), strict=True))

    assert places(b"bc") == [(1, 3, 0), (4, 6, 1)]
    assert places(b"cb") == places(b"dc") == []
    assert places(b"abcb") == places(bytes([d, a])) == []
    assert places(b"c") == [(2, 3, 0), (5, 6, 1), (7, 8, 2)]


def test_chunks_and_workers_find_the_same(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    result = slm.find_text(run, "the little")
    monkeypatch.setattr(search, "CHUNK_TOKENS", 100)
    assert slm.find_text(run, "the little") == result


@pytest.mark.slow
def test_worker_processes_find_the_same(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    result = slm.find_text(run, "the little")
    monkeypatch.setattr(seen, "IN_PROCESS_TOKENS", 0)
    assert slm.find_text(run, "the little") == result


def test_without_the_source_only_beginnings_of_what_is_excluded_are_known(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataRoot, "source", lambda self, key: None)
    assert slm.find_text(run, "tiny zebu").documents["excluded"] == 1
    assert slm.batch_rows(run, 1).rows[0].documents[0].row is None
    missing = slm.find_text(run, "zebra crossing")
    assert missing.verdict.endswith("the source is not here")
    assert any("slm download" in note for note in missing.notes)


def test_of_shards_from_before_reasons_are_not_known(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(run)
    files = {name: e for name, e in shards.files.items() if name not in Shards.no_content}
    older = shards.model_copy(update={"files": files})
    monkeypatch.setattr(DataRoot, "shards", lambda self, key: older)
    dropped = slm.find_text(run, "zebu")
    assert dropped.verdict == "not seen: cleaning dropped or changed every document that had it"
    assert dropped.source_rows == 1
    assert any("the tokens are the same bytes" in note for note in dropped.notes)
    assert slm.find_text(run, "zebra crossing").verdict == "not seen: it is not in the source"
    assert slm.batch_rows(run, 1).rows[0].documents[0].file is None


def test_the_command_prints_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_DATA", str(run.root.path))
    shown = CliRunner().invoke(app, ["batch", run.name, "--find", "zebu"])
    assert shown.exit_code == 0
    assert "too short" in shown.output
    printed = CliRunner().invoke(app, ["batch", run.name, "--find", "the little", "--json"])
    fields = json.loads(printed.stdout.splitlines()[-1])
    assert fields["documents"] == slm.find_text(run, "the little").documents
    assert fields["verdict"].startswith(("seen", "not seen"))
