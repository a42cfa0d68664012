"""What is fixed before the first step."""

import resource
import sys
from collections.abc import Callable

import pytest
import torch

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.model.gpt import GPT
from slm.records import Plan, ShardSplit
from slm.storage import sha256_json
from slm.training import plan as module
from slm.training.plan import (
    CPU_MICRO_TOKENS,
    fitting_tokens,
    make_plan,
    peak_flops,
    pick_micro_batch,
    pick_micro_batches,
    pick_parts,
    pick_precision,
    plan_sha256,
)
from slm.training.session import synthetic_session
from slm.training.step import train_step

Config = Callable[..., PipelineConfig]


@pytest.fixture
def wide(tiny_config: Config) -> PipelineConfig:
    """A model whose activations take 12 · (34 · 768 + 5 · 12 · 1024) bytes per token: 1 MB."""
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "seq_len": 1024}
    overrides = {f"model.{name}": value for name, value in shape.items()}
    return tiny_config(**overrides, **{"train.tokens_per_step": 16 * 1024})


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: size)


def test_a_large_memory_leaves_the_pass_at_its_best_size(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1 << 40)
    assert fitting_tokens(wide, "cpu", "bf16") == CPU_MICRO_TOKENS
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == CPU_MICRO_TOKENS // 1024


def test_a_small_memory_gets_smaller_passes(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 5 << 30)  # half of it holds 2,555 tokens in bf16, 1,277 in float32
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == 2
    assert pick_micro_batch(wide, 16, "cpu", "fp32") == 1
    with_memory(monkeypatch, 1 << 20)
    assert pick_micro_batch(wide, 16, "cpu", "bf16") == 1


def test_processes_of_one_machine_share_its_memory(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 5 << 30)
    assert fitting_tokens(wide, "cpu", "bf16") == 2555
    train = wide.train.model_copy(update={"micro_batches": 2})
    shared = wide.model_copy(update={"train": train})
    assert fitting_tokens(shared, "cpu", "bf16") == 1277
    assert pick_micro_batch(shared, 8, "cpu", "bf16") == 1


