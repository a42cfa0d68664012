"""Replay: identical bits are reported as identical, and the first difference is named."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_pipelines import PIPELINES

from slm.errors import CorruptionError, InUse, UserError
from slm.model.saved import MODEL
from slm.recipes import load_recipe
from slm.records import Checkpoint
from slm.reproduction.replay import verify_steps
from slm.run_folder import JOURNAL, RunFolder
from slm.source.download import download
from slm.storage import RECORD, describe_files, lock, lock_of, read_record, write_record
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps with the checkpoints 4, 6 and 8."""
    root = tmp_path_factory.mktemp("replay")
    (root / "pipelines.yaml").write_text(PIPELINES)
    settings = {
        "model.dropout": 0.1,
        "train.optimizer": "muon",
        "train.max_steps": 8,
        "train.micro_batch_size": 2,
        "train.evaluate_every": 8,
        "train.keep_checkpoints": 3,
        "train.threads": 1,
        "train.precision": "bf16",
    }
    config = load_recipe("tiny", settings, path=root / "pipelines.yaml")
    shards = encode(config, download(config, root=root), root=root)
    torch.set_num_threads(1)
    run = launch.prepare(config, shards, root=root)
    train(run)
    return run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test to change."""
    (tmp_path / "shards").symlink_to(trained.parents[1] / "shards")
    return Path(shutil.copytree(trained, tmp_path / "runs" / trained.name))


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_what_is_repeated_is_locked(run: Path) -> None:
    shards = RunFolder(run).shards
    assert shards is not None
    locked = []

    def progress(*_: object) -> None:
        for folder in (run, shards.path):
            with pytest.raises(InUse), lock(lock_of(folder), wait=False):
                pass
        locked.append(1)

    assert verify_steps(RunFolder(run), progress=progress).verdict == "identical"
    assert locked


def test_the_last_stretch_is_identical_and_nothing_is_written(run: Path) -> None:
    before = files(run)
    result = verify_steps(RunFolder(run))
    assert (result.verdict, result.origin, result.start, result.stop) == ("identical", 6, 7, 8)
    assert (result.steps, result.checkpoints, result.level) == (2, [8], "C")
    assert result.changed == []
    assert files(run) == before


def test_from_the_seed_where_no_checkpoint_is_kept_before(run: Path) -> None:
    shown: list[tuple[str, float, float | None]] = []
    result = verify_steps(RunFolder(run), 2, 6, lambda *line: shown.append(line))
    assert (result.verdict, result.origin, result.steps) == ("identical", 0, 6)
    assert result.checkpoints == [4, 6]
    assert shown[-1] == ("from the seed", 6, 6)


def test_another_loss_in_the_journal_is_reported(run: Path) -> None:
    lines = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    for line in lines:
        if line["event"] == "step" and line["step"] == 5:
            line["train_loss"] += 1e-12
    (run / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = verify_steps(RunFolder(run), 5)
    assert (result.verdict, result.first_step, result.tensor) == ("different", 5, None)
    assert result.losses is not None
    assert result.losses[0] == result.losses[1] + 1e-12


def test_another_weight_is_named(run: Path) -> None:
    """One weight of the checkpoint that is compared with is moved, and its record agrees."""
    folder = run / "checkpoints" / "step_000006"
    weights = safetensors.torch.load_file(folder / MODEL)
    weights["embed.weight"][3, 1] += 0.5
    safetensors.torch.save_file(weights, folder / MODEL)
    _sign(folder)
    result = verify_steps(RunFolder(run), 5, 8)
    assert (result.verdict, result.first_step) == ("different", 6)
    assert result.tensor is not None
    assert (result.tensor.step, result.tensor.name) == (6, "embed.weight")
    assert result.tensor.largest == pytest.approx(0.5, rel=1e-4)


def test_another_start_gives_other_losses(run: Path) -> None:
    folder = run / "checkpoints" / "step_000004"
    weights = safetensors.torch.load_file(folder / MODEL)
    safetensors.torch.save_file({n: t * 1.01 for n, t in weights.items()}, folder / MODEL)
    _sign(folder)
    result = verify_steps(RunFolder(run), 5, 8)
    assert (result.first_step, result.checkpoints) == (5, [6])
    assert result.tensor is not None
    assert result.tensor.step == 6


def _sign(folder: Path) -> None:
    record = read_record(folder, Checkpoint, verify=False)
    assert record is not None
    files = describe_files(folder, [p for p in folder.iterdir() if p.name != RECORD])
    write_record(folder, record.model_copy(update={"files": files}))


def test_a_damaged_checkpoint_is_not_started_from(run: Path) -> None:
    (run / "checkpoints" / "step_000006" / MODEL).write_bytes(b"no tensors")
    before = files(run)
    assert verify_steps(RunFolder(run)).origin == 4
    assert files(run) == before


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (5, 4), (7, 9), (20, None)])
def test_steps_that_are_not_there_are_refused(run: Path, start: int, stop: int | None) -> None:
    with pytest.raises(UserError, match=r"has the steps 1 to 8"):
        verify_steps(RunFolder(run), start, stop)


def test_what_cannot_be_replayed_is_refused(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "world_size": 3}))
    with pytest.raises(UserError, match="trained by 3 processes under an older slm"):
        verify_steps(RunFolder(run))
    journal = (run / "metrics.jsonl").read_text()
    other = '{"event": "resume", "step": 8, "processes": 4, "time": 1.0}\n'
    (run / "metrics.jsonl").write_text(journal + other)
    (run / "plan.json").write_text(json.dumps({**plan, "parallel": "ddp"}))
    with pytest.raises(UserError, match=r"by 1, then 4 processes under train\.parallel=ddp"):
        verify_steps(RunFolder(run))
    (run / "plan.json").unlink()
    with pytest.raises(UserError, match="no step of it was trained yet"):
        verify_steps(RunFolder(run))


def test_a_gap_in_the_journal_is_refused(run: Path) -> None:
    lines = (run / JOURNAL).read_text().splitlines(keepends=True)
    (run / JOURNAL).write_text("".join(line for line in lines if '"step": 7,' not in line))
    with pytest.raises(CorruptionError, match="no loss of step 7"):
        verify_steps(RunFolder(run), 7, 8)
