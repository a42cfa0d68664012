"""The rows of a mixture, and whether its texts were seen: by source."""

import json
from pathlib import Path
from typing import Any

import pytest
from mixtures import mixture, text, write, write_sources
from tiny_run import CLEAN, code
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.inspection import seen
from slm.inspection.texts import HeldOut, origin_of, origins_of
from slm.records import Shards
from slm.run_folder import DataRoot, RunFolder
from slm.tokens.encode import encode
from slm.tokens.mixture.reading import train_streams
from slm.tokens.shards.reading import documents, read_tokens, split_documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training import launch, loop
from slm.training.session import new_session, open_job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("data")
    weights = {"data.sources.a.weight": 0.7, "data.sources.b.weight": 0.3}
    config = mixture(write_sources(root / "in"), {**weights, "data.vocab_size": 300})
    source = slm.download(config, root=root)
    vocabulary = slm.make_tokenizer(config, source, root=root)
    shards = slm.encode(config, source, vocabulary=vocabulary, root=root)
    with code(CLEAN):
        folder = launch.prepare(config, shards, root=root)
        loop.train(folder)
    return folder


def test_the_rows_of_a_mixture_are_those_of_its_training(run: RunFolder) -> None:
    shards, plan = run.shards, run.plan
    assert shards is not None
    assert plan is not None
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    streams = dict(zip(shards.parts, train_streams(shards), strict=True))
    loader = new_session(open_job(run), plan).loader
    parts = set()
    for step in range(1, 5):
        batch = slm.batch_rows(run, step)
        inputs, _ = loader.batch(step - 1)
        assert [list(row.ids[:-1]) for row in batch.rows] == inputs.tolist()
        for row in batch.rows:
            assert row.part is not None
            parts.add(row.part)
            stream = [i for tokens in streams[row.part] for i in tokens.tolist()]
            assert stream[row.start : row.start + 17] == list(row.ids)
            for each in row.documents:
                assert each.file is not None
                path = run.root.path / "in" / row.part / "train.jsonl"
                original = path.read_text().splitlines()[each.row or 0]
                first = [i for i in row.ids[each.at :] if i != shards.eot]
                piece = tokenizer.decode(first[: each.end - each.begin - (each.begin == 0)])
                assert piece in original
    assert parts == {"a", "b"}


def test_a_text_of_several_sources_is_found_in_each_with_its_reason(run: RunFolder) -> None:
    copied = slm.find_text(run, text("a", 3))
    assert [(each.where, each.part, each.row) for each in copied.occurrences] == [
        ("train", "a", 3),
        ("excluded", "b", 20),
    ]
    assert copied.occurrences[1].reason == "train, also in a source before it"
    held_out = slm.find_text(run, text("a val", 2))
    assert held_out.documents == {"train": 0, "val": 1, "excluded": 1}
    assert held_out.verdict == "not seen: it is held out"
    again = slm.find_text(run, text("a val", 0))  # of which `b` has a copy in its own val
    assert again.documents["val"] == 1
    assert again.changed == 0
    own = slm.find_text(run, text("b val", 0))
    reasons = {(each.where, each.part, each.reason) for each in own.occurrences}
    assert reasons == {("val", "b", None), ("excluded", "b", "also in val")}


def test_a_part_has_the_same_files_as_its_source_encoded_alone(
    run: RunFolder, tmp_path: Path
) -> None:
    """Their key is the same, so whoever makes them first decides nothing."""
    mixed = run.shards
    assert mixed is not None
    part = run.root.shards(mixed.parts["b"].key)
    assert part is not None
    source = run.root.source(part.source_key)
    assert source is not None
    alone = encode(
        run.config.of_source("b"),
        source,
        tokenizer=Tokenizer.load(mixed.path / TOKENIZER),
        root=tmp_path,
    )
    assert alone.key == part.key
    assert alone.files == part.files


