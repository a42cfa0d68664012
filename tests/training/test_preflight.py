"""What cannot be trained here is refused before anything is downloaded."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm import keys
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.model.gpt import GPT
from slm.recipes import load_recipe
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.training import launch, preflight, processes
from slm.training.needs import measure
from slm.training.optim import build_optimizers, optimizer_tensors
from slm.training.preflight import check_before_download, check_prompts, is_trained

Config = Callable[..., PipelineConfig]
TWENTY_WORDS = "Once upon a time there was a small brown dog who lived in a house by the sea. " * 2


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: int(size))


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, memory: int = 80_000_000_000) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory, memory))
    for module in (processes, preflight):
        monkeypatch.setattr(module, "gpu_count", lambda: count)


def test_what_can_be_trained_is_not_refused(tiny_config: Config, data_root: Path) -> None:
    assert check_before_download(tiny_config()) == []
    assert not data_root.exists()


# ---- the report's prompts ---------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_refused(tiny_config: Config, data_root: Path) -> None:
    config = tiny_config(**{"report.prompts": [TWENTY_WORDS], "model.seq_len": 32})
    with pytest.raises(UserError, match=r"report\.prompts has \d+ tokens, and model\.seq_len=32"):
        check_before_download(config)


def test_a_prompt_fits_where_it_can_be_sampled_from(tiny_config: Config) -> None:
    """End-of-text opens it: 4 tokens and the one before them fill a context of 5."""
    report = tiny_config(**{"report.prompts": ["abcd"]}).report
    of_bytes = Tokenizer([bytes([value]) for value in range(256)])
    check_prompts(report, 5, lambda: of_bytes)
    with pytest.raises(UserError, match=r"has 4 tokens, and model\.seq_len=4 has room for 3"):
        check_prompts(report, 4, lambda: of_bytes)


# ---- device, precision, threads, processes ----------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.device": "cuda"}, "train.device='cuda': torch sees no CUDA GPU"),
        ({"train.precision": "fp16"}, "train.precision='fp16' is for GPUs"),
        ({"train.threads": 100_000}, "train.threads=100000: this machine has 2 cores"),
        (
            {"train.threads": 20, "train.processes": 2, "train.micro_batches": 2},
            "for each of 2 processes",
        ),
        ({"train.processes": 3, "train.parallel": "ddp"}, "do not divide among 3 processes"),
        ({"train.micro_batches": 3}, "train.micro_batches=3: a step has"),
        ({"train.tokens_per_step": 32 * 10**12}, "train.tokens_per_step=32000000000000: the"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(
    overrides: dict[str, Any],
    words: str,
    tiny_config: Config,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight, "available_cores", lambda: 2)
    with pytest.raises(UserError, match=words):
        check_before_download(tiny_config(**overrides))


def test_more_processes_than_gpus_are_refused(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=r"train\.processes=4.*this machine has 2"):
        check_before_download(tiny_config(**{"train.processes": 4, "train.micro_batches": 4}))


def test_rows_that_leave_gpus_idle_are_a_warning_with_a_near_number_that_does_not(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 4)
    (warning,) = check_before_download(tiny_config(**{"train.tokens_per_step": 32 * 2053}))
    assert "2053 rows" in warning
    assert "do not divide among 4 GPUs: 1 of them will train; 65664 would use all" in warning
    assert check_before_download(tiny_config(**{"train.tokens_per_step": 65664})) == []


def test_processes_without_a_micro_batch_are_a_warning(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (warning,) = check_before_download(tiny_config(**{"train.processes": 2}))
    assert "train.processes=2: a step has 1 of train.micro_batches" in warning
    with_gpus(monkeypatch, 4)
    (warning,) = check_before_download(
        tiny_config(**{"train.tokens_per_step": 65664, "train.micro_batches": 2})
    )
    assert "2 of 4 GPUs will train, since a step has 2 micro-batches" in warning


# ---- memory and disk --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_size_of_a_model_is_known_without_making_it(
    architecture: str, optimizer: str, tiny_config: Config
) -> None:
    shape = {"model.architecture": architecture, "model.n_layer": 5}
    config = tiny_config(**shape, **{"train.optimizer": optimizer})
    needs = measure(config)
    model = GPT(config.model, config.data.vocab_size)
    optimizers = build_optimizers(model, config.train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for each in optimizers:
        each.step()
    moments = optimizer_tensors(model, optimizers)
    steps = [tensor for tensor in moments.values() if tensor.dim() == 0]
    size = sum(tensor.nbytes for tensor in moments.values()) - sum(t.nbytes for t in steps)
    assert needs.parameters == model.parameter_count()
    assert needs.flops_per_token == model.flops_per_token()
    assert needs.weights == needs.gradients == sum(p.nbytes for p in model.parameters())
    assert needs.optimizer == size


def test_a_model_that_does_not_fit_is_refused_with_its_figures(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 G parameters by AdamW: 4 bytes each of weights and gradients, 8 of moments."""
    with_memory(monkeypatch, 64e9)
    shape = {"n_layer": 50, "n_head": 32, "n_embd": 4096, "architecture": "gpt2"}
    config = tiny_config(**{f"model.{name}": value for name, value in shape.items()})
    with pytest.raises(UserError) as refused:
        check_before_download(config)
    message = str(refused.value)
    assert "a model of 10,071,228,416 parameters" in message
    assert "weights 40.3 GB, gradients 40.3 GB, optimizer 80.6 GB" in message
    assert "120.9 GB while a checkpoint is written; this machine has 64.0 GB" in message
    assert "model.n_layer=50, model.n_embd=4096 or data.vocab_size=512" in message


