"""Runs made from others: ended early, or trained for longer, with the bits of a whole training."""

import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from faults import fork, wait
from tiny_run import CLEAN, code

from slm.errors import Interrupted, InUse, UserError
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.records import Run, Shards
from slm.report.cards import commands
from slm.reproduction.replay import verify_steps
from slm.reproduction.reproduce import reproduce
from slm.retention import collect, survey
from slm.run_folder import CHECKPOINTS, LOCK, RunFolder
from slm.source.download import download
from slm.storage import lock
from slm.tokens.encode import encode
from slm.tracking.entities import params, run_tags
from slm.training import derive, launch, supervisor
from slm.training.checkpoint import checkpoint_name
from slm.training.derive import finish, train_longer
from slm.training.loop import train

WSD: dict[str, Any] = {"schedule": "wsd", "max_steps": 10, "cooldown": 0.4, "warmup": 0.3}


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a source and its shards."""
    root = tmp_path_factory.mktemp("encoded")
    config = tiny_run.tiny_config(tiny_run.write_documents(root / "documents.jsonl"))
    encode(config, download(config, root=root), root=root)
    return root


class Place:
    """A data folder of its own, with the shards of all."""

    def __init__(self, encoded: Path, root: Path) -> None:
        self.root, self.encoded = root, encoded
        for kind in ("sources", "shards"):
            shutil.copytree(encoded / kind, root / kind)

    def prepare(self, **training: Any) -> RunFolder:
        config = tiny_run.tiny_config(self.encoded / "documents.jsonl", **training)
        return launch.prepare(config, self.shards, root=self.root)

    @property
    def shards(self) -> Shards:
        config = tiny_run.tiny_config(self.encoded / "documents.jsonl")
        return encode(config, download(config, root=self.root), root=self.root)


@pytest.fixture
def place(encoded: Path, tmp_path: Path) -> Place:
    return Place(encoded, tmp_path / "data")


def stopped(run: RunFolder, after: int) -> RunFolder:
    """The run, stopped after so many steps of this process."""
    steps = itertools.count(1)
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) >= after)
    return run


def losses(run: RunFolder) -> list[tuple[int, str]]:
    return [(e["step"], e["train_loss"].hex()) for e in run.journal if e["event"] == "step"]


def files_of(run: RunFolder, name: str) -> dict[str, str]:
    checkpoint = run.checkpoint(name, verify=True)
    assert checkpoint is not None
    return {file: entry.sha256 for file, entry in checkpoint.files.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- ended early ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 4])  # at neither an evaluation nor a save, and at both
def test_a_stopped_run_is_finished_as_another_one(place: Place, stop: int) -> None:
    run = stopped(place.prepare(max_steps=8), stop)
    before = contents(run.path)
    record = finish(run.name, root=place.root)
    made = RunFolder.of(record)
    assert not record.reused
    assert (record.step, record.last) == (stop, checkpoint_name(stop))
    assert record.name != run.name
    assert made.settings.derived is not None
    assert (made.settings.derived.run, made.settings.derived.step) == (run.name, stop)
    assert losses(made) == losses(run)
    assert made.config.train.max_steps == stop
    assert evaluate(made.config, record, place.shards).val_bpb > 0
    again = finish(run, root=place.root)
    assert again.reused
    assert again.path == record.path
    assert contents(run.path) == before  # which stays unfinished
    assert train(run) is not None  # and resumes
    assert run.is_finished
    assert finish(run).path == run.path
    assert finish(record).path == record.path


def test_what_was_ended_early_is_reproduced_and_verified(place: Place) -> None:
    run = stopped(place.prepare(max_steps=8), 3)
    made = RunFolder.of(finish(run))
    shutil.rmtree(run.path)  # it needs the other one for nothing
    assert lineage(made)["made from"].state == "not checked"
    assert not lineage(made).broken
    record = made.record
    assert record is not None
    evaluate(made.config, record, place.shards)
    result = reproduce(made)
    assert result.verdict == "bit-identical", result.sentence
    assert verify_steps(made, 1, 3).verdict == "identical"


def test_the_lineage_names_the_other_run_and_compares_its_losses(place: Place) -> None:
    run = stopped(place.prepare(max_steps=8), 3)
    made = RunFolder.of(finish(run))
    link = lineage(made)["made from"]
    assert (link.state, link.digest) == ("unchanged", run.settings.key)
    assert link.value == f"step 3 of {run.name}, ended there"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for entry in lines:
        if entry["event"] == "step":
            entry["train_loss"] += 1
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    assert lineage(made)["made from"].state == "changed"


def test_mlflow_and_the_model_card_name_what_it_was_made_from(place: Place) -> None:
    run = stopped(place.prepare(max_steps=8), 3)
    record = finish(run)
    made = RunFolder.of(record)
    assert run_tags(record)["slm.made_from"] == f"step 3 of {run.name}, ended there"
    assert params(made.config, made.plan)["plan.ended_at"] == "3"
    assert not {"plan.ended_at", "plan.warmup_steps"} & params(run.config, run.plan).keys()
    shown = commands(made.config, record)  # `slm run tiny --set …` would train another schedule
    assert [line.split()[1] for line in shown] == ["reproduce", "evaluate", "sample"]
    whole = train(run)
    assert whole is not None
    assert "slm.made_from" not in run_tags(whole)
    assert [line.split()[1] for line in commands(run.config, whole)][1] == "run"


def test_a_run_by_the_clock_is_ended_before_and_after_its_decision(place: Place) -> None:
    ticks = itertools.count()
    run = place.prepare(schedule="wsd", max_steps=None, max_seconds=0.6)

    def to_step(last: int) -> None:
        reached = {e["step"] for e in run.journal if e["event"] == "step"}
        steps = itertools.count(max(reached, default=0) + 1)
        with pytest.raises(Interrupted):
            train(run, should_stop=lambda: next(steps) >= last, clock=lambda: next(ticks) / 100)

    to_step(3)
    assert run.decision is None
    early = RunFolder.of(finish(run))
    assert early.decision is None
    while run.decision is None:
        to_step(len(losses(run)) + 1)
    to_step(run.decision.cooldown_start + 2)
    late = RunFolder.of(finish(run))
    assert late.decision == run.decision
    for made in (early, late):
        assert made.max_steps == made.config.train.max_steps
        assert losses(made) == losses(run)[: made.max_steps]
        result = reproduce(made)
        assert result.verdict == "bit-identical", result.sentence


def test_killed_at_any_moment_while_it_is_made_it_is_made_the_next_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(place.prepare(max_steps=8), 4)
    before = contents(run.path)
    monkeypatch.setattr(derive, "resume", lambda folder, **_: folder)  # only made, not trained

    def make() -> RunFolder:
        return RunFolder(finish(run).path)

    made = make()
    expected = contents(made.path)
    killed = 0
    while True:
        shutil.rmtree(made.path)
        if wait(fork(make, fault=f"*:{killed + 1}:kill")) == 0:
            break
        killed += 1
        assert make() == made
        assert contents(made.path) == expected, killed
    assert killed > 20
    assert contents(run.path) == before


def test_without_a_checkpoint_there_is_nothing_to_finish(place: Place) -> None:
    run = place.prepare(max_steps=8)
    with pytest.raises(UserError, match=f"no step yet: `slm train {run.name}`"):
        finish(run)
    stopped(run, 1)
    shutil.rmtree(run.path / CHECKPOINTS)
    (run.path / CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        finish(run)


def test_a_run_in_training_is_not_finished(place: Place) -> None:
    run = stopped(place.prepare(max_steps=8), 3)
    with lock(run.path / LOCK), pytest.raises(InUse, match=f"`slm stop {run.name}` first"):
        finish(run)


# ---- longer -----------------------------------------------------------------------------------


def whole(place: Place, made: RunFolder) -> RunFolder:
    """The training of a run's config and plan from the seed, without any copied checkpoint."""
    settings = made.settings
    run = launch.prepare(
        settings.config,
        place.shards,
        root=place.root / "whole",
        key=settings.key,
        derived=settings.derived,
    )
    (place.root / "whole" / "shards").symlink_to(place.root / "shards")
    assert made.plan is not None
    run.write_plan(made.plan)
    if made.decision:
        run.write_decision(made.decision)
    assert train(run) is not None
    return run


