"""Sweeps of real trainings, whose driver and trainers are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

import slm
from slm.errors import InUse
from slm.run_folder import DataRoot
from slm.sweeps.folder import SweepFolder
from slm.training.launch import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("project")]
SPACE = {"train.learning_rate": "log:1e-3:1e-2", "model.n_layer": "1,2"}
TRIALS, KILLS = 6, 8


def command(*options: str) -> list[str]:
    space = [word for key, text in SPACE.items() for word in ("--space", f"{key}={text}")]
    return [sys.executable, "-m", "slm.cli.main", "sweep", "tiny", *space, "--json", *options]


def driver(root: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command("--trials", str(TRIALS), "--batch", "2", *options),
        env={**os.environ, "SLM_DATA": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def result_of(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return dict(json.loads(output))


def weights(result: dict[str, Any]) -> list[Any]:
    kept = ("number", "overrides", "val_bpb", "weights_sha256", "state")
    return [{name: trial[name] for name in kept} for trial in result["trials"]]


def trained(root: Path) -> Counter[str]:
    """How often each run was trained to its end."""
    ends = (run.name for run in DataRoot(root).runs() for e in run.journal if e["event"] == "end")
    return Counter(ends)


def wait_for_trials(root: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until so many trials have a record, or the driver has ended."""
    while process.poll() is None and len(list(root.glob("sweeps/*/trials/*.json"))) < count:
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_killed_anywhere_a_sweep_ends_with_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    expected = result_of(driver(calm))
    moments, kills = random.Random(3), 0
    while kills < KILLS:
        process = driver(killed)
        wait_for_trials(killed, min(kills, TRIALS - 1), process)
        time.sleep(moments.random() * 4)
        victims = [process.pid]
        if kills % 2:  # its trainer, or what forks it, is killed as well, or before it
            victims = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            victims = [*moments.sample(victims, min(1, len(victims))), process.pid]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.communicate()
        kills += 1
    result = result_of(driver(killed))
    assert weights(result) == weights(expected)
    assert result["best"]["number"] == expected["best"]["number"]
    assert set(trained(killed).values()) == {1}
    assert len(trained(killed)) == TRIALS
    assert all(seed["reused"] is False for t in expected["trials"] for seed in t["seeds"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted_it_saves_and_resumes(tmp_path: Path, workers: str) -> None:
    long = ("--set", "train.max_steps=400", "--set", "train.checkpoint_every=400", "--trials", "2")
    expected = result_of(driver(tmp_path / "calm", *long))
    root = tmp_path / "interrupted"
    process = driver(root, *long, "--workers", workers)
    while not any(e["event"] == "step" for run in DataRoot(root).runs() for e in run.journal):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert any(run.last for run in DataRoot(root).runs())  # at no step of its own cadence
    assert not any(run.is_training for run in DataRoot(root).runs())
    assert weights(result_of(driver(root, *long, "--workers", workers))) == weights(expected)
    assert set(trained(root).values()) == {1}


@pytest.mark.timeout(600)
def test_two_workers_train_the_trials_of_one(tmp_path: Path) -> None:
    one, two = driver(tmp_path / "one"), driver(tmp_path / "two", "--workers", "2")
    assert weights(result_of(one)) == weights(result_of(two))


@pytest.mark.timeout(600)
def test_a_forked_training_has_the_bits_of_a_started_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "forked"))
    result = slm.sweep("tiny", SPACE, trials=2, batch=2)
    for trial in result.trials:
        config = slm.load_recipe("tiny", trial.overrides)
        root = tmp_path / "started"
        shards = slm.encode(config, slm.download(config, root=root), root=root)
        run = train(config, shards, root=root)
        checkpoint = DataRoot(tmp_path / "forked").run(trial.seeds[0].run).record
        assert checkpoint is not None
        assert checkpoint.weights_sha256 == run.weights_sha256


@pytest.mark.timeout(600)
def test_records_are_enough_when_the_runs_are_gone(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = slm.sweep("tiny", SPACE, trials=2, batch=2)
    for run in DataRoot(data_root).runs():
        subprocess.run(["rm", "-r", str(run.path)], check=True)
    again = slm.sweep("tiny", SPACE, trials=2, batch=2)
    assert again == result
    assert DataRoot(data_root).runs() == []


@pytest.mark.timeout(600)
def test_a_second_driver_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    sweep = slm.sweep("tiny", SPACE, trials=1)
    with SweepFolder.open(sweep.name).locked(), pytest.raises(InUse, match="another process"):
        slm.sweep("tiny", SPACE, trials=1)
