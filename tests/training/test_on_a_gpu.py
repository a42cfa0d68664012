"""Training and sampling on a GPU: `pytest -m gpu`. No CI machine has one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.config import ModelConfig, PipelineConfig
from slm.errors import Interrupted
from slm.model.decode import Decoder, KVCache
from slm.model.gpt import GPT
from slm.model.loss import compiled_gradient, cross_entropy, differentiate
from slm.records import Run, Shards
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.loop import train
from slm.training.process import torch_as_in

pytestmark = pytest.mark.gpu

Config = Callable[..., PipelineConfig]
VOCAB_SIZE = 50_257


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data root")


@pytest.fixture
def on_the_gpu(tiny_config: Config) -> Config:
    """Configs of a tiny training on the GPU, by the fields of `train`."""

    def make(**fields: object) -> PipelineConfig:
        settings = {
            "model.dropout": 0.1,
            "train.device": "cuda",
            "train.optimizer": "muon",
            "train.max_steps": 12,
            "train.micro_batch_size": 2,
            "train.evaluate_every": 4,
            "train.checkpoint_every": 3,
        }
        return tiny_config(**settings, **{f"train.{name}": value for name, value in fields.items()})

    return make


def shards_of(config: PipelineConfig, root: Path) -> Shards:
    return encode(config, download(config, root=root), root=root)


def trained(config: PipelineConfig, root: Path, stop_after: int | None = None) -> Run:
    """A run in this process, stopped after some steps and resumed if asked."""
    run: RunFolder = launch.prepare(config, shards_of(config, root), root=root)
    with torch_as_in(run):
        if stop_after is not None:
            answers = iter([False] * (stop_after - 1) + [True])
            with pytest.raises(Interrupted):
                train(run, should_stop=lambda: next(answers))
        ended = train(run)
    assert ended is not None
    return ended


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_resumed_training_has_the_bits_of_a_whole_one(
    on_the_gpu: Config, tmp_path: Path, precision: str, compiled: bool
) -> None:
    config = on_the_gpu(precision=precision, compile=compiled)
    whole = trained(config, tmp_path / "whole")
    resumed = trained(config, tmp_path / "resumed", stop_after=5)
    assert resumed.weights_sha256 == whole.weights_sha256
    losses = [e["train_loss"] for e in RunFolder.of(whole).journal if e["event"] == "step"]
    assert losses[-1] < losses[0]
    plan = RunFolder.of(whole).plan
    assert plan is not None
    assert (plan.device, plan.precision, plan.compile) == ("cuda", precision, compiled)


def test_other_precisions_learn_the_same(on_the_gpu: Config, tmp_path: Path) -> None:
    ended = {
        precision: trained(on_the_gpu(precision=precision), tmp_path / precision).val_bpb
        for precision in ("bf16", "fp16", "fp32")
    }
    assert ended["bf16"] == pytest.approx(ended["fp32"], rel=0.02)
    assert ended["fp16"] == pytest.approx(ended["fp32"], rel=0.02)


def test_a_training_process_of_its_own(on_the_gpu: Config, tmp_path: Path) -> None:
    config = on_the_gpu()
    run = launch.train(config, shards_of(config, tmp_path), root=tmp_path)
    assert run.weights_sha256 == trained(config, tmp_path / "here").weights_sha256


def test_micro_batches_in_a_tree_resume_to_the_same_bits(
    on_the_gpu: Config, tmp_path: Path
) -> None:
    """Level F on one GPU: 8 micro-batches, whose sum no number of processes changes."""
    config = on_the_gpu(micro_batches=8, tokens_per_step=16 * 32)
    runs = [trained(config, tmp_path / str(stop), stop) for stop in (None, 2, 7)]
    assert len({run.weights_sha256 for run in runs}) == 1
    assert runs[0].level == "F"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_resume_with_the_bits_of_an_uninterrupted_run(
    on_the_gpu: Config, tmp_path: Path
) -> None:
    config = on_the_gpu(processes=2, micro_batches=2)
    hashes = {
        launch.train(
            config, shards_of(config, tmp_path / name), root=tmp_path / name
        ).weights_sha256
        for name in ("first", "second")
    }
    hashes.add(trained(config, tmp_path / "alone").weights_sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_loss_and_its_gradients(dtype: torch.dtype, compiled: bool) -> None:
    """In chunks, with padded logits: next to float64, no worse than bf16 is."""
    torch.manual_seed(0)
    hidden = torch.randn(7000, 64, device="cuda").to(dtype).requires_grad_()
    weight = (0.2 * torch.randn(VOCAB_SIZE, 64, device="cuda")).requires_grad_()
    targets = torch.randint(0, VOCAB_SIZE, (7000,), device="cuda")
    gradient = compiled_gradient() if compiled else differentiate
    loss = cross_entropy(hidden, weight, targets, gradient=gradient)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    exact = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets)
    expected = torch.autograd.grad(exact, (hidden, weight))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)
    for mine, reference in zip(gradients, expected, strict=True):
        apart = (mine.double() - reference.double()).norm() / reference.double().norm()
        assert apart < (2e-2 if dtype == torch.bfloat16 else 2e-3)  # TF32 may be on


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_steps_as_graphs_give_the_states_of_a_whole_pass(architecture: str) -> None:
    """Over more positions than one graph reads, for rows of different lengths."""
    torch.manual_seed(0)
    shape = ModelConfig(architecture=architecture, n_layer=2, n_head=2, n_embd=64, seq_len=200)
    model = GPT(shape, 97).eval().cuda()
    ids = torch.randint(0, 97, (2, 200), device="cuda")
    decoder, cache = Decoder(model), KVCache.empty(model, 2)
    with torch.inference_mode():
        whole = model(ids)  # (B, T, C)
        decoder.prefill(ids[:, :120], cache)
        starts = torch.tensor([120, 110], device="cuda")
        cache.lengths.copy_(starts)
        rows = torch.arange(2, device="cuda")
        for _ in range(80):
            places = cache.lengths.clone()
            step = decoder.step(ids[rows, places], cache)
            torch.testing.assert_close(step, whole[rows, places], atol=2e-3, rtol=2e-3)
    assert sorted(cache.graphs) == [128, 200]
