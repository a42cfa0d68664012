import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.config import PipelineConfig
from slm.errors import Interrupted, InUse, NewerFormat, SlmError, TrainingError, UserError
from slm.run_folder import DataRoot
from slm.storage import reset_fault_points, sha256_json
from slm.sweeps import driver
from slm.sweeps.definition import Sweep
from slm.sweeps.driver import check_stopping, run_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SweepResult
from tests.sweeps.sweeping import Trainer, tiny_sweep

pytestmark = pytest.mark.usefixtures("project")


class Killed(BaseException):
    """As SIGKILL: nothing of ours handles it."""


def outcome(result: SweepResult) -> list[Any]:
    """All of a result that must be the same however it came about."""
    trials = [
        (t.number, t.batch, t.values, t.overrides, t.rung, t.val_bpb, t.state, t.reason,
         [s.weights_sha256 for s in t.seeds])
        for t in result.trials
    ]  # fmt: skip
    return [result.best, result.ended, result.seconds, result.tokens, trials]


def run(sweep: Sweep, root: Path, trainer: Trainer | None = None, **options: Any) -> SweepResult:
    return run_sweep(sweep, root, run_trial=trainer or Trainer(), **options)


def one_training_a_life() -> Callable[[PipelineConfig], None]:
    count = 0

    def hurdle(config: PipelineConfig) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise Killed

    return hurdle