def test_a_part_whose_own_source_is_gone_is_read_in_that_of_the_mixture(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, batch = slm.find_text(run, text("a", 3)), slm.batch_rows(run, 1)
    mixed = run.shards
    assert mixed is not None
    here = DataRoot.source
    monkeypatch.setattr(
        DataRoot, "source", lambda self, key: here(self, key) if key == mixed.source_key else None
    )
    assert slm.find_text(run, text("a", 3)) == seen
    assert slm.batch_rows(run, 1) == batch


# ---- held-out documents -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """A mixture of which `b` holds out two documents of `a`, before and between its own."""
    root = tmp_path_factory.mktemp("shared")
    paths = write_sources(root / "in")
    held_out = [text("b val", i) for i in range(3)]
    copies = [text("a val", 5), text("a val", 2)]
    write(paths["b"] / "validation.jsonl", [copies[0], held_out[0], copies[1], *held_out[1:]])
    config = mixture(paths)
    return slm.encode(config, slm.download(config, root=root), root=root)


def test_each_held_out_document_is_at_its_row(shared: Shards) -> None:
    root = DataRoot(shared.path.parents[1])
    held_out = HeldOut(shared, origins_of(shared, root))
    tokenizer = Tokenizer.load(shared.path / TOKENIZER)
    places = []
    for number, ids in enumerate(documents(shared, "val")):
        part, (file, row) = held_out.part(number), held_out(number)
        assert file == "val_00000.parquet"
        lines = (root.path / "in" / str(part) / "validation.jsonl").read_text().splitlines()
        assert json.loads(lines[row or 0])["text"] == tokenizer.decode(ids.tolist())
        assert origin_of(shared, root, "val", number) == (part, file, row, None)
        places.append((part, row))
    assert sorted(places) == [*(("a", i) for i in range(8)), ("b", 1), ("b", 3), ("b", 4)]


def test_each_train_document_is_at_its_row_with_those_that_are_left_out(shared: Shards) -> None:
    root = DataRoot(shared.path.parents[1])
    tokenizer = Tokenizer.load(shared.path / TOKENIZER)
    every = [
        ids
        for name in shared.splits["train"].files
        for ids in split_documents(read_tokens(shared.path / name), shared.eot)
    ]
    assert len(every) > sum(part.train.documents for part in shared.parts.values())
    for number, ids in enumerate(every):
        part, file, row, _ = origin_of(shared, root, "train", number)
        lines = (root.path / "in" / str(part) / "train.jsonl").read_text().splitlines()
        shown = tokenizer.decode([i for i in ids.tolist() if i != shared.eot])
        assert (file, json.loads(lines[row or 0])["text"]) == ("train_00000.parquet", shown)


def test_where_held_out_documents_are_from_is_not_known_without_their_shards(
    shared: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, gone = DataRoot.shards, shared.parts["a"].key
    monkeypatch.setattr(
        DataRoot, "shards", lambda self, key: None if key == gone else here(self, key)
    )
    held_out = HeldOut(shared, origins_of(shared, DataRoot(shared.path.parents[1])))
    assert {held_out(number) for number in range(11)} == {(None, None)}


def test_a_held_out_text_is_found_at_its_row(run: RunFolder) -> None:
    [occurrence] = [
        each for each in slm.find_text(run, text("a val", 4)).occurrences if each.where == "val"
    ]
    assert (occurrence.part, occurrence.file, occurrence.row) == ("a", "val_00000.parquet", 4)


@pytest.mark.slow  # worker processes take seconds to start
def test_the_command_finds_the_same_in_several_processes(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATA", str(run.root.path))

    def found() -> dict[str, Any]:
        done = CliRunner().invoke(app, ["batch", run.name, "--find", "small red", "--json"])
        assert done.exit_code == 0, done.output
        fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return fields

    here = found()
    started, real = [], seen.Workers

    class Counted(real):  # type: ignore[misc, valid-type]
        def __init__(self, count: int) -> None:
            started.append(count)
            super().__init__(count)

    monkeypatch.setattr(seen, "IN_PROCESS_TOKENS", 0)
    monkeypatch.setattr(seen, "available_cores", lambda: 2)
    monkeypatch.setattr(seen, "Workers", Counted)
    assert found() == here
    assert max(started) > 0
