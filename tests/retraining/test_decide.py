"""Retraining: the table of decisions, and a model that continues from a champion."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import empty_store
from tiny_run import CLEAN, add_documents, code, copy_run, flip_byte, shards_of, tiny_config

from slm import keys
from slm.config import PipelineConfig, RegistryConfig, RetrainConfig
from slm.errors import CorruptionError, Interrupted, InUse
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.model.saved import MODEL
from slm.records import Parent, Run
from slm.registry import gate, register, versions
from slm.registry.chain import version_lineage
from slm.registry.initial import parent_of_run
from slm.reproduction.reproduce import reproduce
from slm.retraining import decide as deciding
from slm.retraining import drift, shown
from slm.retraining.continued import continued
from slm.retraining.decide import Decision
from slm.retraining.drift import Changes, Drift
from slm.retraining.evidence import Evidence
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.storage import lock, lock_of
from slm.tokens.encode import encode
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tracking.server import connect, default_uri
from slm.training import launch
from slm.training.loop import train

LIMITS = RetrainConfig(
    min_new_fraction=0.05, max_gone_fraction=0.2, drift_threshold=0.1, bpb_rise=0.5
)
LENIENT = RegistryConfig(
    gate_documents=25, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)


# ---- the table --------------------------------------------------------------------------------


def evidence(**changes: Any) -> Evidence:
    """What makes a training continue from the champion, with some of it changed."""
    counts = {"before": 100, "now": 110, "new": 10, "gone": 0, "changed": 0}
    measured = {
        "documents": 10, "tokens": 1000, "divergence": 0.12, "usual": 0.1, "new_bpb": 1.1,
        "held_out_bpb": 1.0,
    }  # fmt: skip
    base = Evidence(
        champion="models:/slm/1",
        changes=Changes(**{k: changes.pop(k, v) for k, v in counts.items()}),
        drift=Drift(**{k: changes.pop(k, v) for k, v in measured.items()}),
    )
    return base.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({}, "continue", "9.1% of the documents are new"),
        ({"made_already": "models:/slm/1"}, "nothing", "trained on the same data"),
        (
            {"made_already": "models:/slm/1", "cadence": ("train.evaluate_every",)},
            "nothing",
            r"chosen by another train\.evaluate_every: `slm run` chooses again",
        ),
        ({"champion": None}, "retrain", "no champion"),
        ({"champion": None, "made_already": "models:/slm/1"}, "nothing", "models:/slm/1"),
        ({"settings": ("model.n_layer",)}, "retrain", r"model\.n_layer"),
        ({"start": ("the seed", "models:/b/2")}, "retrain", "has changed: the seed → models:/b/2"),
        ({"missing": ("its shards are gone",)}, "retrain", "its shards are gone"),
        ({"settings": ("train.seed",), "missing": ("x",)}, "retrain", r"train\.seed"),
        ({"gone": 20}, "continue", "new or changed"),
        ({"gone": 21}, "retrain", r"21\.0% of the champion's documents are gone"),
        ({"new": 5}, "skip", r"4\.55%"),
        ({"new": 1, "changed": 5}, "continue", "new or changed"),
        ({"new": 0, "drift": None}, "skip", r"0\.00%"),
        ({"new": 5, "gone": 21}, "retrain", "gone"),
        ({"divergence": 0.2}, "retrain", r"0\.100 bits of divergence"),
        ({"divergence": 0.19}, "continue", "language"),
        ({"divergence": 0.05}, "continue", r"0\.000 bits of drift"),
        ({"new_bpb": 1.5}, "retrain", r"0\.500 bits per byte more"),
        ({"new_bpb": 0.5}, "continue", r"-0\.500 bits per byte"),
    ],
)
def test_the_decision_is_a_function_of_the_evidence(
    changes: dict[str, Any], action: str, reason: str
) -> None:
    chosen, why = deciding.choose(evidence(**changes), LIMITS)
    assert chosen == action
    with pytest.raises(ValueError, match=reason):
        raise ValueError(why)


@pytest.mark.parametrize(
    ("limit", "value", "scaled"),
    [("max_steps", 10, 3), ("max_steps", 1, 1), ("max_seconds", 60.0, 18.0), ("epochs", 2.0, 0.6)],
)
def test_continuing_takes_a_part_of_the_limit(
    tmp_path: Path, limit: str, value: float, scaled: float
) -> None:
    config = tiny_config(tmp_path, **{"max_steps": None, limit: value})
    again = continued(config)
    assert getattr(again.train, limit) == pytest.approx(scaled)
    restored = again.train.model_copy(update={limit: value})
    assert again.model_copy(update={"train": restored}) == config


# ---- a dataset that grows ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two hundred stories."""
    add_documents(tmp_path / "dataset" / "a.jsonl", 7, 200)
    return tmp_path / "dataset"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return empty_store(tmp_path / "data")


