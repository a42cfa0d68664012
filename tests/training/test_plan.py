"""What is settled before the first step."""

from collections import namedtuple
from collections.abc import Callable

import psutil
import pytest
import torch

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import ShardSplit
from slm.training.plan import (
    CPU_MICRO_TOKENS,
    fitting_tokens,
    make_plan,
    peak_flops,
    pick_micro_batch,
)

Config = Callable[..., PipelineConfig]
Memory = namedtuple("Memory", ["total"])


@pytest.fixture
def wide(tiny_config: Config) -> PipelineConfig:
    """A model whose activations take 12 · (34 · 768 + 5 · 12 · 1024) bytes a token: 1 MB."""
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "seq_len": 1024}
    overrides = {f"model.{name}": value for name, value in shape.items()}
    return tiny_config(**overrides, **{"train.tokens_per_step": 16 * 1024})


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(size))


def test_a_large_memory_leaves_the_pass_at_its_best_size(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1 << 40)
    assert fitting_tokens(wide, "cpu", "bf16") == CPU_MICRO_TOKENS
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == CPU_MICRO_TOKENS // 1024


def test_a_small_memory_gets_smaller_passes(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 5 << 30)  # half of it holds 2,561 tokens in bf16, 1,280 in float32
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == 2
    assert pick_micro_batch(wide, 16, "cpu", "fp32") == 1
    with_memory(monkeypatch, 1 << 20)
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == 1


def test_rows_that_do_not_divide_are_refused(tiny_config: Config) -> None:
    config = tiny_config(**{"train.micro_batch_size": 3})
    with pytest.raises(UserError, match=r"train\.micro_batch_size=3"):
        pick_micro_batch(config, 16, "cpu", "bf16")


@pytest.mark.parametrize(
    ("limit", "asked", "compiles"),
    [
        ({"train.max_steps": 5000}, "auto", True),
        ({"train.max_steps": 5}, "auto", False),
        ({"train.max_seconds": 600}, "auto", False),
        ({"train.max_seconds": 600}, True, True),
    ],
)
def test_what_is_limited_by_seconds_is_compiled_only_where_asked(
    limit: dict[str, int],
    asked: str,
    compiles: bool,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fixed = {"train.compile": asked, "train.precision": "bf16", "train.micro_batch_size": 1}
    data = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    assert make_plan(tiny_config(**limit, **fixed), data, world_size=1).compile == compiles


def test_a_cpu_is_not_measured_by_the_gpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops("cuda") == 989e12
    assert peak_flops("cpu") is None
