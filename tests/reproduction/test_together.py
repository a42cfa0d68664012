"""A run of several processes, through torchrun: verified and reproduced end to end."""

import dataclasses
from pathlib import Path

import pytest
from tiny_pipelines import PIPELINES

from slm.config import PipelineConfig
from slm.recipes import load_recipe
from slm.records import Run
from slm.reproduction.replay import verify_steps
from slm.reproduction.reproduce import reproduce
from slm.run_folder import JOURNAL, RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def configured(root: Path, parallel: str) -> PipelineConfig:
    (root / "pipelines.yaml").write_text(PIPELINES)
    settings = {
        "model.dropout": 0.1,
        "train.optimizer": "muon",
        "train.max_steps": 6,
        "train.micro_batch_size": 1,  # two passes of each process
        "train.threads": 1,
        "train.processes": 2,
        "train.parallel": parallel,
        "train.micro_batches": 2 if parallel == "elastic" else "auto",
        "train.device": "cpu",
    }
    return load_recipe("tiny", settings, path=root / "pipelines.yaml")


def trained(root: Path, parallel: str) -> Run:
    config = configured(root, parallel)
    shards = encode(config, download(config, root=root), root=root)
    return launch.train(config, shards, root=root)


@pytest.mark.parametrize("parallel", ["elastic", "ddp", "fsdp"])
def test_two_processes_are_verified_and_reproduced(parallel: str, tmp_path: Path) -> None:
    record = trained(tmp_path, parallel)
    run = RunFolder.of(record)
    assert [e["processes"] for e in run.journal if e["event"] == "start"] == [2]
    assert record.level == ("F" if parallel == "elastic" else "E")

    result = verify_steps(run, 1, 6)
    assert (result.verdict, result.steps, result.origin) == ("identical", 6, 0)
    assert 6 in result.checkpoints
    later = verify_steps(run)
    assert (later.verdict, later.origin, later.checkpoints) == ("identical", 4, [6])

    reproduction = reproduce(run)
    assert reproduction.verdict == "bit-identical", reproduction.sentence

    path = run.path / JOURNAL
    lines = path.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if '"step": 5,' in line and "train_loss" in line)
    loss = next(e["train_loss"] for e in run.journal if e["event"] == "step" and e["step"] == 5)
    lines[place] = lines[place].replace(repr(loss), repr(loss + 1.0))
    path.write_text("".join(lines))
    other = verify_steps(RunFolder(run.path), 5, 6)
    assert (other.verdict, other.first_step) == ("different", 5)
    assert dataclasses.asdict(other)["losses"] == (loss + 1.0, loss)
