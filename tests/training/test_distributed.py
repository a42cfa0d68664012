"""Several processes that train one run: rank 0 decides, verifies, saves and reports the end."""

import hashlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
import torch.distributed as dist

import slm.training.clock
import slm.training.loop
import slm.training.plan
from slm.config import PipelineConfig
from slm.errors import Interrupted, TrainingError
from slm.records import Shards
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import checkpoint as checkpoint_module
from slm.training import launch
from slm.training.checkpoint import latest_checkpoint
from slm.training.distributed import all_reduce_max, broadcast_from_rank0
from slm.training.loop import train
from slm.training.provenance import environment
from slm.training.session import open_job

Config = Callable[..., PipelineConfig]
Work = Callable[[int], object]


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(
        **{
            "data.documents": 60,
            "train.processes": 2,
            "train.micro_batches": 2,
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
    environment()  # cached, so that no fork runs git
    torch.compiler.disable(len)  # loads what torch loads late, once instead of in each fork
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


def test_a_single_process_gets_its_own_values() -> None:
    assert (all_reduce_max(3.5), broadcast_from_rank0("one")) == (3.5, "one")


def test_rank_0_fixes_the_plan_of_both(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """The second one is slower and would take smaller passes; both make as many steps."""
    run = launch.prepare(changed(config, max_steps=None, max_seconds=1.0), shards, root=tmp_path)
    train_step = slm.training.loop.train_step

    def work(rank: int) -> None:
        slm.training.plan.pick_micro_batch = lambda *_: (2, 1)[rank]

        def step(*arguments: Any) -> Any:
            time.sleep(0.05 * rank)
            return train_step(*arguments)

        slm.training.loop.train_step = step
        assert (train(run) is None) == (rank == 1)

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()
    plan = run.plan
    assert plan is not None
    assert plan.micro_batch_size == 2
    assert plan.probe["step_seconds"] > 0.05
    assert len([e for e in run.journal if e["event"] == "step"]) == plan.max_steps


def test_rank_0_decides_the_cooldown_of_both(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """By its own clock, also after a stop: that of the other one does not move."""
    timed = changed(config, max_steps=None, max_seconds=6.0, schedule="wsd", cooldown=0.4)
    run = launch.prepare(timed, shards, root=tmp_path)

    def trainer(should_stop: Callable[[], bool]) -> Work:
        def work(rank: int) -> None:
            ticks = itertools.count()
            slm.training.loop.steps_between_questions = lambda *_: 1
            train(run, should_stop=should_stop, clock=lambda: next(ticks) * (1 - rank) / 4)

        return work

    codes = pair(trainer(lambda: run.decision is not None))
    assert codes == [Interrupted.exit_code, 0], (tmp_path / "log0").read_text()
    decision = run.decision
    assert decision is not None
    assert pair(trainer(lambda: False)) == [0, 0], (tmp_path / "log0").read_text()
    assert run.decision == decision
    steps = [entry["step"] for entry in run.journal if entry["event"] == "step"]
    assert steps == list(range(1, decision.max_steps + 1))
    assert decision.max_steps > decision.cooldown_start > 1


def test_a_decision_that_rank_1_never_heard_of_is_followed_by_both(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """Rank 0 dies when it is written, before the other has it."""
    timed = changed(config, max_steps=None, max_seconds=6.0, schedule="wsd", cooldown=0.4)
    run = launch.prepare(timed, shards, root=tmp_path)
    share_decision = slm.training.clock.share_decision

    def work(rank: int) -> None:
        ticks = itertools.count()
        slm.training.loop.steps_between_questions = lambda *_: 1
        train(run, clock=lambda: next(ticks) / 4)

    def dies(rank: int) -> None:
        slm.training.clock.share_decision = lambda decision: (
            os._exit(9) if decision else share_decision(decision)
        )
        work(rank)

    assert pair(lambda rank: (work if rank else dies)(rank)) == [9, faults.RAISED]
    decision = run.decision
    assert decision is not None
    assert pair(work) == [0, 0], (tmp_path / "log0").read_text()
    assert run.decision == decision
    record = run.verified_record
    assert record is not None
    assert record.step == decision.max_steps
    assert [e["step"] for e in run.journal if e["event"] == "decision"] == [decision.cooldown_start]


def test_rank_1_neither_waits_for_the_last_save_nor_reads_it(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    run = launch.prepare(config, shards, root=tmp_path)
    commit = checkpoint_module.commit

    def work(rank: int) -> None:
        def slow(*arguments: Any) -> Any:
            time.sleep(0.3)
            return commit(*arguments)

        checkpoint_module.commit = slow
        train(run)

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()
    record = run.verified_record
    assert record is not None
    assert record.level == "F"


def test_only_rank_0_reports_that_the_state_is_saved(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """One of them is to stop; both do, and rank 0 reports it once the state is saved."""
    run = launch.prepare(config, shards, root=tmp_path)
    codes = pair(lambda rank: train(run, should_stop=lambda: rank == 1))
    assert codes == [Interrupted.exit_code, 0]
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 1
    assert pair(lambda rank: train(run)) == [0, 0]


def test_a_save_that_fails_is_what_is_reported(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    run = launch.prepare(config, shards, root=tmp_path)

    def work(rank: int) -> None:
        def fail(*_: object) -> None:
            raise TrainingError("no room")

        checkpoint_module.commit = fail
        train(run, should_stop=lambda: True)

    assert pair(work) == [TrainingError.exit_code, 0]


def test_rank_0_alone_hashes_the_shards_before_the_other_reads_them(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    run = launch.prepare(config, shards, root=tmp_path)
    file_digest = hashlib.file_digest

    def work(rank: int) -> None:
        def slow(file: Any, *arguments: Any) -> Any:
            if Path(file.name).parent == shards.path:
                assert rank == 0
                time.sleep(0.3)
                (tmp_path / "verified").touch()
            return file_digest(file, *arguments)

        hashlib.file_digest = slow
        open_job(run)
        assert (tmp_path / "verified").exists()

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()


def test_the_processes_agree_on_a_stop_at_the_same_few_steps(
    pair: Callable[[Work], list[int]], config: PipelineConfig, shards: Shards, tmp_path: Path
) -> None:
    """Every half second instead of at every step, though one of them counts longer steps."""
    run = launch.prepare(changed(config, max_steps=40), shards, root=tmp_path)

    def work(rank: int) -> None:
        steps_between_questions = slm.training.loop.steps_between_questions
        slm.training.loop.steps_between_questions = lambda count, _: steps_between_questions(
            count, 0.005 + 0.04 * rank
        )

        def should_stop() -> bool:
            done = [e["step"] for e in run.journal if e["event"] == "step"]
            with (tmp_path / f"questions{rank}").open("a") as file:
                file.write(f"{max(done)}\n")
            return False

        train(run, should_stop=should_stop if rank == 0 else lambda: False)

    assert pair(work) == [0, 0], (tmp_path / "log1").read_text()
    questions = (tmp_path / "questions0").read_text().split()
    assert questions[:4] == ["1", "12", "23", "34"]  # 0.5 s are 11 steps of the slower one
