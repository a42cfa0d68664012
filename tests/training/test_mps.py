"""Apple's GPUs, of which there is none here: what is decided for them, and what a run records."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_run
import torch
from tiny_run import CLEAN, code

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.evaluation.evaluate import scoring_device
from slm.history.lineage import lineage
from slm.records import ShardSplit
from slm.registry.opening import load_model
from slm.report.cards import promise
from slm.reproduction.reproduce import reproduce
from slm.run_folder import RunFolder
from slm.training import launch, plan, preflight, processes, session
from slm.training.loop import train
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]
SPLIT = ShardSplit(files=[], documents=0, tokens=0, bytes=0)


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 123_456)


@pytest.mark.usefixtures("mps")
def test_the_plan_of_a_training_on_mps(tiny_config: Config) -> None:
    config = tiny_config(**{"train.optimizer": "muon", "model.architecture": "qwen3"})
    made = plan.make_plan(config, SPLIT, 1)
    assert (made.device, made.precision, made.muon_precision) == ("mps", "fp32", "fp32")
    assert (made.parts, made.compile, made.level) == ("plain", False, "B")
    assert plan.memory_bytes("mps") == 123_456
    assert plan.peak_flops("mps", "fp32") is None
    assert processes.planned_processes(config) == 1
    assert preflight.check_machine(config) == []
    assert scoring_device(config) == "mps:0"
    assert environment()["gpu"].startswith("mps")


@pytest.mark.usefixtures("mps")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.precision": "fp16"}, r"train\.precision='fp16' is for GPUs: .* on mps"),
        (
            {"train.processes": 2, "train.micro_batches": 2},
            r"train\.processes=2: one process trains on mps",
        ),
    ],
)
def test_what_mps_cannot_do_is_refused(
    tiny_config: Config, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preflight.check_machine(tiny_config(**{"train.device": "mps", **settings}))


def test_without_such_a_gpu_it_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.device='mps': torch sees no Apple GPU"):
        preflight.check_machine(tiny_config(**{"train.device": "mps"}))
    run = tiny_run.copy_run(tmp_path)
    with pytest.raises(UserError, match=r"device='mps': give cpu, or cuda or mps where"):
        load_model(run, device="mps")


def test_a_run_on_mps_records_that_no_bits_are_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are on the CPU here; all else is as on mps."""
    path = tiny_run.copy_run(tmp_path / "data")
    config = RunFolder(path).config
    shards = RunFolder(path).shards
    assert shards is not None
    other = config.model_copy(update={"train": config.train.model_copy(update={"device": "mps"})})
    with code(CLEAN), monkeypatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "driver_allocated_memory", lambda: 123_456)
        patch.setattr(session, "pick_device", lambda _: torch.device("cpu"))
        run = launch.prepare(other, shards, root=tmp_path / "data")
        assert run.name != path.name
        record = train(run)
    assert record is not None
    assert record.level == "B"
    assert "nothing is promised" in promise(record)
    assert {e["memory_bytes"] for e in run.journal if e["event"] == "step"} == {123_456}
    with code(CLEAN):
        result = reproduce(run, chain=lineage(run))
    assert result.verdict == "cannot"
    assert "torch sees no Apple GPU here" in result.sentence