def test_a_plan_does_not_depend_on_the_number_of_processes(
    wide: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 GB hold two rows of one micro-batch, or one row of each of two: whoever trains on them."""
    with_memory(monkeypatch, 5 << 30)
    data = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    for micro_batches, rows in ((1, 2), (2, 1)):
        fixed = {"device": "cpu", "precision": "bf16", "micro_batches": micro_batches}
        train = wide.train.model_copy(update=fixed)
        config = wide.model_copy(update={"train": train})
        plans = [make_plan(config, data, processes) for processes in (1, 2, 3)]
        assert plans[0] == plans[1] == plans[2]
        assert plans[0].micro_batch_size == rows


@pytest.mark.parametrize(
    ("device", "settings", "count"),
    [
        ("cpu", {}, 1),
        ("cuda", {}, 8),
        ("cuda", {"tokens_per_step": 2 * 65_536}, 8),
        ("cuda", {"tokens_per_step": 65_536}, 4),  # 16,384 tokens are worth a GPU
        ("cuda", {"tokens_per_step": 3 * 65_536 + 32}, 1),  # an odd number of rows
        ("cpu", {"micro_batches": 6, "tokens_per_step": 12 * 32}, 6),
        ("cuda", {"parallel": "ddp"}, 1),
    ],
)
def test_micro_batches_follow_from_the_config_and_the_kind_of_device(
    device: str, settings: dict[str, object], count: int, tiny_config: Config
) -> None:
    fixed = {f"train.{n}": value for n, value in {"tokens_per_step": 1 << 20, **settings}.items()}
    assert pick_micro_batches(tiny_config(**{"model.seq_len": 32, **fixed}), device) == count


def test_micro_batches_that_do_not_divide_the_rows_are_refused(tiny_config: Config) -> None:
    config = tiny_config(**{"train.tokens_per_step": 12 * 32, "train.micro_batches": 5})
    with pytest.raises(UserError, match=r"micro_batches=5: a step has 12 rows .* use 4 or 6"):
        pick_micro_batches(config, "cpu")
    with pytest.raises(UserError, match=r"is for train\.parallel=elastic"):
        tiny_config(**{"train.parallel": "fsdp", "train.micro_batches": 2})


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (256, 128),
        (192, 96),  # the largest divisor, since it is at least half of what fits
        (128, 128),
        (100, 100),
        (257, 86),  # prime: 86 + 86 + 85
        (131, 66),
        (2 * 257, 103),  # its largest divisor is 2
        (127, 127),
        (1, 1),
    ],
)
def test_a_pass_is_never_small_for_the_divisors_of_its_rows(
    rows: int, size: int, tiny_config: Config
) -> None:
    """4,096 tokens fit: 128 rows of 32."""
    config = tiny_config(**{"train.tokens_per_step": 32 * rows})
    assert pick_micro_batch(config, rows, "cpu", "bf16") == size


def test_a_step_of_padded_passes_is_the_step_of_all_its_rows(tiny_config: Config) -> None:
    """Seven rows in passes of three: two whole, one of a single row and two of padding."""
    config = tiny_config(**{"train.tokens_per_step": 7 * 32, "train.device": "cpu"})
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"precision": "fp32"})}
    )
    data = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    plan = make_plan(config, data, world_size=1)
    ended = []
    for size in (7, 3):
        session = synthetic_session(config, plan.model_copy(update={"micro_batch_size": size}), 512)
        shapes: list[torch.Size] = []

        def forward(
            ids: torch.Tensor, model: GPT = session.model, shapes: list[torch.Size] = shapes
        ) -> torch.Tensor:
            shapes.append(ids.shape)
            hidden: torch.Tensor = model(ids)
            return hidden

        session.forward = forward
        loss, norm = train_step(session, *session.loader.batch(0))
        assert set(shapes) == {torch.Size([size, 32])}
        ended.append((loss, norm))
    assert ended[1] == pytest.approx(ended[0], rel=1e-5)


def test_a_configured_pass_need_not_divide_the_rows(tiny_config: Config) -> None:
    config = tiny_config(**{"train.micro_batch_size": 3})
    assert pick_micro_batch(config, 16, "cpu", "bf16") == 3
    assert pick_micro_batch(config, 2, "cpu", "bf16") == 2


@pytest.mark.parametrize(("amx", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_follows_from_what_the_cpu_is(
    amx: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No product of matrices is timed for it."""
    monkeypatch.setattr(module, "has_amx_bf16", lambda: amx)
    monkeypatch.setattr(torch.Tensor, "__matmul__", pytest.fail)
    assert pick_precision("auto", "cpu") == precision
    assert pick_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("amx", "optimizer", "precision"),
    [(True, "muon", "bf16"), (False, "muon", "fp32"), (False, "adamw", "bf16")],
)
def test_muons_precision_follows_from_what_the_cpu_is(
    amx: bool,
    optimizer: str,
    precision: str,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever that of the forward pass is; a plan without Muon is as it was before the choice."""
    monkeypatch.setattr(module, "has_amx_bf16", lambda: amx)
    split = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    for forward in ("auto", "bf16", "fp32"):
        settings = {"optimizer": optimizer, "device": "cpu", "precision": forward}
        config = tiny_config(**{f"train.{name}": value for name, value in settings.items()})
        assert make_plan(config, split, world_size=1).muon_precision == precision


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, "fused"),
        ({"train.compile": True}, "plain"),
        ({"model.architecture": "gpt2"}, "plain"),
    ],
)
def test_parts_are_fused_where_there_are_such_and_no_compiler(
    settings: dict[str, object], parts: str, tiny_config: Config
) -> None:
    """On any CPU; a GPU's kernels are others."""
    split = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    config = tiny_config(**{"train.device": "cpu", **settings})
    assert make_plan(config, split, world_size=1).parts == parts
    assert pick_parts(config, "cuda", compiles=False) == "plain"


def test_a_plan_of_before_these_choices_keeps_its_hash() -> None:
    """Its checkpoints carry the hash, so it resumes as it was started."""
    old = {
        "max_steps": 10, "rows": 8, "micro_batch_size": 8, "world_size": 1, "device": "cpu",
        "precision": "fp32", "threads": 2, "compile": False,
    }  # fmt: skip
    plan = Plan.model_validate(old)
    assert (plan.muon_precision, plan.parts) == ("bf16", "plain")
    assert plan_sha256(plan) == sha256_json(old)
    for choice in ({"muon_precision": "fp32"}, {"parts": "fused"}):
        assert plan_sha256(plan.model_copy(update=choice)) != sha256_json(old)


@pytest.mark.parametrize(
    ("limit", "choice", "compiles"),
    [
        ({"train.max_steps": 5000}, "auto", True),
        ({"train.max_steps": 5}, "auto", False),
        ({"train.max_seconds": 600}, "auto", False),
        ({"train.max_seconds": 600}, True, True),
    ],
)
def test_a_training_limited_by_seconds_is_compiled_only_where_configured(
    limit: dict[str, int],
    choice: str,
    compiles: bool,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fixed = {"train.compile": choice, "train.precision": "bf16", "train.micro_batch_size": 1}
    data = ShardSplit(files=[], documents=1, tokens=1, bytes=1)
    assert make_plan(tiny_config(**limit, **fixed), data, world_size=1).compile == compiles


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("Tesla T4", 65e12, 8.1e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA L400", None, None),
    ],
)
def test_a_gpu_has_its_own_peak_rate_in_each_precision(
    name: str, half: float | None, single: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that only resembles a known one has none: no share of the peak is reported."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    for precision, rate in (("bf16", half), ("fp16", half), ("fp32", single)):
        peak = peak_flops("cuda", precision)  # type: ignore[arg-type]
        assert peak == (pytest.approx(rate) if rate else None)


def test_a_cpu_is_not_measured_by_a_gpu_of_the_same_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops("cpu", "bf16") is None


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_of_memory_is_in_the_systems_unit(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    peak = resource.struct_rusage([0, 0, 5000, *[0] * 13])
    monkeypatch.setattr(resource, "getrusage", lambda _: peak)
    monkeypatch.setattr(sys, "platform", platform)
    assert module.memory_bytes("cpu") == 5000 * unit
