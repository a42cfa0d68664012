"""`ddp` and `fsdp`: they train, save and resume, in the one format of checkpoints."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from faults import Bits, Lab, bits, fork_group, wait

from slm.config import PipelineConfig
from slm.errors import Interrupted, TrainingError, UserError
from slm.model.saved import MODEL
from slm.reproduction.replay import verify_steps
from slm.reproduction.reproduce import reproduce
from slm.run_folder import CHECKPOINTS, RunFolder
from slm.source.download import download
from slm.storage import sha256_file
from slm.tokens.encode import encode
from slm.training import loop
from slm.training.checkpoint import OPTIMIZER, latest_checkpoint, load_training_state
from slm.training.loop import train
from slm.training.optim import optimizer_tensors
from slm.training.parallel import gather
from slm.training.provenance import environment
from slm.training.session import Session, open_job, open_session
from slm.training.step import train_step

Config = Callable[..., PipelineConfig]
PARALLEL = ("ddp", "fsdp")


@pytest.fixture
def make_lab(tmp_path: Path, tiny_config: Config) -> Iterator[Callable[..., Lab]]:
    memory = Path("/dev/shm")
    environment()  # cached, so that no fork runs git
    torch.set_num_threads(1)
    torch.compiler.disable(len)  # loads what torch loads late, once instead of in each fork
    from torch.distributed.fsdp import fully_shard  # noqa: F401

    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:

        def make(parallel: str, **settings: object) -> Lab:
            fixed: dict[str, object] = {
                "train.parallel": parallel,
                "data.documents": 60,
                "model.n_layer": 2,
                "train.optimizer": "muon",
                "train.max_steps": 6,
                "train.tokens_per_step": 12 * 32,
                "train.micro_batch_size": 2,  # two passes of each of three processes
                "train.evaluate_every": 3,
                "train.evaluate_documents": 2,
                "train.checkpoint_every": 2,
                "train.threads": 1,
                "train.precision": "fp32",
                "train.device": "cpu",
            }
            config = tiny_config(**{**fixed, **settings})
            shards = encode(config, download(config, root=tmp_path), root=tmp_path)
            place = Path(folder) / str(len(list(Path(folder).iterdir())))
            place.mkdir()
            return Lab(config, shards, place)

        yield make


def together(work: Callable[[], object], count: int, folder: Path) -> list[int]:
    return [wait(child) for child in fork_group(work, count, folder)]


def trained_by(lab: Lab, count: int) -> RunFolder:
    run = lab.prepare(lab.root())
    codes = together(lambda: train(run), count, run.path)
    assert codes == [0] * count, (run.path / "log0").read_text()
    return run


def losses(run: RunFolder) -> list[float]:
    return [entry["train_loss"] for entry in run.journal if entry["event"] == "step"]


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_it_trains_as_one_process_does(
    parallel: str, optimizer: str, make_lab: Callable[..., Lab]
) -> None:
    """Without dropout the losses are those of one process, but for rounding."""
    lab = make_lab(parallel, **{"train.optimizer": optimizer, "model.dropout": 0.0})
    run = trained_by(lab, 3)
    assert losses(run) == pytest.approx(losses(trained_by(lab, 1)), rel=1e-4)
    record = run.verified_record
    assert record is not None
    assert record.level == "E"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_stopped_and_resumed_by_as_many_processes_it_gives_the_same_bits(
    parallel: str, make_lab: Callable[..., Lab]
) -> None:
    lab = make_lab(parallel, **{"model.dropout": 0.1})
    expected = bits(trained_by(lab, 3))
    run = lab.prepare(lab.root())
    while not run.is_finished:
        codes = together(partial(train, run, should_stop=lambda: True), 3, run.path)
        assert codes in ([Interrupted.exit_code, 0, 0], [0, 0, 0]) or run.is_finished
        if codes[0] and len(losses(run)) == 6:
            assert together(lambda: train(run), 3, run.path) == [0, 0, 0]
    assert bits(run) == expected


def state_of(session: Session) -> dict[str, torch.Tensor]:
    """All that a checkpoint would have, gathered."""
    weights, wrong = gather(session.model.state_dict(), keep=True)
    moments, also = gather(optimizer_tensors(session.model, session.optimizers), keep=True)
    assert (wrong, also) == (None, None)
    return {**weights, **moments}


def test_sharded_by_2_whole_in_1_and_sharded_by_2_the_weights_are_the_same(
    make_lab: Callable[..., Lab],
) -> None:
    """A checkpoint of fsdp, loaded and saved again by other numbers, has the same bytes."""
    lab = make_lab("fsdp")
    run = lab.prepare(lab.root())
    stop = partial(train, run, should_stop=lambda: True)
    assert together(stop, 2, run.path) == [Interrupted.exit_code, 0], (
        run.path / "log0"
    ).read_text()
    checkpoint = latest_checkpoint(run.path / CHECKPOINTS)
    assert checkpoint is not None
    weights, moments, _ = load_training_state(checkpoint.path)

    def same() -> None:
        plan = run.plan
        assert plan is not None
        session = open_session(open_job(run), plan)
        held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel()
                   for p in session.model.parameters())  # fmt: skip
        share = held / session.model.parameter_count()
        assert share == pytest.approx(1 / session.job.world_size, rel=0.1)
        state = state_of(session)
        assert state.keys() == weights.keys() | moments.keys()
        for name, tensor in {**weights, **moments}.items():
            assert torch.equal(state[name], tensor), name

    for count in (2, 1, 2):
        assert together(same, count, run.path) == [0] * count, (run.path / "log0").read_text()
    for count in (1, 2):
        codes = together(stop, count, run.path)
        assert codes[0] == Interrupted.exit_code, (run.path / "log0").read_text()
    assert together(lambda: train(run), 2, run.path) == [0, 0], (run.path / "log0").read_text()
    assert len(losses(run)) == 6
    assert run.verified_record is not None


@pytest.mark.parametrize(
    "first",
    ["fsdp", *(pytest.param(other, marks=pytest.mark.slow) for other in ("elastic", "ddp"))],
)
def test_a_checkpoint_of_any_kind_is_resumed_by_any_other(
    first: str, make_lab: Callable[..., Lab]
) -> None:
    made = make_lab(first)
    run = made.prepare(made.root())
    assert together(partial(train, run, should_stop=lambda: True), 2, run.path)[0] == 130
    checkpoint = latest_checkpoint(run.path / CHECKPOINTS)
    assert checkpoint is not None
    digests = {name: sha256_file(checkpoint.path / name) for name in (MODEL, OPTIMIZER)}

    def work(other: Lab) -> None:
        plan, parallel = run.plan, other.config.train.parallel
        assert plan is not None
        job = replace(open_job(run), config=other.config)
        session = open_session(job, plan.model_copy(update={"parallel": parallel}))
        assert session.step == 1
        state = state_of(session)
        saved = safetensors.torch.load_file(checkpoint.path / MODEL)
        assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
        loss, norm = train_step(session, *session.loader.batch(session.step))
        assert math.isfinite(loss)
        assert math.isfinite(norm)

    for second in {"elastic", *PARALLEL} - {first}:
        codes = together(partial(work, make_lab(second)), 2, run.path)
        assert codes == [0, 0], (run.path / "log0").read_text()
    assert digests == {name: sha256_file(checkpoint.path / name) for name in digests}


def test_ddp_resumed_by_another_number_of_processes_promises_no_bits(
    make_lab: Callable[..., Lab],
) -> None:
    """Any number may resume a run that exists; journal and level have it."""
    lab = make_lab("ddp")
    run = lab.prepare(lab.root())
    stop = partial(train, run, should_stop=lambda: True)
    assert together(stop, 2, run.path)[0] == Interrupted.exit_code
    assert together(lambda: train(run), 3, run.path) == [0] * 3, (run.path / "log0").read_text()
    record = run.verified_record
    assert record is not None
    assert record.level == "B"
    with pytest.raises(UserError, match=r"by 2, then 3 processes under train\.parallel=ddp"):
        verify_steps(run)
    reproduction = reproduce(run)
    assert reproduction.verdict == "cannot"
    assert "summed gradients in an order that is lost" in reproduction.sentence


def test_a_weight_that_is_not_finite_ends_all_processes(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has it in its part."""
    lab = make_lab("fsdp")
    run = lab.prepare(lab.root())
    save = loop.save

    def spoiled(session: Session, *arguments: Any) -> None:
        if dist.get_rank() == 1:
            parameter: Any = next(session.model.parameters())
            parameter.detach().to_local()[0] = math.nan
        save(session, *arguments)

    monkeypatch.setattr(loop, "save", spoiled)
    codes = together(lambda: train(run), 2, run.path)
    assert codes == [TrainingError.exit_code] * 2
    assert "is not finite after it, so nothing is saved" in (run.path / "log1").read_text()


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# ---- proofs -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", PARALLEL)
def test_4_processes_killed_at_random_give_the_same_bits(
    parallel: str, make_lab: Callable[..., Lab]
) -> None:
    """Level E on a CPU, of four processes: gloo adds in the same order in every one of them."""
    settings = {"train.max_steps": 60, "train.checkpoint_every": 5, "model.dropout": 0.1}
    lab = make_lab(parallel, **settings, **{"train.evaluate_every": 20})
    expected: Bits = bits(trained_by(lab, 4))
    run, kills = lab.prepare(lab.root()), 0
    while not run.is_finished:
        children, before = fork_group(lambda: train(run), 4, run.path), len(losses(run))
        while len(losses(run)) < before + 9 and not has_ended(children[0]):
            time.sleep(0.002)
        for child in children:
            os.kill(child, signal.SIGKILL)
        kills += sum(wait(child) != 0 for child in children) > 0
        assert kills < 30
    assert bits(run) == expected