def test_each_process_of_a_cpu_holds_its_own_state(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = measure(tiny_config())
    with_memory(monkeypatch, needs.state + needs.checkpoint + needs.batches)
    cpu, ddp = {"train.device": "cpu"}, {"train.parallel": "ddp"}
    assert check_before_download(tiny_config(**cpu)) == []
    with pytest.raises(UserError, match="in each of 2 processes weights"):
        check_before_download(tiny_config(**cpu, **{"train.processes": 2, **ddp}))
    trees = {"train.processes": 2, "train.micro_batches": 4}
    with_memory(monkeypatch, 2 * needs.state + needs.checkpoint + needs.batches)
    assert check_before_download(tiny_config(**cpu, **{"train.processes": 2, **ddp})) == []
    with pytest.raises(UserError, match="does not fit"):  # two sets of gradients in each
        check_before_download(tiny_config(**cpu, **trees))
    with_memory(monkeypatch, needs.state + needs.checkpoint + needs.batches - 1)
    with pytest.raises(UserError, match="does not fit"):
        check_before_download(tiny_config(**cpu))


def test_a_gpu_holds_the_state_and_the_machine_the_checkpoint(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = measure(tiny_config())
    with_memory(monkeypatch, needs.checkpoint + needs.batches)
    with_gpus(monkeypatch, 1, needs.state)
    assert check_before_download(tiny_config()) == []
    with_gpus(monkeypatch, 1, needs.state - 1)
    with pytest.raises(UserError, match="its GPU has"):
        check_before_download(tiny_config())


def test_a_shape_beyond_all_memory_is_refused(tiny_config: Config, data_root: Path) -> None:
    for shape in ({"model.n_embd": 3 * 10**12}, {"model.n_layer": 10**9}):
        with pytest.raises(UserError, match=r"model\.n_(embd|layer)="):
            check_before_download(tiny_config(**shape))


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused_or_warned_of(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    config = tiny_config(**{"train.checkpoint_every": 1})
    size = measure(config).checkpoint
    for free, warnings in ((3 * size, 0), (3 * size - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(free))
        lines = check_before_download(config)
        assert len(lines) == warnings
    assert "train.keep_checkpoints=2: 3 checkpoints take" in lines[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size - 1))
    with pytest.raises(UserError, match=r"a checkpoint takes .*SLM_DATA"):
        check_before_download(config)


# ---- what is trained already ------------------------------------------------------------------


def test_a_finished_run_is_used_where_it_could_not_be_trained(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    shards = encode(config, download(config))
    run = launch.prepare(config, shards)
    with_memory(monkeypatch, 1)
    assert not is_trained(config)
    with pytest.raises(UserError, match="this machine has 1 B"):
        check_before_download(config)
    (run.path / "record.json").write_text("{}")
    assert is_trained(config)
    assert check_before_download(config) == []
    other = tiny_config(**{"train.seed": 8})
    assert keys.config_sha256(other) != keys.config_sha256(config)
    assert not is_trained(other)


def test_every_shipped_recipe_passes_on_a_machine_that_is_large_enough(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1e12)
    for name in ("quickstart", "tinystories", "tinystories-gpt2", "gpt2-124m"):
        config = load_recipe(name)
        if config.train.device == "auto":
            assert check_before_download(config) == []
