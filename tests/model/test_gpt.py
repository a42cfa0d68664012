"""The GPT: equal to Hugging Face's, and causal."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from slm.config import ModelConfig
from slm.model import gpt as model_module
from slm.model import loss as loss_module
from slm.model.gpt import GPT, attend, drop
from slm.model.loss import (
    Chunking,
    chunking,
    cross_entropy,
    differentiate,
    differentiate_by_expression,
)

V = 97
GPT2 = ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=24)
QWEN3 = ModelConfig(
    architecture="qwen3", n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_inner=96, seq_len=24
)


@pytest.fixture(params=[GPT2, QWEN3], ids=["gpt2", "qwen3"])
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    built = GPT(request.param, V).eval()
    with torch.no_grad():  # larger than at the start, so that differences would show
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_gpt2_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=24, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager"
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = GPT(GPT2, V).eval()
    copied = {"embed.weight": theirs.transformer.wte.weight}
    copied["positions.weight"] = theirs.transformer.wpe.weight
    copied |= {f"final_norm.{k}": v for k, v in theirs.transformer.ln_f.named_parameters()}
    for i, block in enumerate(theirs.transformer.h):
        mine = f"blocks.{i}."
        for name, norm in (("attention_norm", block.ln_1), ("mlp_norm", block.ln_2)):
            copied |= {f"{mine}{name}.{k}": v for k, v in norm.named_parameters()}
        weights = block.attn.c_attn.weight.T.chunk(3)
        biases = block.attn.c_attn.bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            copied[f"{mine}attention.{name}_proj.weight"] = weight
            copied[f"{mine}attention.{name}_proj.bias"] = bias
        for name, conv in (
            ("attention.o_proj", block.attn.c_proj),
            ("mlp.up_proj", block.mlp.c_fc),
            ("mlp.down_proj", block.mlp.c_proj),
        ):
            copied |= {f"{mine}{name}.weight": conv.weight.T, f"{mine}{name}.bias": conv.bias}
    ours.load_state_dict(copied)
    x = ids(3, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(x)), theirs(x).logits, atol=1e-5, rtol=0)


def test_qwen3_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=24,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    names = {
        "model.embed_tokens.": "embed.",
        "model.norm.": "final_norm.",
        "model.layers.": "blocks.",
        "self_attn.": "attention.",
        "input_layernorm.": "attention_norm.",
        "post_attention_layernorm.": "mlp_norm.",
    }
    copied = {}
    for name, weight in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        if name != "lm_head.weight":
            copied[name] = weight + 0.1 * torch.randn_like(weight)
            weight.copy_(copied[name])
    ours = GPT(QWEN3, V).eval()
    ours.load_state_dict(copied)
    x = ids(3, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(x)), theirs(x).logits, atol=1e-5, rtol=0)


def test_no_position_sees_a_later_one(model: GPT) -> None:
    """Causality through the gradient: the loss at place t depends on places up to t alone."""
    embedded: list[Tensor] = []
    model.embed.register_forward_hook(lambda *a: embedded.append(a[2].requires_grad_()) or None)
    hidden = model(ids(2, 16))
    for place in (0, 5, 15):
        (gradient,) = torch.autograd.grad(hidden[:, place].sum(), embedded[0], retain_graph=True)
        reached = gradient.abs().sum(dim=(0, 2)) > 0
        assert reached.tolist() == [t <= place for t in range(16)]


def test_a_longer_text_than_the_context_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        model(ids(1, 25))


def test_the_notebooks_shape_has_its_parameters() -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=128), 50_257)
    assert model.parameter_count() == 29_995_392


def test_residual_variance_does_not_grow_with_depth() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=8, n_head=2, n_embd=64, seq_len=8), V)
    inner = model.blocks[0].mlp
    assert inner.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert inner.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The reference: all logits together."""
    return F.cross_entropy(F.linear(hidden, weight.to(hidden.dtype)).float(), targets)


CPU_CHUNK = chunking("cpu", V, 4).tokens
ON_AN_ACCELERATOR = Chunking(tokens=500, block=7 * V, transposed=False, padding=3)


@pytest.mark.parametrize("chunks", [None, ON_AN_ACCELERATOR], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("tokens", [1, CPU_CHUNK, CPU_CHUNK + 37])
def test_chunked_loss_is_the_plain_one(tokens: int, chunks: Chunking | None) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 16, requires_grad=True)
    weight = torch.randn(V, 16, requires_grad=True)
    targets = torch.randint(0, V, (tokens,))
    plain = plain_cross_entropy(hidden, weight, targets)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    chunked = cross_entropy(hidden, weight, targets, chunks)
    gradients = torch.autograd.grad(3 * chunked, (hidden, weight))
    torch.testing.assert_close(chunked, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=0)
    assert gradients[1].is_contiguous()


@pytest.mark.parametrize("vocab_size", [97, 50_257, 151_936])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_chunks_are_sized_for_the_device(vocab_size: int, itemsize: int) -> None:
    """A CPU's are for its caches; an accelerator's are as large as its memory is to give."""
    assert chunking("cpu", vocab_size, itemsize) == (1024, 1 << 21, True, 0)
    tokens, block, transposed, padding = chunking("cuda", vocab_size, itemsize)
    assert not transposed
    assert (vocab_size + padding) % 64 == 0
    assert 2**29 < tokens * (vocab_size + padding) * itemsize <= 2**30
    assert 2 * block * 4 <= 2**29  # float32 logits and their softmax
    assert chunking("cuda", 2**40, itemsize).tokens == 1


