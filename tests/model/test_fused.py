"""The fused parts compute what the plain ones do, and their gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.config import ModelConfig
from slm.model.gpt import GPT

VOCAB_SIZE = 61


def model(n_kv_head: int | None = None, seq_len: int = 48, dropout: float = 0.0) -> GPT:
    """With gains other than one, and weights large enough that attention is not uniform."""
    torch.manual_seed(0)
    config = ModelConfig(
        architecture="qwen3",
        n_layer=2,
        n_head=4,
        n_kv_head=n_kv_head,
        n_embd=64,
        seq_len=seq_len,
        dropout=dropout,
    )
    made = GPT(config, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 3
    return made


def loss_and_gradients(
    trained: GPT, ids: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of dropout
    trained.train()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        hidden = trained(ids[:, :-1])
    logits = trained.logits(hidden.to(trained.embed.weight.dtype))
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(trained.parameters()))
    return {"loss": loss.detach(), **gradients}


def fused(plain: GPT) -> GPT:
    other = copy.deepcopy(plain)
    other.use_fused_parts()
    return other


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
@pytest.mark.parametrize("length", [48, 5, 1])
def test_values_and_gradients_in_float32(n_kv_head: int | None, length: int) -> None:
    ids = torch.randint(0, VOCAB_SIZE, (3, length + 1))
    plain = model(n_kv_head)
    expected = loss_and_gradients(copy.deepcopy(plain), ids)
    for name, value in loss_and_gradients(fused(plain), ids).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_dropout_drops_the_same() -> None:
    ids = torch.randint(0, VOCAB_SIZE, (3, 33))
    plain = model(dropout=0.2)
    expected = loss_and_gradients(copy.deepcopy(plain), ids)
    for name, value in loss_and_gradients(fused(plain), ids).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("length", [16, 128, 129, 300])  # blocks of 128 queries, a last short one
@pytest.mark.parametrize("n_kv_head", [None, 2])
def test_in_bf16_they_are_no_further_from_float64_than_the_plain_ones(
    length: int, n_kv_head: int | None
) -> None:
    ids = torch.randint(0, VOCAB_SIZE, (2, length + 1))
    plain = model(n_kv_head, seq_len=300)
    exact = loss_and_gradients(copy.deepcopy(plain).double(), ids)
    distances = []
    for each in (fused(plain), plain):
        values = loss_and_gradients(each, ids, torch.bfloat16)
        distances.append({n: (values[n] - exact[n]).norm() / exact[n].norm() for n in exact})
    of_fused, of_plain = distances
    for name, distance in of_fused.items():
        assert distance <= 2 * of_plain[name] + 2e-3, name  # a gain has few elements
    assert sum(of_fused.values()) <= 1.05 * sum(of_plain.values())


def test_no_later_token_changes_an_earlier_one() -> None:
    trained = fused(model(seq_len=200)).train()
    ids = torch.randint(0, VOCAB_SIZE, (1, 200))
    other = ids.clone()
    other[0, 150:] = (other[0, 150:] + 1) % VOCAB_SIZE
    with torch.autocast("cpu", torch.bfloat16):
        one, two = trained(ids), trained(other)
    assert torch.equal(one[0, :150], two[0, :150])
    assert not torch.equal(one[0, 150:], two[0, 150:])


def test_scoring_keeps_its_bits() -> None:
    plain = model().eval()
    ids = torch.randint(0, VOCAB_SIZE, (2, 20))
    assert torch.equal(fused(plain).eval()(ids), plain(ids))
    assert not torch.equal(fused(plain).train()(ids), plain.train()(ids))
