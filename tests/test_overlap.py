"""Commands at the same time: each has the right result, or one message with the reason."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import bits, fork, wait
from tiny_run import shards_of

from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.evaluation.evaluate import evaluate
from slm.records import Run
from slm.retention import collect, survey
from slm.run_folder import JOURNAL, RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.loop import train

Config = Callable[..., PipelineConfig]

SETTINGS = {
    "data.documents": 60,
    "train.micro_batch_size": 2,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
}


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(**SETTINGS)


def pipeline(config: PipelineConfig, root: Path) -> Run:
    """Every stage up to the evaluation, in this process."""
    shards = encode(config, download(config, root=root), root=root)
    folder = launch.prepare(config, shards, root=root)
    run = folder.verified_record or train(folder)
    assert run is not None
    evaluate(config, run, shards_of(run))
    return run


@pytest.fixture
def alone(config: PipelineConfig, tmp_path: Path) -> Run:
    """The run as it is with nothing else running; what torch loads late is loaded."""
    torch.set_num_threads(1)
    return pipeline(config, tmp_path / "alone")


def together(works: list[Callable[[], object]], log: Path) -> list[int]:
    """Does all of it at the same time, each in a process; returns their exit codes."""
    log.parent.mkdir(exist_ok=True)
    children = [fork(work, log=log) for work in works]
    return [wait(child) for child in children]


def test_two_pipelines_of_one_recipe(config: PipelineConfig, alone: Run, tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "log"
    codes = together([lambda: pipeline(config, root)] * 2, log)
    text = log.read_text()
    assert 0 in codes, text
    assert set(codes) <= {0, SlmError.exit_code}, text
    assert text.count("in use by another process") == codes.count(SlmError.exit_code)
    assert bits(RunFolder(root / "runs" / alone.name)) == bits(RunFolder.of(alone))
    assert len(list(root.glob("*/*-*/record.json"))) == 3  # one source, its shards, one run
    assert not list(root.rglob("*.tmp"))


def test_two_pipelines_of_different_recipes(
    config: PipelineConfig, alone: Run, tiny_config: Config, tmp_path: Path
) -> None:
    """They share the source, and nothing else."""
    root, log = tmp_path / "data", tmp_path / "log"
    other = tiny_config(**SETTINGS, **{"data.vocab_size": 400})
    codes = together([lambda: pipeline(config, root), lambda: pipeline(other, root)], log)
    assert codes == [0, 0], log.read_text()
    assert bits(RunFolder(root / "runs" / alone.name)) == bits(RunFolder.of(alone))
    assert len(list(root.glob("sources/*/record.json"))) == 1
    assert len(list(root.glob("shards/*/record.json"))) == 2
    assert len(list(root.glob("runs/*/evaluation/record.json"))) == 2


def test_cleaning_up_during_a_pipeline(config: PipelineConfig, alone: Run, tmp_path: Path) -> None:
    """`slm gc` again and again, which keeps no run: what is new, or in use, stays."""
    root, log = tmp_path / "data", tmp_path / "log"
    log.parent.mkdir(exist_ok=True)
    child = fork(lambda: pipeline(config, root), log=log)
    rounds = 0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        collect(survey(root, (), keep_runs=0))
        rounds += 1
    assert wait(child) == 0, log.read_text()
    assert rounds > 3
    assert bits(RunFolder(root / "runs" / alone.name)) == bits(RunFolder.of(alone))
    assert RunFolder(root / "runs" / alone.name).verified_record


def test_an_evaluation_during_the_next_training(
    config: PipelineConfig, alone: Run, tiny_config: Config
) -> None:
    root = alone.path.parents[1]
    expected = json.loads((alone.path / "evaluation" / "record.json").read_bytes())
    (alone.path / "evaluation" / "record.json").unlink()
    following = tiny_config(**SETTINGS, **{"train.max_steps": 60, "train.seed": 2})
    child = fork(lambda: pipeline(following, root), log=root / "log")
    while not any(b'"step"' in p.read_bytes() for p in root.glob(f"runs/*/{JOURNAL}")
                  if p.parent != alone.path):  # fmt: skip
        time.sleep(0.001)
    again = evaluate(config, alone, shards_of(alone))
    assert not again.reused
    for added in ("format", "sha256"):
        expected.pop(added)
    assert again.model_dump(mode="json") == expected
    assert wait(child) == 0, (root / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("other", ["tiny", "tiny --set=train.seed=2"])
def test_two_slm_runs_together(project: Path, data_root: Path, other: str) -> None:
    """Whole commands, each with its Prefect server on the same data folder."""
    commands = ["tiny", other]
    env = {**os.environ, "PREFECT_HOME": str(data_root / "prefect")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "slm.cli.main", "run", *command.split(), "--json"],
            cwd=project,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    ended = [(*p.communicate(timeout=350), p.returncode) for p in processes]
    for _, errors, code in ended:
        assert "Traceback" not in errors, errors
        if code:
            assert code == SlmError.exit_code, errors
            assert errors.count("in use by another process") == 1, errors
    done = [json.loads(out.splitlines()[-1]) for out, _, code in ended if code == 0]
    assert len(done) == 2 or (len(done) == 1 and other == "tiny"), ended
    assert len({result["run"] for result in done}) == len(set(commands)) or other == "tiny"
    for result in done:
        assert RunFolder(Path(result["run"])).verified_record
