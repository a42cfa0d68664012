"""The rows of a mixture, and whether its texts were seen: by source."""

from pathlib import Path

import pytest
from mixtures import mixture, text, write_sources
from tiny_run import CLEAN, code

import slm
from slm.run_folder import DataRoot, RunFolder
from slm.tokens.encode import encode
from slm.tokens.mixture.reading import train_streams
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
    seen = set()
    for step in range(1, 5):
        batch = slm.batch_rows(run, step)
        inputs, _ = loader.batch(step - 1)
        assert [list(row.ids[:-1]) for row in batch.rows] == inputs.tolist()
        for row in batch.rows:
            assert row.part is not None
            seen.add(row.part)
            stream = [i for tokens in streams[row.part] for i in tokens.tolist()]
            assert stream[row.start : row.start + 17] == list(row.ids)
            for each in row.documents:
                assert each.file is not None
                path = run.root.path / "in" / row.part / "train.jsonl"
                original = path.read_text().splitlines()[each.row or 0]
                first = [i for i in row.ids[each.at :] if i != shards.eot]
                piece = tokenizer.decode(first[: each.end - each.begin - (each.begin == 0)])
                assert piece in original
    assert seen == {"a", "b"}


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