@pytest.mark.parametrize("fields", [
    {"sampler": "random"}, {"sampler": "tpe"}, {"halving": 2, "seeds": 2},
    {"sampler": "grid", "trials": None,
     "space": {"model.n_layer": "1,2,3", "train.learning_rate": "1e-3,4e-3,1e-2"}},
])  # fmt: skip
def test_killed_before_every_training_nothing_is_repeated_or_lost(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    sweep = tiny_sweep(**{"trials": 13, "batch": 4, **fields})
    expected = outcome(run(sweep, tmp_path / "undisturbed"))
    trainer, kills = Trainer(), 0
    while True:
        trainer.hurdle = one_training_a_life()
        try:
            result = run(sweep, tmp_path / "killed", trainer)
            break
        except Killed:
            kills += 1
    assert kills >= 5
    assert outcome(result) == expected
    assert set(trainer.trained.values()) == {1}
    assert any(trial.state == "failed" for trial in result.trials)


def test_failing_at_every_write_nothing_is_repeated_or_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is half-written when a driver ends, the next one continues."""
    sweep = tiny_sweep(trials=3, batch=2)
    expected = outcome(run(sweep, tmp_path / "undisturbed"))
    passes = 0
    while True:
        passes += 1
        root, trainer = tmp_path / str(passes), Trainer()
        reset_fault_points()
        monkeypatch.setenv("SLM_FAULT", f"*:{passes}:raise")
        try:
            run(sweep, root, trainer)
        except RuntimeError:
            monkeypatch.delenv("SLM_FAULT")
            assert outcome(run(sweep, root, trainer)) == expected
            assert set(trainer.trained.values()) <= {1}
        else:
            break
    assert passes > 20


@pytest.mark.parametrize("damage", [b"", b"{", b'{"number": 0}', None])
def test_a_damaged_record_is_made_again_from_the_runs(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, trainer = tiny_sweep(), Trainer()
    expected = outcome(run(sweep, tmp_path, trainer))
    path = SweepFolder.of(sweep, tmp_path).path / "trials" / "0001.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1) if damage is None else damage)
    assert outcome(run(sweep, tmp_path, trainer)) == expected
    assert set(trainer.trained.values()) == {1}
    assert "the trial is run again" in caplog.text


@pytest.mark.parametrize("fields", [{"sampler": "tpe", "trials": 16}, {"halving": 2, "seeds": 2}])
def test_several_workers_run_the_trials_of_one(tmp_path: Path, fields: dict[str, Any]) -> None:
    sweep = tiny_sweep(batch=4, **{"trials": 10, **fields})
    expected = outcome(run(sweep, tmp_path / "one"))
    delays = random.Random(5)
    for workers in (2, 4):
        orders: list[int] = []
        trainer = Trainer(delay=lambda n: delays.random() * 0.03)
        result = run(
            sweep, tmp_path / str(workers), trainer, workers=workers,
            on_trial=lambda trial, orders=orders: orders.append(trial.number),
        )  # fmt: skip
        assert outcome(result) == expected
        assert set(trainer.trained.values()) == {1}
        assert sorted(orders) == list(range(sweep.trials))


def test_trials_of_a_batch_run_at_the_same_time(tmp_path: Path) -> None:
    met = threading.Barrier(3, timeout=20)  # which breaks where they run one after another
    run(tiny_sweep(batch=3), tmp_path, Trainer(1, lambda config: met.wait() and None), workers=3)


def test_whatever_ends_one_training_ends_those_next_to_it(tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    def hurdle(config: PipelineConfig) -> None:
        if not started.is_set():
            started.set()
            try:
                while True:
                    check_stopping()
            except Interrupted:
                ended.set()
                raise
        started.wait(20)
        raise SlmError("no room on the disk")

    with pytest.raises(SlmError, match="no room"):
        run(tiny_sweep(), tmp_path, Trainer(1, hurdle), workers=2)
    assert ended.is_set()


def test_more_trials_continue_a_sweep(tmp_path: Path) -> None:
    trainer = Trainer()
    short = run(tiny_sweep(trials=5), tmp_path, trainer)
    folder = SweepFolder.of(tiny_sweep(trials=5), tmp_path)
    assert folder.result == short
    long = run(tiny_sweep(trials=11), tmp_path, trainer)
    assert set(trainer.trained.values()) == {1}
    assert outcome(long) == outcome(run(tiny_sweep(trials=11), tmp_path / "undisturbed"))
    assert folder.result == long
    assert folder.sweep.trials == 11
    trainer.hurdle = lambda config: pytest.fail("nothing is left to train")
    assert outcome(run(tiny_sweep(trials=5), tmp_path, trainer)) == outcome(short)


@pytest.mark.parametrize(
    ("budget", "trials"), [("35s", 4), ("40s", 4), ("41s", 6), ("1024 tokens", 2), ("5 trials", 6)]
)
def test_no_batch_begins_once_the_budget_is_spent(tmp_path: Path, budget: str, trials: int) -> None:
    """Each training counts 10 s and 512 tokens, whatever the driver's clock says."""
    sweep = tiny_sweep(batch=2, trials=8, budget=budget)
    result = run(sweep, tmp_path, Trainer(1))
    assert (len(result.trials), result.ended) == (trials, "budget")
    again = Trainer()
    assert outcome(run(sweep, tmp_path, again)) == outcome(result)
    assert not again.trained
    more = run(tiny_sweep(batch=2, trials=8, budget="1h"), tmp_path, Trainer(1))
    assert (len(more.trials), more.ended) == (8, "trials")


def test_a_space_that_is_used_up(tmp_path: Path) -> None:
    result = run(tiny_sweep({"model.n_layer": "1,2,3"}, trials=8), tmp_path)
    assert (len(result.trials), result.ended) == (3, "space")


def test_the_best_is_the_lowest_mean_over_the_seeds(tmp_path: Path) -> None:
    result = run(tiny_sweep(seeds=3, trials=8), tmp_path)
    finished = [t for t in result.trials if t.val_bpb is not None]
    assert result.winner == min(finished, key=lambda t: t.val_bpb or 0)
    assert [s.seed for s in result.trials[0].seeds] == [1337, 1338, 1339]
    assert result.ranked[0] == result.winner
    mean = sum(s.val_bpb or 0 for s in finished[0].seeds) / 3
    assert finished[0].val_bpb == pytest.approx(mean)


def test_the_best_of_halving_had_the_whole_limit(tmp_path: Path) -> None:
    result = run(tiny_sweep(halving=3, trials=12), tmp_path)
    assert result.winner is not None
    assert result.winner.rung == 1
    assert {trial.rung for trial in result.ranked} == {1}
    assert result.correlations[0].trials == len(result.ranked)


def test_all_may_fail(tmp_path: Path) -> None:
    result = run(tiny_sweep(sampler="tpe", trials=14), tmp_path, Trainer(1e-9))
    assert (result.best, result.winner, len(result.trials)) == (None, None, 14)
    assert all("train_loss is nan" in trial.reason for trial in result.trials)


def test_a_config_that_is_refused_in_a_range_is_a_failed_trial(tmp_path: Path) -> None:
    """The ends of a range are checked beforehand, what is between them when it is proposed."""
    result = run(tiny_sweep({"model.n_embd": "32:64"}, trials=10), tmp_path)
    states = {trial.values["model.n_embd"] % 2: trial.state for trial in result.trials}
    assert states == {0: "finished", 1: "failed"}
    assert any("is not a multiple of model.n_head" in trial.reason for trial in result.trials)


# ---- what stops a sweep, and what does not ------------------------------------------------------


def test_a_trainer_that_is_killed_is_resumed(tmp_path: Path) -> None:
    errors: list[Exception] = [TrainingError("killed (SIGKILL)")] * 2

    def hurdle(config: PipelineConfig) -> None:
        if errors:
            raise errors.pop()

    assert len(run(tiny_sweep(), tmp_path, Trainer(1, hurdle)).trials) == 6
    errors += [TrainingError("killed (SIGKILL)")] * driver.MAX_ATTEMPTS
    with pytest.raises(TrainingError, match="SIGKILL"):
        run(tiny_sweep(seed=8), tmp_path, Trainer(1, hurdle))
    assert SweepFolder.of(tiny_sweep(seed=8), tmp_path).trials == []  # none is taken as failed


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "IN_USE_SECONDS", 0.001)
    errors: list[Exception] = [InUse("runs/tiny is in use")] * 20

    def hurdle(config: PipelineConfig) -> None:
        if errors:
            raise errors.pop()

    assert len(run(tiny_sweep(), tmp_path, Trainer(1, hurdle)).trials) == 6