def settings(folder: Path, **training: Any) -> PipelineConfig:
    return tiny_config(folder, **training).model_copy(update={"registry": LENIENT})


def decide(config: PipelineConfig, root: Path) -> Decision:
    return deciding.decide(config, download(config, root=root), root=root)


def trained(config: PipelineConfig, decision: Decision, root: Path) -> Run:
    """What the flow trains after a decision, in this process."""
    train_config, parent = deciding.training(config, decision, root=root)
    tokenizer = Tokenizer.load(parent.path / "tokenizer.tiktoken") if parent else None
    shards = encode(train_config, download(config, root=root), tokenizer=tokenizer, root=root)
    with code(CLEAN):
        run = launch.train(train_config, shards, parent=parent, root=root)
        evaluation = evaluate(train_config, run, shards_of(run))
        version = register.register(train_config, run, evaluation, None, shards_of(run), root=root)
    register.annotate(version, config, shown.tags(decision), root=root)
    return run


def test_a_dataset_grows_and_the_champion_with_it(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(folder, max_steps=20)
    first = decide(config, root)
    assert (first.action, first.trains) == ("retrain", True)
    before = trained(config, first, root)
    assert gate.promote("models:/dataset@challenger", root=root).decision == "promoted"

    with monkeypatch.context() as patch:
        patch.setattr(drift, "compare", lambda *_: pytest.fail("documents were read"))
        again = decide(config, root)
        assert (again.action, again.trains) == ("nothing", False)
        assert "models:/dataset/1 was trained on the same data" in again.reason
        for saved in ({"checkpoint_every": 7}, {"keep_checkpoints": 7}):
            same = decide(settings(folder, max_steps=20, **saved), root)
            assert (same.action, same.reason) == (again.action, again.reason)
        scored = decide(settings(folder, max_steps=20, evaluate_every=7), root)
        assert (scored.action, scored.evidence.cadence) == ("nothing", ("train.evaluate_every",))
        changed = decide(settings(folder, max_steps=20, learning_rate=1e-3), root)
    assert (changed.action, changed.evidence.settings) == ("retrain", ("train.learning_rate",))
    with monkeypatch.context() as patch:  # a setting that was added to the config later
        patch.setattr(keys, "ADDED", {"train.keep_checkpoints": ("train", 2)})
        assert decide(config, root).action == "nothing"
        changed = decide(settings(folder, max_steps=20, keep_checkpoints=3), root)
    assert (changed.action, changed.evidence.settings) == ("retrain", ("train.keep_checkpoints",))
    check_without_run_folders(folder, root)

    add_documents(folder / "b.jsonl", 8, 60)
    grown = decide(config, root)
    assert grown.action == "continue"
    assert grown.evidence.changes == Changes(before=200, now=260, new=60, gone=0, changed=0)
    assert grown.evidence.drift is not None
    assert grown.evidence.drift.excess < 0.03

    run = trained(config, grown, root)
    assert run.step == 6  # three tenths
    described = (run.checkpoint("last"), before.checkpoint("best"))
    tokenizers = {(path / "tokenizer.tiktoken").read_bytes() for path in described}
    assert len(tokenizers) == 1
    gate.promote("models:/dataset@challenger", root=root)
    assert decide(config, root).action == "nothing"  # promoted or refused, it was tried

    chain = version_lineage("models:/dataset/2", root)
    assert chain["parent"].value == f"models:/dataset/1, of {before.name}"
    assert chain["parent"].state == "unchanged"
    assert "parent" in chain["run"].made_from
    tags = connect(default_uri(root)).get_model_version("dataset", "2").tags
    assert tags["slm.retrain"] == "continue"
    assert tags["slm.new_documents"] == "23.08%"
    assert tags["slm.parent"] == "models:/dataset/1"
    with code(CLEAN):
        assert reproduce(RunFolder(run.path)).verdict == "bit-identical"
    flip_byte(run.path / "parent" / MODEL)
    assert lineage(RunFolder(run.path))["parent"].state == "changed"


def test_what_a_training_starts_from_is_a_reason_where_it_is_another_model(
    folder: Path, root: Path, tmp_path: Path
) -> None:
    """Not where it is a version of the model itself: its promotion would be the next reason."""
    config = settings(folder, max_steps=2, init_from="models:/base@champion")
    parents = {}
    for name, seed in (("one", 1), ("two", 2)):
        made = copy_run(tmp_path / name, seed=seed)
        best = RunFolder(made).best
        assert best is not None
        parents[name] = parent_of_run(best.path, best.files).model_copy(
            update={"model": f"models:/base/{seed}"}
        )
    one, two = parents["one"], parents["two"]
    source = download(config, root=root)

    def decide_from(initial: Parent | None, by: PipelineConfig = config) -> Decision:
        return deciding.decide(by, source, initial, root=root)

    first = decide_from(one)
    assert (first.action, deciding.training(config, first, one)) == ("retrain", (config, one))
    tokenizer = Tokenizer.load(one.path / "tokenizer.tiktoken")
    shards = encode(config, source, tokenizer=tokenizer, root=root)
    with code(CLEAN):
        run = launch.train(config, shards, parent=one, root=root)
        evaluation = evaluate(config, run, shards)
        register.register(config, run, evaluation, None, shards, root=root)
    gate.promote("models:/dataset@challenger", root=root, force="for the test")
    assert decide_from(one).action == "nothing"
    other = decide_from(two)
    assert (other.action, other.reason) == (
        "retrain",
        "what training starts from has changed: models:/base/1 → models:/base/2",
    )
    plain = settings(folder, max_steps=2)
    assert "models:/base/1 → the seed" in decide_from(None, plain).reason
    own = two.model_copy(update={"model": "models:/dataset/1"})
    assert decide_from(own).action == "nothing"

    add_documents(folder / "b.jsonl", 8, 60)
    source = download(config, root=root)
    grown = decide_from(one)
    assert grown.action == "continue"
    again, champion = deciding.training(config, grown, one, root=root)
    assert again.train.init_from is None
    assert champion is not None
    assert champion.model == "models:/dataset/1"
    shards = encode(
        again, source, tokenizer=Tokenizer.load(champion.path / "tokenizer.tiktoken"), root=root
    )
    with code(CLEAN):
        run = launch.train(again, shards, parent=champion, root=root)
        register.register(again, run, evaluate(again, run, shards), None, shards, root=root)
    gate.promote("models:/dataset@challenger", root=root, force="for the test")
    assert decide_from(one).action == "nothing"  # the first of its line started from that
    assert "models:/base/1 → models:/base/2" in decide_from(two).reason


def test_documents_are_locked_while_they_are_compared(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(folder)
    source = download(config, root=root)

    def gather(*_: object) -> Evidence:
        with pytest.raises(InUse), lock(lock_of(source.path), wait=False):
            pass
        return Evidence()

    monkeypatch.setattr(deciding, "gather", gather)
    assert deciding.decide(config, source, root=root).action == "retrain"


def check_without_run_folders(folder: Path, root: Path) -> None:
    """The tags of a version decide whether it was made of this data and config."""
    (root / "runs").rename(root / "elsewhere")
    assert decide(settings(folder, max_steps=20), root).action == "nothing"
    trained_otherwise = settings(folder, max_steps=20, learning_rate=1e-3)
    encoded_otherwise = settings(folder, max_steps=20)
    data = encoded_otherwise.data.model_copy(update={"vocab_size": 500})
    for config in (trained_otherwise, encoded_otherwise.model_copy(update={"data": data})):
        decision = decide(config, root)
        assert decision.action == "retrain"
        assert "its settings are gone from here" in decision.reason
    (root / "elsewhere").rename(root / "runs")


# ---- a continued training resumes exactly -----------------------------------------------------


def continuing(folder: Path, root: Path) -> Path:
    """A run of eight steps that continues from another one, prepared."""
    config = settings(folder, max_steps=8)
    shards = encode(config, download(config, root=root), root=root)
    with code(CLEAN):
        whole = launch.train(config, shards, root=root)
        register.register(
            config,
            whole,
            evaluate(config, whole, shards_of(whole)),
            None,
            shards_of(whole),
            root=root,
        )
    parent = versions.as_parent("models:/dataset/1", config, root)
    assert parent.run == whole.name
    run = launch.prepare(config, shards, parent=parent, root=root).path
    assert run != whole.path
    return run


def test_a_parent_is_the_start_and_its_copy_is_verified(folder: Path, root: Path) -> None:
    run = continuing(folder, root)
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        train(RunFolder(run), should_stop=lambda: next(stops))
    saved = json.loads((run / "checkpoints" / "step_000002" / "record.json").read_text())
    parent = json.loads((run / "parent" / "record.json").read_text())
    assert saved["parent_sha256"] == parent["files"][MODEL]["sha256"]
    flip_byte(run / "parent" / MODEL)
    with pytest.raises(CorruptionError, match="parent"):
        train(RunFolder(run))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_continued_training_that_is_killed_ends_in_the_same_bits(
    folder: Path, root: Path
) -> None:
    run = continuing(folder, root)
    command = [sys.executable, "-m", "slm.training.process", str(run)]
    kill = {**os.environ, "SLM_FAULT": "train.step:5:kill"}
    assert subprocess.run(command, env=kill).returncode == -signal.SIGKILL
    assert subprocess.run(command).returncode == 0
    resumed = RunFolder(run).verified_record
    whole = continuing(folder, empty_store(root.parent / "again"))
    assert subprocess.run([*command[:-1], str(whole)]).returncode == 0
    uninterrupted = RunFolder(whole).verified_record
    assert resumed is not None
    assert uninterrupted is not None
    assert resumed.weights_sha256 == uninterrupted.weights_sha256
