"""A training stopped from outside, kept, resumed by its name and trained for longer."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_run import CLEAN, code

import slm
from slm.cli import main
from slm.errors import Interrupted, SlmError
from slm.run_folder import LOCK, DataRoot, RunFolder
from slm.storage import lock
from slm.training.loop import train


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return parsed


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Invoke]:
    """Runs `slm …` in this process, trainings too."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with code(CLEAN), pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, captured.out, captured.err)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stopped(invoke: Invoke) -> RunFolder:
    """A run of eight steps by wsd, stopped after three."""
    from slm.recipes import load_recipe
    from slm.training import launch

    settings = {"train.max_steps": 8, "train.schedule": "wsd", "train.cooldown": 0.5}
    config = load_recipe("tiny", settings)
    run = launch.prepare(config, slm.encode(config, slm.download(config)))
    steps = itertools.count(1)
    with code(CLEAN), pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) >= 3)
    return run


def test_a_run_is_stopped_kept_resumed_and_prolonged(invoke: Invoke, stopped: RunFolder) -> None:
    name = stopped.name
    result = invoke("stop", name)
    assert result.code == 0
    first, resume, keep = result.out.splitlines()
    assert first == f"{name} is not in training; its checkpoint of step 3 is saved"
    assert resume.split(maxsplit=1)[1] == f"slm train {name}"
    assert keep.endswith(f"slm finish {name}")
    assert invoke("stop", name, "--json").json == {
        "run": name, "was_training": False, "finished": False, "step": 3,
    }  # fmt: skip

    result = invoke("evaluate", name)
    assert result.code == 2
    assert f"`slm train {name}` resumes it, and `slm finish {name}`" in result.err

    kept = invoke("finish", name, "--json").json
    assert (kept["step"], kept["made_from"]) == (3, name)
    assert invoke("evaluate", Path(kept["run"]).name).code == 0

    assert invoke("train", name, "--json").json["step"] == 8
    assert f"{name} is not in training: it is finished, at step 8" in invoke("stop", name).out
    assert f"{name} is finished already" in invoke("finish", name).out

    longer = invoke("train", name, "--longer", "4", "--json").json
    assert longer["step"] == 12
    assert longer["run"] not in (str(stopped.path), kept["run"])
    links = {
        link["name"]: link for link in invoke("lineage", longer["run"], "--json").json["links"]
    }
    assert links["made from"]["value"] == f"step 4 of {name}, 4 steps longer"
    assert links["made from"]["state"] == "unchanged"


def test_a_kept_run_goes_through_the_whole_pipeline(invoke: Invoke, stopped: RunFolder) -> None:
    kept = Path(invoke("finish", stopped.name, "--json").json["run"]).name
    version = invoke("register", kept, "--json").json["version"]
    assert version == "models:/slm/1"
    gate = invoke("promote", version)
    assert (gate.code, gate.out.split(":")[0]) == (1, "Refused")  # a model of three steps
    chain = invoke("lineage", version, "--json").json
    assert "made from" in {link["name"] for link in chain["links"]}
    assert not {"made from", "run", "config", "checkpoint"} & set(chain["broken"])
    assert invoke("verify", kept, "--steps", "1:3").code == 0
    reproduced = invoke("reproduce", version, "--json")
    assert reproduced.json["verdict"] == "bit-identical"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "RUN", "--set", "train.max_steps=3"), "which keeps its settings"),
        (("train", "tiny", "--longer", "3"), "--longer prolongs a run, and 'tiny' is a recipe"),
        (("train", "tiny-000000000000"), "unknown run 'tiny-000000000000'"),
        (("train", "tinny"), "unknown recipe 'tinny': did you mean 'tiny'"),
        (("stop", "tiny-000000000000"), "unknown run"),
        (("finish", "nothing/here"), "unknown run"),
    ],
)
def test_bad_input_is_one_message(
    invoke: Invoke, stopped: RunFolder, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke(*(stopped.name if part == "RUN" else part for part in arguments))
    assert result.code == 2
    assert message in result.err


def test_a_name_of_a_run_and_of_a_recipe_is_refused(invoke: Invoke, stopped: RunFolder) -> None:
    pipelines = Path("pipelines.yaml")
    pipelines.write_text(pipelines.read_text().replace("  tiny:", f"  {stopped.name}:"))
    result = invoke("train", stopped.name)
    assert result.code == 2
    assert f"{stopped.name!r} is a recipe and a run" in result.err
    assert invoke("train", str(stopped.path), "--json").json["step"] == 8


def test_shards_that_are_gone_are_made_again(invoke: Invoke, stopped: RunFolder) -> None:
    shutil.rmtree(stopped.root.path / "shards")
    shutil.rmtree(stopped.root.path / "sources")
    assert invoke("train", stopped.name, "--json").json["step"] == 8


def test_what_was_interrupted_names_the_command(
    invoke: Invoke, stopped: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slm.training.launch.resume", interrupt)
    result = invoke("train", stopped.name)
    assert result.code == 130
    assert f"`slm train {stopped.name}` resumes from there" in result.out


# ---- a process that trains --------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_the_training_of_another_process_saves_and_ends(project: Path, data_root: Path) -> None:
    settings = {
        "max_steps": 1_000_000, "evaluate_every": 1_000_000, "checkpoint_every": 1_000_000,
        "threads": 1,
    }  # fmt: skip
    command = [sys.executable, "-m", "slm.cli.main", "train", "tiny"]
    command += [f"--set=train.{name}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        journals = data_root.glob
        while not any(b'"step"' in p.read_bytes() for p in journals("runs/*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        (run,) = DataRoot(data_root).runs()
        children = psutil.Process(process.pid).children(recursive=True)
        result = slm.stop(run.name)
        assert (result.was_training, result.finished) == (True, False)
        assert result.step is not None
        assert not run.is_training
        assert run.checkpoint(f"step_{result.step:06d}", verify=True) is not None
        _, error = process.communicate(timeout=60)
    assert process.returncode == Interrupted.exit_code
    assert f"`slm finish {run.name}` makes a finished run of it" in " ".join(error.split())
    assert not any(child.is_running() for child in children)
    assert not slm.stop(run.name).was_training


def test_a_training_that_cannot_be_seen_is_not_stopped(stopped: RunFolder) -> None:
    """Its lock is held, and no process of this machine has its folder on its command line."""
    with lock(stopped.path / LOCK), pytest.raises(SlmError, match="not visible from here"):
        slm.stop(stopped.name)


def test_a_process_that_only_looks_like_it_is_left_alone(
    stopped: RunFolder, tmp_path: Path
) -> None:
    """It names the module, and another run; or the run alone."""
    sleep = "import time; print('up', flush=True); time.sleep(60)"
    others = [
        ["slm.training.process", str(tmp_path / "runs" / "other")],
        [str(stopped.path)],
        [str(stopped.path), "slm.training.process"],
    ]
    processes = []
    for arguments in others:
        command = [sys.executable, "-c", sleep, *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        assert not slm.stop(stopped.name).was_training
        assert [process.poll() for process in processes] == [None, None, None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
