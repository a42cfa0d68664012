"""Scores: every token once, whatever the windows and batches; bits per byte recomputed."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slm.config import ModelConfig
from slm.evaluation import scoring
from slm.evaluation.scoring import Score, score, token_losses
from slm.model.gpt import GPT

EOT = 30
CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=16, seq_len=8)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG, EOT + 1)


def some_documents(*lengths: int) -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    return [draws.integers(0, EOT, n) for n in lengths]


def test_a_document_within_the_context_is_scored_whole(model: GPT) -> None:
    (document,) = some_documents(7)
    sequence = torch.tensor([EOT, *document, EOT])
    with torch.no_grad():
        logits = model.logits(model(sequence[None, :-1])[0])
        expected = F.cross_entropy(logits, sequence[1:], reduction="none")
    (losses,) = token_losses(model, [document], EOT)
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-5)


def test_past_the_first_window_half_a_context_comes_before(model: GPT) -> None:
    (document,) = some_documents(30)
    sequence = torch.tensor([EOT, *document, EOT])
    (losses,) = token_losses(model, [document], EOT)
    assert len(losses) == 31
    for place in range(8, 31):  # predictions past the first window of 8
        start = (place - 8) // 4 * 4 + 4  # windows start every half context
        with torch.no_grad():
            logits = model.logits(model(sequence[None, start : place + 1])[0, -1])
        expected = F.cross_entropy(logits, sequence[place + 1])
        assert losses[place] == pytest.approx(float(expected), rel=1e-5)


def test_the_other_documents_of_a_batch_change_nothing(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = some_documents(1, 5, 9, 8, 40, 0, 3)
    together = token_losses(model, held_out, EOT)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    for loss, document in zip(together, held_out, strict=True):
        (alone,) = token_losses(model, [document], EOT)
        np.testing.assert_allclose(loss, alone, rtol=1e-5)


def test_totals(model: GPT) -> None:
    held_out = some_documents(3, 12)
    token_bytes = np.arange(EOT + 1)
    total = score(model, held_out, EOT, token_bytes)
    assert total.tokens == 3 + 12 + 2  # and an end-of-text each
    assert total.bytes == sum(int(d.sum()) for d in held_out)
    nats = sum(float(loss.sum()) for loss in token_losses(model, held_out, EOT))
    assert total.val_loss == pytest.approx(nats / 17)
    one_bit_per_byte = Score(nats=100 * math.log(2), tokens=20, bytes=100, documents=1)
    assert one_bit_per_byte.val_bpb == pytest.approx(1)


def test_the_models_mode_and_random_numbers_are_left_alone(model: GPT) -> None:
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    token_losses(model, some_documents(4), EOT)
    assert model.training
    assert torch.equal(torch.rand(3), expected)