@pytest.mark.parametrize("error", [OSError(28, "no space"), Interrupted("stopped"), SlmError("x"),
                                   UserError("cannot write to data")])  # fmt: skip
def test_what_is_no_fault_of_the_settings_stops_the_sweep(tmp_path: Path, error: Exception) -> None:
    def hurdle(config: PipelineConfig) -> None:
        raise error

    with pytest.raises(type(error)):
        run(tiny_sweep(), tmp_path, Trainer(1, hurdle))
    assert SweepFolder.of(tiny_sweep(), tmp_path).trials == []


def test_a_sweep_is_run_by_one_driver_at_a_time(tmp_path: Path) -> None:
    sweep = tiny_sweep()
    folder = SweepFolder.of(sweep, tmp_path)
    with folder.locked():
        assert folder.is_running
        with pytest.raises(InUse, match=f"the sweep {folder.name} is in use"):
            run(sweep, tmp_path)
    assert not folder.is_running
    run(sweep, tmp_path)


def test_other_libraries_that_propose_otherwise_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny_sweep(trials=2)
    run(sweep, tmp_path)
    original = driver.propose
    monkeypatch.setattr(driver, "versions", lambda: {"scipy": "9.9"})
    run(sweep, tmp_path)  # the same proposals: no matter
    monkeypatch.setattr(
        driver,
        "propose",
        lambda sweep, results: [
            p.model_copy(update={"overrides": {"model.n_layer": 9}})
            for p in original(sweep, results)
        ],
    )
    with pytest.raises(SlmError, match=r"trial 0 .* was proposed with .*scipy \d"):
        run(sweep, tmp_path)


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    sweep = tiny_sweep()
    run(sweep, tmp_path)
    path = SweepFolder.of(sweep, tmp_path).path / "trials" / "0001.json"
    fields = {**json.loads(path.read_bytes()), "format": 99}
    del fields["sha256"]
    newer = json.dumps({**fields, "sha256": sha256_json(fields)})
    path.write_text(newer)
    with pytest.raises(NewerFormat):
        run(sweep, tmp_path)
    assert path.read_text() == newer


# ---- references ---------------------------------------------------------------------------------


def test_a_sweep_is_known_by_its_folder_its_name_and_its_key(tmp_path: Path) -> None:
    first, second = tiny_sweep(name="rates"), tiny_sweep(name="other", seed=3)
    for sweep in (first, second):
        run(sweep, tmp_path)
    root, folder = DataRoot(tmp_path), SweepFolder.of(first, tmp_path)
    assert [path.name for path in root.sweeps()] == sorted(
        SweepFolder.of(sweep, tmp_path).name for sweep in (first, second)
    )
    for reference in (
        folder.name,
        str(folder.path),
        "rates",
        first.key[:8],
        f"rates-{first.key[:5]}",
    ):
        assert root.sweep(reference) == folder.path.resolve(), reference
    assert SweepFolder.open("rates", tmp_path).sweep == first
    assert SweepFolder.of(first.model_copy(update={"name": "renamed"}), tmp_path) == folder
    with pytest.raises(UserError, match="did you mean 'rates-"):
        root.sweep(folder.name.replace("rates", "ratess"))
    with pytest.raises(UserError, match="there are none"):
        DataRoot(tmp_path / "nothing").sweep("rates")
