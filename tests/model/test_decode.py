import pytest
import torch

from slm.config import ModelConfig
from slm.model.decode import (
    Decoder,
    KVCache,
    Screen,
    multiplies_in_bf16,
    product,
    product_plus,
)
from slm.model.gpt import GPT

V, SEQ_LEN = 301, 24


def make(architecture: str, dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "architecture": architecture,
            "n_layer": 3,
            "n_head": 4,
            "n_kv_head": 2 if architecture == "qwen3" else None,
            "n_embd": 48,
            "seq_len": SEQ_LEN,
            "dropout": 0.5,
        }
    )
    model = GPT(config, V)
    with torch.no_grad():  # norms and biases that are not the ones and zeros they start as
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_model(architecture: str, dtype: torch.dtype) -> None:
    """Rows of different lengths: prefilled, then a token at a time up to the context."""
    model = make(architecture, dtype)
    decoder, cache = Decoder(model), KVCache.empty(model, 3)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    ids = torch.randint(0, V, (3, SEQ_LEN))
    model.eval()
    with torch.inference_mode():
        hidden = model(ids)  # (B, T, C)
        logits = model.logits(hidden)
        starts = torch.tensor([5, 1, 7])
        prefilled = decoder.prefill(ids[:, :7], cache)
        cache.lengths.copy_(starts)
        for row, start in enumerate(starts.tolist()):
            torch.testing.assert_close(prefilled[row, :start], hidden[row, :start], **close)
        rows = torch.arange(3)
        for _ in range(SEQ_LEN - 7):
            places = cache.lengths.clone()
            step = decoder.step(ids[rows, places], cache)
            torch.testing.assert_close(step, hidden[rows, places], **close)
            torch.testing.assert_close(decoder.logits(step), logits[rows, places], **close)
    assert cache.lengths.tolist() == (starts + SEQ_LEN - 7).tolist()


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_rows_of_one_length_need_no_mask(architecture: str) -> None:
    model = make(architecture).eval()
    decoder, cache = Decoder(model), KVCache.empty(model, 2)
    ids = torch.randint(0, V, (2, 9))
    with torch.inference_mode():
        steps = [decoder.step(ids[:, i], cache) for i in range(9)]
        torch.testing.assert_close(torch.stack(steps, 1), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_padded_step_reads_more_positions_and_gives_the_same(architecture: str) -> None:
    """What a GPU replays: the positions after a row's own are masked, whatever is in them."""
    model = make(architecture).eval()
    decoder, cache = Decoder(model), KVCache.empty(model, 2)
    ids = torch.randint(0, V, (2, 6))
    with torch.inference_mode():
        decoder.prefill(ids[:, :5], cache)
        cache.keys[:, :, :, 5:], cache.values[:, :, :, 5:] = 7.0, 7.0
        lengths = torch.tensor([5, 5])
        step = decoder.padded_step(ids[:, 5], lengths, cache, SEQ_LEN)
        torch.testing.assert_close(step, model(ids)[:, -1], rtol=1e-4, atol=1e-4)


def test_products() -> None:
    x, y, w, b = torch.randn(5, 8), torch.randn(5, 6), torch.randn(6, 8), torch.randn(6)
    for dtype, close in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x, y, w, b = x.to(dtype), y.to(dtype), w.to(dtype), b.to(dtype)
        expected = x @ w.T + b
        gelu = torch.nn.functional.gelu(expected, approximate="tanh")
        torch.testing.assert_close(product(w, b)(x), expected, rtol=close, atol=close)
        torch.testing.assert_close(product(w)(x), x @ w.T, rtol=close, atol=close)
        torch.testing.assert_close(product(w, b, gelu=True)(x), gelu, rtol=close, atol=close)
        torch.testing.assert_close(product_plus(w, b)(x, y), y + expected, rtol=close, atol=close)


@pytest.mark.skipif(not multiplies_in_bf16(), reason="this CPU has no bf16")
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_a_screen_misses_none_of_the_likeliest(spread: float) -> None:
    """Of weights of very different norms too, where the bound is loose and many pass."""
    torch.manual_seed(0)
    weight = torch.randn(5000, 96) * torch.exp(torch.randn(5000, 1) * spread)
    screen = Screen(weight)
    for k in (1, 50, 5000):
        hidden = torch.randn(1, 96) * 4
        logits = hidden @ weight.T
        ids, candidates = screen(hidden, k)
        assert set(logits.topk(k).indices[0].tolist()) <= set(ids.tolist())
        assert torch.equal(ids, ids.sort().values)
        torch.testing.assert_close(candidates, logits[:, ids], rtol=1e-4, atol=1e-3)
        assert k == 5000 or len(ids) < 5000