def test_the_weights_gradient_is_never_transposed_on_an_accelerator() -> None:
    """Chunk by chunk, in bf16: it is the sum of (V, C) products, to the bit."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(900, 16).bfloat16(), torch.randint(0, V, (900,))
    weight = torch.randn(V, 16, requires_grad=True)
    cross_entropy(hidden, weight, targets, ON_AN_ACCELERATOR).backward()
    expected = torch.zeros(V, 16)
    for h, ids in zip(hidden.split(500), targets.split(500), strict=True):
        logits = h @ weight.detach().bfloat16().T
        differentiate(logits, ids, V, 7 * V)
        expected += logits.T @ h
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected * (torch.tensor(1.0) / 900))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_is_added_to_the_weights_gradient_against_its_order(dtype: torch.dtype) -> None:
    strides: list[tuple[int, ...]] = []

    class Adds(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.__name__ in ("__iadd__", "add_") and args[0].shape == (V + 3, 16):
                strides.extend(tensor.stride() for tensor in args[:2])
            return func(*args, **(kwargs or {}))

    hidden, targets = torch.ones(900, 16, dtype=dtype), torch.zeros(900, dtype=torch.int64)
    with Adds():
        cross_entropy(hidden, torch.ones(V, 16), targets, ON_AN_ACCELERATOR)
    assert set(strides) <= {(16, 1)}
    assert bool(strides) == (dtype == torch.bfloat16)  # in float32 the product itself adds


def test_the_loss_is_divided_for_the_device_that_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int]] = []

    def spy(device_type: str, vocab_size: int, itemsize: int) -> Chunking:
        asked.append((device_type, vocab_size, itemsize))
        return chunking(device_type, vocab_size, itemsize)

    monkeypatch.setattr(loss_module, "chunking", spy)
    hidden, weight = torch.ones(3, 16, dtype=torch.bfloat16, device="meta"), torch.ones(V, 16)
    targets = torch.zeros(3, dtype=torch.int64, device="meta")
    cross_entropy(hidden, weight.to("meta"), targets)
    assert asked == [("meta", V, 2)]


def test_the_form_for_compiling_is_the_same_gradient() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, V + 3), torch.randint(0, V, (50,))
    plain, other = logits.clone(), logits.clone()
    expected = differentiate(plain, targets, V, 7 * V)
    loss = differentiate_by_expression(other, targets, V, 7 * V)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(other[:, :V], plain[:, :V])
    assert not other[:, V:].any()
    assert torch.equal(plain[:, V:], logits[:, V:])


def test_loss_does_not_depend_on_its_blocks() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, V).bfloat16(), torch.randint(0, V, (50,))
    whole, parts = logits.clone(), logits.clone()
    expected = differentiate(whole, targets, V, 50 * V)
    loss = differentiate(parts, targets, V, 7 * V)  # the last of eight blocks is a short one
    torch.testing.assert_close(loss, expected)
    assert torch.equal(parts, whole)


def test_chunked_loss_in_bf16_is_as_good_as_the_plain_one() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 64), torch.randn(V, 64)
    targets = torch.randint(0, V, (600,))
    exact = F.cross_entropy(hidden @ weight.T, targets)
    loss = cross_entropy(hidden.bfloat16(), weight, targets)
    assert abs(loss - exact) < 2e-2 * exact


def test_the_loss_gradient_in_fp16_does_not_underflow_before_it_is_scaled() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2048, 16), 0.001 * torch.randn(V, 16)
    targets = torch.randint(0, V, (2048,))
    scale = 2.0**16
    halves = hidden.half().requires_grad_()
    (scale * cross_entropy(halves, weight, targets)).backward()
    exact = hidden.requires_grad_()
    plain_cross_entropy(exact, weight, targets).backward()
    assert halves.grad is not None
    assert exact.grad is not None
    apart = halves.grad.float() / scale - exact.grad
    assert apart.norm() < 5e-3 * exact.grad.norm()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 333, requires_grad=True)
    dropped = drop(x, rate)
    kept = dropped[dropped != 0]
    assert kept.numel() / x.numel() == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=1e-4, atol=0)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped.detach())
    torch.manual_seed(0)
    assert torch.equal(drop(x, rate), dropped)
    assert not torch.equal(drop(x, rate), dropped)


@pytest.mark.parametrize("context", [1, 33])
def test_attention_by_plain_products_is_attention(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, context, 16).bfloat16().requires_grad_() for _ in range(3))
    plain = attend(q, k, v, 0.0)
    plain.sum().backward()
    assert q.grad is not None
    exact = attend(q.detach().float(), k.detach().float(), v.detach().float(), 0.0)
    torch.testing.assert_close(plain.float(), exact, atol=0.02, rtol=0.02)
    monkeypatch.setattr(model_module, "MAX_PLAIN_CONTEXT", 0)
    fused = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    attend(*fused, 0.0).sum().backward()
    for mine, theirs in zip((q, k, v), fused, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=0.05, rtol=0.05)
