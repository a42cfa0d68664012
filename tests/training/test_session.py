"""A process's batches, weights and checkpoints are on its own device, or copied from it once."""

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from slm.config import PipelineConfig
from slm.machine import pick_device
from slm.records import ShardSplit
from slm.tokens.loader import Loader
from slm.training import process, session, step
from slm.training.checkpoint import copy_to_cpu
from slm.training.plan import make_plan

Config = Callable[..., PipelineConfig]
TOKENS = [np.arange(400, dtype=np.uint16)]


def test_all_of_a_session_is_on_the_device_of_its_process(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"train.device": "cpu"})
    split = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    plan = make_plan(config, split, world_size=1)
    monkeypatch.setattr(session, "pick_device", lambda _: torch.device("meta"))
    opened = session.synthetic_session(config, plan, 512)
    devices = {p.device for p in opened.model.parameters()}
    assert devices == {opened.device, opened.loader.device} == {torch.device("meta")}


def test_a_batch_is_made_on_the_gpu_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that makes it begins with the first GPU as the current one."""
    chosen: dict[int, torch.device] = {}

    def set_device(device: torch.device) -> None:
        chosen[threading.get_ident()] = device

    def batch(step: int) -> torch.device:
        return chosen.get(threading.get_ident(), torch.device("cuda", 0))

    loader = Loader(TOKENS, seq_len=8, rows=2, seed=0)
    loader.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(loader, "batch", batch)
    batches = loader.batches(0)
    assert set(islice(batches, 3)) == {torch.device("cuda", 1)}
    batches.close()  # type: ignore[attr-defined]


def test_a_copy_has_memory_of_its_own() -> None:
    tensors = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, 2).T}
    copies = copy_to_cpu(tensors)
    for name, copy in copies.items():
        assert torch.equal(copy, tensors[name])
        assert copy.data_ptr() != tensors[name].data_ptr()
        assert not copy.requires_grad


def test_a_copy_is_made_by_one_call() -> None:
    """On a GPU a second one would copy the copy, in the CPU's memory."""
    calls: list[str] = []

    class Calls(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Calls():
        copy_to_cpu({"a": torch.ones(3)})
    copying = {"to", "cpu", "clone", "copy_", "contiguous"}
    assert len([name for name in calls if name in copying]) == 1


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.1), ("fp32", 0.2)])
def test_the_share_of_the_peak_is_of_the_runs_precision_and_of_all_its_devices(
    precision: str, share: float, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"train.device": "cpu", "train.precision": precision})
    split = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    plan = make_plan(config, split, world_size=1)
    opened = session.synthetic_session(config, plan, 512)
    opened.job = replace(opened.job, world_size=5)
    rate = opened.model.flops_per_token() * config.train.tokens_per_step / 0.5  # FLOP/s
    peaks = {"bf16": 2 * rate, "fp32": rate}
    monkeypatch.setattr(step, "peak_flops", lambda device, precision: peaks[precision])
    metrics = step.step_metrics(opened, 1.0, 1.0, factor=1.0, seconds=0.5)
    assert metrics["mfu"] == pytest.approx(share)


def test_deterministic_kernels_do_not_fill_every_new_tensor(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = torch.utils.deterministic
    monkeypatch.setattr(settings, "fill_uninitialized_memory", True)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        process.set_up_kernels(tiny_config().train, torch.device("cuda", 1), threads)
        assert torch.are_deterministic_algorithms_enabled()
        assert not settings.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)


# ---- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
def test_every_rank_gets_batches_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From tokens in the CPU's memory as well as from those that are on the GPU."""
    for rank in range(torch.cuda.device_count()):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        loader = Loader(TOKENS, seq_len=8, rows=2, seed=0, device=pick_device("cuda"))
        for resident in (loader.resident, None):
            loader.resident = resident
            batches = loader.batches(0)
            for x, y in islice(batches, 2):
                assert x.device == y.device == torch.device("cuda", rank)
            batches.close()  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_a_tensor_on_a_gpu_is_copied_once() -> None:
    tensor = torch.ones(1000, device="cuda")
    with torch.profiler.profile() as profile:
        copy_to_cpu({"a": tensor})
    calls = [event.name for event in profile.events() or []]
    assert calls.count("aten::copy_") == 1
    assert "aten::clone" not in calls
