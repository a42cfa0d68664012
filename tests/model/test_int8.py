"""Sampling with int8 weights: the model of the rounded weights, whatever the batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sample import PROMPTS, without_cache
from tiny_model import BYTES, tiny_model
from tiny_run import copy_run

import slm
from slm.config import ModelConfig
from slm.errors import UserError
from slm.evaluation.evaluate import score_documents
from slm.model import int8
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.int8 import Int8Product, quantise, round_to_int8, rounded
from slm.model.sample import generate
from slm.model.saved import LoadedModel
from slm.source.stories import stories

ARCHITECTURES = ["gpt2", "qwen3"]


def distinct(architecture: str, seed: int = 0) -> GPT:
    """A model whose biases and norms are not the zeros and ones they start as."""
    model = tiny_model(architecture, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


# ---- the weights --------------------------------------------------------------------------------


def test_a_weight_is_off_by_half_a_step_of_its_own_row_at_most() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 40) * torch.exp(torch.randn(50, 1) * 4)
    weight[7] = 0
    numbers, scale = quantise(weight)
    assert (numbers.dtype, numbers.min(), numbers.max()) == (torch.int8, -127, 127)
    error = (numbers * scale[:, None] - weight).abs()
    assert bool((error <= scale[:, None] * 0.5001).all())
    assert torch.equal(round_to_int8(weight)[7], torch.zeros(40))
    torch.testing.assert_close(scale, weight.abs().amax(dim=1) / 127 + (scale == 1).float())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_takes_every_weight_that_is_multiplied_and_leaves_the_model(
    architecture: str,
) -> None:
    model = distinct(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {
        name
        for name, tensor in rounded(model).state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    products = {n for n, p in model.named_parameters() if p.dim() == 2 and "positions" not in n}
    assert changed == products
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# ---- the product --------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(16, 8), (301, 48), (1000, 33), (1, 5)])
def test_the_kernel_multiplies_by_the_rounded_weights(
    shape: tuple[int, int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in several, for channels that fill no block, with and without bias."""
    if shared:
        monkeypatch.setattr(int8, "MIN_SHARED", 0)
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    product = Int8Product(weight, bias)
    assert torch.equal(product.weight(), round_to_int8(weight))
    for rows in ((1,), (3,), (2, 2)):
        x = torch.randn(*rows, shape[1])
        expected = x.double() @ round_to_int8(weight).double().T
        close = {"rtol": 1e-5, "atol": 1e-5 * math.sqrt(shape[1])}
        torch.testing.assert_close(product(x), (expected + bias).float(), **close)
        torch.testing.assert_close(Int8Product(weight)(x), expected.float(), **close)


def test_a_row_has_the_same_bits_alone_in_any_batch_and_on_any_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(300, 64), torch.randn(4, 64)
    alone = torch.cat([Int8Product(weight)(row[None]) for row in x])
    assert torch.equal(Int8Product(weight)(x), alone)
    monkeypatch.setattr(int8, "MIN_SHARED", 0)
    assert torch.equal(Int8Product(weight)(x), alone)


# ---- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_the_same_alone_in_a_batch_and_without_cache(
    architecture: str, seed: int
) -> None:
    """By eight bits for one row, by float32 for more than `MAX_ROWS`, by whole passes."""
    model = distinct(architecture, seed)
    decoder, reference = Decoder(model, "int8"), rounded(model)
    given: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0}
    prompts = PROMPTS * 2
    assert len(prompts) > int8.MAX_ROWS
    batches = [
        generate(decoder, BYTES, prompts, **given),
        generate(decoder, BYTES, PROMPTS, **given),
    ]
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(decoder, BYTES, [prompt], **given)
        assert [batch[i].completion for batch in batches] == [alone.completion] * 2
        expected = without_cache(reference, prompt, 60)
        assert expected.rstrip("\ufffd") == alone.completion.rstrip("\ufffd")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_gives_one_text_alone_and_in_a_batch(architecture: str) -> None:
    decoder, seeds = Decoder(distinct(architecture), "int8"), list(range(8))
    given: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.9, "top_k": 30}
    together = generate(decoder, BYTES, PROMPTS * 2, seed=seeds, **given)
    for prompt, seed, sample in zip(PROMPTS * 2, seeds, together, strict=True):
        (alone,) = generate(decoder, BYTES, [prompt], seed=seed, **given)
        assert alone.completion == sample.completion


def test_threads_are_what_they_were() -> None:
    decoder, threads = Decoder(distinct("gpt2"), "int8"), torch.get_num_threads()
    assert decoder.small  # so its steps take one thread
    shown: list[str] = []

    def stop(_: int, text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(decoder, BYTES, ["Once"], on_text=stop, max_new_tokens=20)
    assert torch.get_num_threads() == threads


def test_a_screen_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.model.decode.MIN_SCREENED_BYTES", 0)
    assert Decoder(distinct("gpt2"), "int8").screen is None


# ---- quality ------------------------------------------------------------------------------------


def test_a_trained_model_loses_little(tmp_path: Path) -> None:
    """Bits per byte on held-out stories."""
    run = copy_run(tmp_path, max_steps=60, evaluate_every=60, checkpoint_every=60)
    model, tokenizer = slm.load_model(run)
    texts = [tokenizer.encode(text) for text in stories(8, 0, 30)]

    def bpb(model: GPT) -> float:
        figure: float = score_documents(model, tokenizer, texts, len(texts)).totals()["val_bpb"]
        return figure

    before, after = bpb(model), bpb(rounded(model))
    assert before != after
    assert after <= before * 1.005


# ---- what is refused ----------------------------------------------------------------------------


def test_what_int8_is_not_for_is_refused() -> None:
    model = distinct("gpt2")
    with pytest.raises(UserError, match=r"weights='int4': give float32 or int8"):
        Decoder(model, "int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"weights=None: give"):
        slm.sample(LoadedModel(model, BYTES), "a", weights=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="float32 models on a CPU, and this one is bfloat16 on cpu"):
        Decoder(model.bfloat16(), "int8")
    with torch.device("meta"):  # as a GPU is: not the CPU
        elsewhere = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, seq_len=4), 16)
    with pytest.raises(UserError, match="this one is float32 on meta: leave it out, or load"):
        Decoder(elsewhere, "int8")
