"""A training on several sources scores each of them at every evaluation."""

from pathlib import Path

import pytest
from tiny_run import copy_run
from two_sources import CODE, PROSE, SOURCES, TRAINED, copy_trained

from slm.evaluation.scoring import score
from slm.model.saved import load_model
from slm.records import source_bpb
from slm.run_folder import RunFolder, checkpoint_name
from slm.tokens.shards.reading import documents

SLICE = TRAINED.train.evaluate_documents


def test_the_journal_has_each_source_and_the_whole_decides(tmp_path: Path) -> None:
    run = copy_trained(tmp_path)
    entries = [dict(entry) for entry in run.journal if entry["event"] == "evaluate"]
    assert [entry["step"] for entry in entries] == [2, 4]
    shards = run.shards
    assert shards is not None
    held_out = [ids for ids, _ in zip(documents(shards, "val"), range(SLICE), strict=False)]
    sources = {PROSE: [i for i in range(SLICE) if i % 3 != 1], CODE: [1, 4, 7]}
    for entry in entries:
        assert [name for name in entry if name.startswith("source.")] == [
            source_bpb(name) for name in SOURCES
        ]
        model, tokenizer = load_model(run.path / "checkpoints" / checkpoint_name(entry["step"]))
        for name, chosen in sources.items():
            own = score(model, [held_out[i] for i in chosen], shards.eot, tokenizer.token_bytes)
            assert entry[source_bpb(name)] == pytest.approx(own.val_bpb, rel=0.01)
    record = run.record
    assert record is not None
    best = min(entries, key=lambda entry: entry["val_bpb"])
    assert record.best == checkpoint_name(best["step"])


def test_one_source_is_scored_as_ever(tmp_path: Path) -> None:
    entries = [e for e in RunFolder(copy_run(tmp_path)).journal if e["event"] == "evaluate"]
    assert [list(entry) for entry in entries] == [
        ["event", "time", "step", "val_loss", "val_bpb"]
    ] * 2
