"""A real mixture, from files to a report: slow."""

import json
from pathlib import Path

import pytest
from mixtures import mixture, text, write_sources
from tiny_run import CLEAN, code
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.evaluation.evaluate import evaluate
from slm.evaluation.sources import held_out_sources
from slm.records import source_bpb
from slm.report.write import write_report
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training import launch
from slm.training.loop import train


@pytest.mark.slow
def test_a_mixture_from_files_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixture(write_sources(tmp_path / "texts"), {"data.vocab_size": 300})
    source = slm.download(config, root=tmp_path)
    vocabulary = slm.make_tokenizer(config, source, root=tmp_path)
    shards = slm.encode(config, source, vocabulary=vocabulary, root=tmp_path)
    folder = launch.prepare(config, shards, root=tmp_path)
    with code(CLEAN):
        train(folder)
    run = folder.verified_record
    assert run is not None
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    texts = [tokenizer.decode(ids.tolist()) for ids in documents(shards, "val")]
    assert held_out_sources(shards) == [each[0] for each in texts]  # "a val 3: …" is of `a`
    evaluation = evaluate(config, run, shards)
    sources = evaluation.details["sources"]
    assert {name: each["documents"] for name, each in sources.items()} == {"a": 8, "b": 5}
    assert sources["a"]["bytes"] == sum(len(text("a val", i).encode()) for i in range(8))
    scored = [dict(entry) for entry in folder.journal if entry["event"] == "evaluate"]
    assert all(source_bpb(name) in entry for entry in scored for name in "ab")
    report = write_report(config, run, evaluation, shards)
    page = (report.path / report.html).read_text("utf-8")
    assert "3 train, also in val, 2 train, also in a source before it" in page
    assert str(tmp_path) not in page
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    shown = CliRunner().invoke(app, ["evaluate", run.name, "--json"]).stdout
    assert set(json.loads(shown)["sources"]) == {"a", "b"}
