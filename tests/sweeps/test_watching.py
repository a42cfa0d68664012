"""A sweep that is watched and stopped while its driver runs."""

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from run_folders import SHARDS_KEY, write_journal

import slm
from slm.cli import main
from slm.config import PipelineConfig
from slm.errors import Interrupted
from slm.records import Evaluation, Run
from slm.run_folder import LOCK, DataRoot, RunFolder, Settings
from slm.storage import lock
from slm.sweeps.definition import Sweep, define_sweep
from slm.sweeps.driver import run_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, Trial
from slm.sweeps.stop import running_trials
from slm.sweeps.watch import SweepObserver, total

SPACE = {"train.learning_rate": "log:1e-3:1e-2"}


@pytest.fixture
def sweep(project: Path) -> Sweep:
    return define_sweep("tiny", SPACE, trials=4, batch=2, name="rates")


def result_of(config: PipelineConfig) -> tuple[Run, Evaluation]:
    """As of a training: the greater the learning rate, the better."""
    bpb = 1 - config.train.learning_rate
    run = Run(
        key="a" * 64, shards_key=SHARDS_KEY, best="step_000004", last="step_000004", step=4,
        tokens=512, train_loss=bpb, val_loss=bpb, val_bpb=bpb, tok_per_sec=100.0, seconds=5.0,
        parameters=4, weights_sha256="b" * 64, level="C", environment={},
    )  # fmt: skip
    evaluation = Evaluation(
        key="c" * 64, run="tiny-aaaaaaaaaaaa", checkpoint="step_000004", weights_sha256="b" * 64,
        documents=3, tokens=30, bytes=60, val_loss=bpb, val_bpb=bpb,
    )  # fmt: skip
    return run, evaluation


@contextmanager
def driven(sweep: Sweep, train: Callable[[PipelineConfig], Any]) -> Iterator[threading.Thread]:
    """A driver in a thread, which ends within the block."""

    def drive() -> None:
        with suppress(Interrupted):
            run_sweep(sweep, None, run_trial=train)

    thread = threading.Thread(target=drive)
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()


def test_a_sweep_is_watched_to_its_end(sweep: Sweep) -> None:
    go, begun = threading.Event(), threading.Event()

    def train(config: PipelineConfig) -> Any:
        begun.set()
        assert go.wait(20)
        return result_of(config)

    with driven(sweep, train):
        assert begun.wait(20)
        watching = slm.watch("rates", seconds=0.01)
        first = next(watching)
        assert (first.state, first.done, first.of, first.best) == ("running", 0, 4, None)
        assert first.sentence == "running: 0 of 4 trials"
        go.set()
        states = [first, *watching]
    assert [trial.number for state in states for trial in state.trials] == [0, 1, 2, 3]
    last = states[-1]
    assert (last.state, last.done, last.seconds_left) == ("finished", 4, None)
    best = max(last.best_values.values())
    assert last.best_bpb == pytest.approx(1 - best)
    assert last.sentence.startswith(
        f"finished: 4 of 4 trials, best trial {last.best}: val_bpb 0.99"
    )
    assert "(train.learning_rate=0.00" in last.sentence


def test_a_sweep_is_stopped_between_trials_and_resumes(sweep: Sweep) -> None:
    trained: list[float] = []
    begun, go = threading.Event(), threading.Event()

    def train(config: PipelineConfig) -> Any:
        trained.append(config.train.learning_rate)
        begun.set()
        assert go.wait(20)
        return result_of(config)

    with driven(sweep, train):
        assert begun.wait(20)
        threading.Timer(0.3, go.set).start()
        stopped = slm.stop("rates")
    assert (stopped.was_running, stopped.finished, stopped.trials, stopped.of) == (
        True, False, 1, 4,
    )  # fmt: skip
    assert "is stopped, 1 of 4 trials done" in stopped.sentence
    (state,) = slm.watch("rates")
    assert (state.state, state.done) == ("stopped", 1)
    assert not slm.stop("rates").was_running

    with driven(sweep, train):
        pass
    assert len(trained) == len(set(trained)) == 4  # none was repeated
    assert slm.stop("rates").sentence.endswith("is not running: it is complete, 4 of 4 trials done")


def test_the_trials_in_training_are_those_that_differ_by_the_space_alone(
    sweep: Sweep, data_root: Path
) -> None:
    folder = SweepFolder.of(sweep)
    configs = [
        sweep.config({"train.learning_rate": 0.005}),
        sweep.config({"train.learning_rate": 0.005, "train.seed": 9}),
        sweep.config({"model.n_layer": 2}),
    ]
    paths = []
    for number, config in enumerate(configs):
        paths.append(data_root / "runs" / f"tiny-{str(number) * 12}")
        (paths[-1] / "checkpoints").mkdir(parents=True)
        RunFolder(paths[-1]).write_settings(Settings(str(number) * 64, config, SHARDS_KEY, None))
    write_journal(paths[0], [{"event": "start", "time": 1.0}])
    with folder.locked():
        folder.write_sweep(sweep, {})
        with lock(paths[0] / LOCK), lock(paths[2] / LOCK):
            assert [run.path for run in running_trials(folder)] == [paths[0]]
            (running,) = SweepObserver(folder).look().running
            assert running.run == paths[0].name
    assert SweepObserver(folder).look().running == ()


def trial(number: int, seconds: float) -> Trial:
    seed = SeedRun(seed=0, state="finished", val_bpb=1.0, seconds=seconds, tokens=1000)
    return Trial(number=number, batch=0, values={}, overrides={}, seeds=(seed,))


@pytest.mark.parametrize(
    ("budget", "trials", "count"),
    [(None, 2, 20), ("5 trials", 2, 5), ("60s", 2, 6), ("60s", 0, 20), ("8000 tokens", 2, 8)],
)
def test_a_budget_says_how_many_trials_there_will_be(
    project: Path, budget: str | None, trials: int, count: int
) -> None:
    sweep = define_sweep("tiny", SPACE, budget=budget)
    assert total(sweep, [trial(number, 10.0) for number in range(trials)]) == count


def test_a_name_of_neither_a_run_nor_a_sweep_is_one_message(sweep: Sweep) -> None:
    for function in (slm.watch, slm.stop):
        with pytest.raises(slm.UserError, match="no run 'nothing'"):
            function("nothing")


def test_the_commands_take_a_sweep(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep(sweep, None, run_trial=result_of)
    name = SweepFolder.of(sweep).name

    def invoke(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        *trials, last = invoke("watch", "rates")
        assert [line.split()[:2] for line in trials] == [["trial", str(n)] for n in range(4)]
        assert last.startswith(f"{name}  finished: 4 of 4 trials, best trial ")
        lines = [json.loads(line) for line in invoke("watch", name, "--json")]
        assert [line["trial"]["number"] for line in lines[:-1]] == [0, 1, 2, 3]
        assert (lines[-1]["state"], lines[-1]["done"]) == ("finished", 4)
        (line,) = invoke("stop", "rates", "--json")
        assert json.loads(line)["finished"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert DataRoot().sweep("rates").name == name
