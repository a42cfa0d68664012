"""A run whose end the clock chose: reproduced, verified and read by its decision."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
from tiny_run import CLEAN, code

from slm import storage
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.model.saved import MODEL
from slm.progress import silent
from slm.records import Decision
from slm.reproduction.claims import Claims, compare_training
from slm.reproduction.comparing import Comparisons
from slm.reproduction.replay import verify_steps
from slm.reproduction.reproduce import reproduce
from slm.run_folder import DECISION, RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tracking.entities import params
from slm.training import launch
from slm.training.loop import train
from slm.training.selection import select


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, by a clock that moves on by a hundredth whenever it is read."""
    root = tmp_path_factory.mktemp("decided")
    config = tiny_run.tiny_config(
        tiny_run.write_documents(root / "documents.jsonl"),
        max_steps=None, max_seconds=0.4, schedule="wsd", keep_checkpoints=100,
    )  # fmt: skip
    ticks = itertools.count()
    with code(CLEAN):
        shards = encode(config, download(config, root=root), root=root)
        folder = launch.prepare(config, shards, root=root)
        record = train(folder, clock=lambda: next(ticks) / 100)
        assert record is not None
        evaluate(config, record, shards)
    return folder.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    """A copy of its own."""
    shutil.copytree(trained.parents[1], tmp_path, dirs_exist_ok=True)
    return RunFolder(tmp_path / "runs" / trained.name)


def decision_of(run: RunFolder) -> Decision:
    decision = run.decision
    assert decision is not None
    return decision


def test_it_is_rebuilt_by_its_decision(run: RunFolder) -> None:
    """By another clock, of this machine: nothing is decided anew."""
    reproduction = reproduce(run, keep=True)
    assert reproduction.verdict == "bit-identical"
    names = {row.name for row in reproduction.compared}
    last = decision_of(run).max_steps
    assert {f"decision of step_{last:06d}", f"checkpoints/step_{last:06d}/{MODEL}"} <= names
    assert any(name.startswith("journal.decision.max_steps") for name in names)
    (rebuilt,) = Path(str(reproduction.folder)).glob("runs/*")
    assert RunFolder(rebuilt).decision == decision_of(run)


def test_steps_before_and_in_the_cooldown_are_verified(run: RunFolder) -> None:
    start, last = decision_of(run).cooldown_start, decision_of(run).max_steps
    for stretch in ((start - 1, start + 1), (start + 1, last), (1, last)):
        assert verify_steps(run, *stretch).verdict == "identical"


def test_a_decision_that_is_gone_or_changed_breaks_the_lineage(run: RunFolder) -> None:
    assert lineage(run)["run"].state == "unchanged"
    path = run.path / DECISION
    before = path.read_bytes()
    fields = json.loads(before)
    path.write_text(json.dumps({**fields, "max_steps": fields["max_steps"] + 1}))
    assert lineage(run)["run"].state == "changed"
    path.unlink()
    assert lineage(run)["run"].state == "gone"
    reproduction = reproduce(run)
    assert reproduction.verdict == "cannot"
    assert DECISION in reproduction.sentence


def test_every_value_of_a_decision_is_held_to_the_checkpoints(run: RunFolder) -> None:
    recorded = Claims.of(run)
    decision = decision_of(run)
    for name, value in decision.model_dump().items():
        compared = Comparisons()
        forged = decision.model_copy(update={name: value + 1})
        compare_training(compared, replace(recorded, decision=forged), recorded)
        assert any(row.name.startswith("decision of step_") for row in compared.differing), name
    compared = Comparisons()
    compare_training(compared, recorded, recorded)
    assert not compared.differing


def test_its_best_is_chosen_by_another_cadence_up_to_the_decided_end(run: RunFolder) -> None:
    record = run.verified_record
    assert record is not None
    train_config = run.config.train.model_copy(update={"evaluate_every": 4})
    config = run.config.model_copy(update={"train": train_config})
    selected = select(run, record, config, silent)
    (folder,) = run.path.glob("selection-*")
    steps = [int(step) for step in json.loads((folder / storage.RECORD).read_text())["val_bpb"]]
    last = decision_of(run).max_steps
    assert sorted(steps) == sorted({*range(4, last, 4), last})
    assert run.checkpoint(selected.best) is not None


def test_mlflow_has_the_decision_once_it_is_made(run: RunFolder) -> None:
    before, after = (
        params(run.config, run.plan, decision) for decision in (None, decision_of(run))
    )
    assert before.items() <= after.items()
    assert after["decision.max_steps"] == str(run.max_steps)
    assert before["plan.cooldown_by_clock"] == "true"


def test_the_same_settings_ask_for_it_again(run: RunFolder) -> None:
    """As with any limit in seconds, whenever it would end today."""
    shards = run.shards
    assert shards is not None
    again = launch.train(run.config, shards, root=run.root.path)
    assert (again.reused, again.step) == (True, run.max_steps)


def test_a_damaged_decision_costs_the_run_as_a_damaged_plan_does(run: RunFolder) -> None:
    """No other file holds it: the run is quarantined, and trained and decided anew."""
    shards = run.shards
    assert shards is not None
    config = run.config
    tiny_run.flip_byte(run.path / DECISION, place=40)
    again = launch.train(config, shards, root=run.root.path)
    assert not again.reused
    assert again.step == decision_of(run).max_steps
    (quarantined,) = run.path.parent.glob("*.corrupt-*")
    assert (quarantined / DECISION).is_file()