@pytest.mark.parametrize("kept", [1, 100])
def test_a_longer_training_has_the_bits_of_one_that_was_planned_so(place: Place, kept: int) -> None:
    run = place.prepare(**WSD, checkpoint_every=4, evaluate_every=3, keep_checkpoints=kept)
    first = train(run)
    assert first is not None
    before = contents(run.path)
    made = RunFolder.of(train_longer(run, 5))
    derived = made.settings.derived
    assert derived is not None
    assert (derived.step, derived.longer, made.max_steps) == (6, 5, 15)
    assert losses(made)[:6] == losses(run)[:6]
    assert losses(made)[6:10] != losses(run)[6:]
    other = whole(place, made)
    assert losses(other) == losses(made)
    assert other.record is not None
    assert made.record is not None
    for name in {made.record.best, made.record.last}:
        assert files_of(made, name) == files_of(other, name)
    assert contents(run.path) == before
    assert run.started is not None
    assert made.started is not None
    assert made.started > max(entry["time"] for entry in run.journal)
    assert run.root.run("latest").name == made.name
    evaluate(made.config, made.record, place.shards)
    result = reproduce(made)
    assert result.verdict == "bit-identical", result.sentence
    assert train_longer(run.name, 5, root=place.root).reused
    further = RunFolder.of(train_longer(made, 3))
    assert further.max_steps == 18
    assert losses(further)[:9] == losses(made)[:9]  # 15 steps have a cooldown of 6
    assert further.plan is not None
    assert further.plan.warmup_steps == 3  # of the ten steps of the first


