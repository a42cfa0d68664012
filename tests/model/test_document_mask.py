"""Attention that ends at end-of-text: exactly zero across documents, in every form of attention."""

import copy

import pytest
import torch
from torch import Tensor

from slm.config import ModelConfig
from slm.model.gpt import GPT

EOT, V = 60, 61
T = 150  # more than one block of queries
SHAPES = {
    "gpt2": {"architecture": "gpt2"},
    "qwen3": {"architecture": "qwen3"},
    "grouped": {"architecture": "qwen3", "n_kv_head": 2},
}
# A row begins inside a document; one document is a single token, one has no token but its own.
BEGINS = {0: (1, 40, 41, 43, 140), 1: (0, 149), 2: ()}


def model(shape: str, parts: str = "plain") -> GPT:
    torch.manual_seed(0)
    made = GPT(ModelConfig(n_layer=2, n_head=4, n_embd=64, seq_len=T, **SHAPES[shape]), V)  # type: ignore[arg-type]
    with torch.no_grad():  # large enough that attention is not uniform
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if parts == "fused":
        made.use_fused_parts()
    made.mask_documents(EOT)
    return made.train()


def rows() -> Tensor:
    ids = torch.randint(0, EOT, (len(BEGINS), T), generator=torch.Generator().manual_seed(1))
    for row, places in BEGINS.items():
        ids[row, list(places)] = EOT
    return ids


def documents() -> list[tuple[int, slice]]:
    """The row and the positions of every document."""
    return [
        (row, slice(start, stop))
        for row, places in BEGINS.items()
        for start, stop in zip((0, *places), (*places, T), strict=True)
        if start < stop
    ]


def hidden_states(trained: GPT, ids: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """The embeddings that go in, and the hidden states that come out; (B, T, C) both."""
    inputs: list[Tensor] = []

    def keep(module: object, args: object, out: Tensor) -> None:
        out.retain_grad()
        inputs.append(out)

    hook = trained.embed.register_forward_hook(keep)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        hidden = trained(ids)
    hook.remove()
    return inputs[0], hidden


FORMS = pytest.mark.parametrize(
    ("shape", "parts", "dtype"),
    [
        (shape, parts, dtype)
        for shape in SHAPES
        for parts in ("plain", "fused")
        for dtype in (None, torch.bfloat16)
        if (shape, parts) != ("gpt2", "fused")
    ],
)


@FORMS
def test_no_gradient_crosses_from_one_document_to_another(
    shape: str, parts: str, dtype: torch.dtype | None
) -> None:
    trained, ids = model(shape, parts), rows()
    for row, own in documents():
        inputs, hidden = hidden_states(trained, ids, dtype)
        hidden[row, own].float().square().sum().backward()  # type: ignore[no-untyped-call]
        gradient = inputs.grad
        assert gradient is not None
        assert bool(gradient[row, own].abs().sum(-1).gt(0).all())
        gradient[row, own] = 0
        assert not gradient.any()  # exactly 0 everywhere else


@FORMS
def test_a_document_has_the_bits_that_it_has_among_others(
    shape: str, parts: str, dtype: torch.dtype | None
) -> None:
    trained, ids = model(shape, parts), rows()
    expected = hidden_states(trained, ids, dtype)[1]
    for row, own in documents():
        others = torch.randint(0, EOT, ids.shape)  # of another length each, too
        others[row, own] = ids[row, own]
        if own.stop < T:
            others[row, own.stop] = EOT
        if own.start == 0 or ids[row, own.start] == EOT:
            hidden = hidden_states(trained, others, dtype)[1]
            assert torch.equal(hidden[row, own], expected[row, own])


@FORMS
def test_a_row_of_one_document_is_as_without_a_mask(
    shape: str, parts: str, dtype: torch.dtype | None
) -> None:
    trained = model(shape, parts)
    plain = copy.deepcopy(trained)
    plain.document_eot = None
    ids = rows()[2:]
    tolerance = 1e-5 if dtype is None else 0.1
    torch.testing.assert_close(
        trained(ids) if dtype is None else hidden_states(trained, ids, dtype)[1].float(),
        plain(ids) if dtype is None else hidden_states(plain, ids, dtype)[1].float(),
        rtol=tolerance,
        atol=tolerance,
    )


def test_scoring_is_as_without_a_mask() -> None:
    """A document is scored alone, after its end-of-text."""
    for shape in SHAPES:
        trained = model(shape).eval()
        plain = copy.deepcopy(trained)
        plain.document_eot = None
        assert torch.equal(trained(rows()), plain(rows()))
