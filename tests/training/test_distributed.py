"""Several processes that train one run: what one decides, and who says how it ended."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
import torch
import torch._dynamo  # which torch loads late: here once, not in each fork
import torch.distributed as dist

import slm.training.loop
import slm.training.plan
from slm.config import PipelineConfig
from slm.errors import Interrupted, TrainingError
from slm.records import Shards
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.checkpoint import CheckpointWriter, latest_checkpoint
from slm.training.distributed import all_reduce_max, broadcast_from_rank0
from slm.training.loop import train
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]
Work = Callable[[int], object]


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(
        **{
            "data.documents": 60,
            "train.processes": 2,
            "train.max_steps": 6,
            "train.tokens_per_step": 128,
            "train.evaluate_every": 3,
            "train.checkpoint_every": 100,
            "train.threads": 1,
            "train.precision": "fp32",
            "train.device": "cpu",
        }
    )


@pytest.fixture
def shards(config: PipelineConfig, tmp_path: Path) -> Shards:
    torch.set_num_threads(1)
    environment()  # remembered, so that no fork has to ask git
    return encode(config, download(config, root=tmp_path), root=tmp_path)


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[Work], list[int]]:
    """Does something in two processes of one group, in forks; returns their exit codes."""

    def start(rank: int, work: Work) -> int:
        def member() -> None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
            dist.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/group", rank=rank, world_size=2
            )
            work(rank)

        return faults.fork(member, log=tmp_path / f"log{rank}")

    def both(work: Work) -> list[int]:
        (tmp_path / "group").unlink(missing_ok=True)
        children = [start(rank, work) for rank in range(2)]
        return [faults.wait(child) for child in children]

    return both


def changed(config: PipelineConfig, **fields: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


def test_one_value_and_one_text_for_both(pair: Callable[[Work], list[int]]) -> None:
    def work(rank: int) -> None:
        assert all_reduce_max(0.1 + rank) == 1.1
        assert broadcast_from_rank0("naïve" if rank == 0 else "another text") == "naïve"

    assert pair(work) == [0, 0]


def test_alone_a_process_is_told_what_it_says() -> None:
    assert (all_reduce_max(3.5), broadcast_from_rank0("one")) == (3.5, "one")


def test_the_first_process_settles_the_plan_of_both(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """The second one is slower and would take smaller passes; both make as many steps."""
    run = launch.prepare(changed(config, max_steps=None, max_seconds=1.0), shards, root=tmp_path)
    honest = slm.training.loop.train_step

    def work(rank: int) -> None:
        slm.training.plan.pick_micro_batch = lambda *_: (2, 1)[rank]

        def step(*arguments: object) -> object:
            time.sleep(0.05 * rank)
            return honest(*arguments)  # type: ignore[arg-type]

        slm.training.loop.train_step = step  # type: ignore[assignment]
        assert (train(run) is None) == (rank == 1)

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()
    plan = RunFolder(run.path).plan
    assert plan is not None
    assert plan.micro_batch_size == 2
    assert plan.probe["step_seconds"] > 0.05
    assert len([e for e in RunFolder(run.path).journal if e["event"] == "step"]) == plan.max_steps


def test_the_second_process_neither_waits_for_the_last_save_nor_looks_at_it(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    run = launch.prepare(config, shards, root=tmp_path)
    honest = CheckpointWriter._write

    def work(rank: int) -> None:
        def slow(*arguments: object) -> object:
            time.sleep(0.3)
            return honest(*arguments)  # type: ignore[arg-type]

        CheckpointWriter._write = slow  # type: ignore[assignment]
        train(run)

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()
    record = RunFolder(run.path).verified_record
    assert record is not None
    assert record.level == "E"


def test_only_the_first_process_says_that_its_state_is_saved(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """One of them is asked to stop; both do, and one tells it, when it is true."""
    run = launch.prepare(config, shards, root=tmp_path)
    codes = pair(lambda rank: train(run, should_stop=lambda: rank == 1))
    assert codes == [Interrupted.exit_code, 0]
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 1
    assert pair(lambda rank: train(run)) == [0, 0]


def test_a_save_that_fails_is_what_is_told(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    run = launch.prepare(config, shards, root=tmp_path)

    def work(rank: int) -> None:
        def fail(*_: object) -> None:
            raise TrainingError("no room")

        CheckpointWriter._write = fail  # type: ignore[assignment]
        train(run, should_stop=lambda: True)

    assert pair(work) == [TrainingError.exit_code, 0]