def test_a_longer_training_that_was_killed_resumes_to_the_same_bits(
    place: Place, tmp_path: Path, encoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(place: Place, faults: tuple[str, ...]) -> RunFolder:
        run = place.prepare(**WSD)
        train(run)
        for fault in faults:

            def supervise(folder: RunFolder, *_: object, fault: str = fault) -> None:
                assert wait(fork(lambda: train(folder), fault=fault)) == -signal.SIGKILL

            with monkeypatch.context() as patch:
                patch.setattr(supervisor, "supervise", supervise)
                with pytest.raises(AssertionError, match="without a record"):
                    train_longer(run, 6)
        return RunFolder.of(train_longer(run, 6))

    straight = longer(place, ())
    kills = ("train.step:1:kill", "train.micro_step:4:kill", "checkpoint.optimizer:2:kill")
    broken = longer(Place(encoded, tmp_path / "other"), (*kills, "train.finish:1:kill"))
    assert broken.name == straight.name
    assert losses(broken) == losses(straight)
    for record in (straight.record, broken.record):
        assert record is not None
        assert record.step == 16
    last = checkpoint_name(16)
    assert files_of(broken, last) == files_of(straight, last)


@pytest.mark.parametrize("longer", [1, 7])
def test_a_run_whose_end_the_clock_chose_is_trained_for_longer(place: Place, longer: int) -> None:
    """A stall of the machine leaves fewer steps for the cooldown than its share."""
    ticks = itertools.count()

    def clock() -> float:
        tick = next(ticks)
        return tick / 100 + (0.25 if tick > 40 else 0)

    limits: dict[str, Any] = {"max_steps": None, "max_seconds": 0.8, "cooldown": 0.5}
    run = place.prepare(schedule="wsd", keep_checkpoints=1, **limits)
    train(run, clock=clock)
    decision = run.decision
    assert decision is not None
    made = RunFolder.of(train_longer(run, longer))
    assert made.settings.derived is not None
    assert made.settings.derived.step == decision.cooldown_start
    assert made.decision is not None
    assert made.decision.cooldown_start >= decision.cooldown_start
    assert made.max_steps == decision.max_steps + longer == len(losses(made))
    assert losses(whole(place, made)) == losses(made)
    result = reproduce(made)
    assert result.verdict == "bit-identical", result.sentence


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_always_falls_is_no_part_of_a_longer_one(
    place: Place, schedule: str
) -> None:
    run = place.prepare(schedule=schedule)
    train(run)
    with pytest.raises(UserError, match=rf"train.schedule={schedule}.*train.max_steps=504"):
        train_longer(run, 500)


def test_what_longer_needs_and_does_not_take(place: Place) -> None:
    run = place.prepare(**WSD)
    with pytest.raises(UserError, match="at least 1"):
        train_longer(run, 0)
    with pytest.raises(UserError, match="no step yet"):
        train_longer(run, 2)
    stopped(run, 4)
    ended = finish(run)
    with pytest.raises(UserError, match=f"prolong {run.name} instead"):
        train_longer(ended, 2)
    train(run)
    for step, folder in run.checkpoints:
        if step < 10:
            shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"no checkpoint .* after step 6, is left"):
        train_longer(run, 2)


def test_what_a_longer_training_needs_is_kept_by_gc(place: Place) -> None:
    run = place.prepare(**WSD, keep_checkpoints=100)
    train(run)
    retention = survey(place.root, [], grace=0)
    collect(retention)
    assert run.checkpoint(checkpoint_name(6)) is not None
    assert run.checkpoint(checkpoint_name(2)) is None
    assert train_longer(run, 2).step == 12


# ---- resumed by name --------------------------------------------------------------------------


def test_a_run_resumes_by_its_name_alone(place: Place) -> None:
    run = stopped(place.prepare(max_steps=6), 3)
    record = launch.resume(run.name, root=place.root)
    assert (record.path, record.step, record.reused) == (run.path, 6, False)
    assert launch.resume(record).reused


def test_a_run_of_shards_that_are_gone_is_not_resumed(place: Place) -> None:
    run = stopped(place.prepare(max_steps=6), 3)
    shutil.rmtree(place.root / "shards")
    for work in (launch.resume, finish):
        with pytest.raises(UserError, match=r"the shards of .* are gone"):
            work(run)


def test_a_record_is_of_its_own_run(place: Place) -> None:
    run = stopped(place.prepare(max_steps=6), 3)
    record: Run = finish(run)
    assert record.key == RunFolder.of(record).settings.key != run.settings.key
