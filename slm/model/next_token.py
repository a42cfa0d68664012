"""The next token of each row, from its logits."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

from slm.errors import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is sampled. Raises UserError for values of another type or out of range.

    `temperature` divides the logits, 0 is greedy. `top_k` keeps the k likeliest tokens, then
    `top_p` the likeliest that together reach that probability (Holtzman et al. 2019,
    arXiv:1904.09751), then `min_p` those at least that fraction as likely as the likeliest (Nguyen
    et al. 2024, arXiv:2407.01082). `repetition_penalty` comes first: it weakens every token that
    is in the row (Keskar et al. 2019, arXiv:1909.05858), end-of-text excepted.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        t, k, p, m, r = (
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty,
        )  # fmt: skip
        checks = (
            ("temperature", t, is_real(t) and 0 <= t < float("inf"), "a number, 0 or above"),
            (
                "top_k",
                k,
                k is None or (is_whole(k) and k >= 1),
                "a whole number, 1 or above, or none",
            ),
            ("top_p", p, p is None or (is_real(p) and 0 < p <= 1), "a number above 0, at most 1"),
            ("min_p", m, m is None or (is_real(m) and 0 <= m <= 1), "a number between 0 and 1"),
            (
                "repetition_penalty",
                r,
                is_real(r) and 0 < r < float("inf"),
                "a number above 0 (1: no penalty)",
            ),
        )
        for name, value, valid, rule in checks:
            require(valid, name, value, f"it must be {rule}")


def is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def require(valid: bool, name: str, value: object, rule: str) -> None:
    """Raise UserError where a value is not valid, with the value shortened."""
    if not valid:
        raise UserError(f"{name}={reprlib.repr(value)}: {rule}")


def sample_tokens(
    logits: Tensor,
    settings: SamplingSettings,
    uniforms: Sequence[float],
    penalised: Tensor | None = None,
) -> Tensor:
    """The next token of each row, (B,).

    Args:
        logits: (B, V).
        uniforms: one number in [0, 1) per row. The token is where the cumulative distribution, in
            the order of the ids, passes it, so that rounding hardly ever changes a text.
        penalised: (B, V), True where the repetition penalty applies.

    Three rows of the probabilities 0.5, 0.1, 0.4; top-k keeps the tokens 0 and 2, with the weights
    1 and 0.8 and so the cumulative weights 1 and 1.8. The uniforms times 1.8 are 0.9, 1.08, 1.782:

    >>> logits = torch.tensor([0.5, 0.1, 0.4]).log().expand(3, -1)
    >>> sample_tokens(logits, SamplingSettings(top_k=2), [0.5, 0.6, 0.99])
    tensor([0, 2, 2])
    """
    logits = logits.float()
    if penalised is not None:
        penalty = settings.repetition_penalty
        weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(penalised, weakened, logits)
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    ids = None  # of the K tokens that are left; None: all V
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        ids = logits.topk(settings.top_k, dim=-1).indices.sort(dim=-1).values  # (B, K)
        logits = logits.gather(-1, ids)
    device = logits.device
    if device.type == "mps":  # which has no float64
        logits, ids = logits.cpu(), None if ids is None else ids.cpu()
    logits = logits.double()
    logits -= logits.amax(dim=-1, keepdim=True)  # before the division: tiny temperatures are fine
    weights = (logits / settings.temperature).exp()  # (B, K)
    if settings.top_p is not None and settings.top_p < 1:
        weights = _nucleus(weights, settings.top_p)
    if settings.min_p:
        weights = torch.where(weights < settings.min_p, 0, weights)  # the likeliest weighs 1
    cumulative = weights.cumsum(dim=-1)  # (B, K)
    uniform = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]  # (B, 1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    index = index.clamp_max(weights.shape[-1] - 1)  # (B, 1)
    return (index if ids is None else ids.gather(-1, index)).flatten().to(device)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """`weights` (B, K) without those outside the smallest set that reaches `top_p` of the sum.

    Of a sum of 10, 0.8 are 8. The weights in descending order and the sums before each are 4 3 1.5
    1 0.5 and 0 4 7 8.5 9.5: those with less than 8 before them stay.

    >>> _nucleus(torch.tensor([[1.0, 4.0, 0.5, 3.0, 1.5]]), 0.8)
    tensor([[0.0000, 4.0000, 0.0000, 3.0000, 1.5000]])
    """
    target = top_p * weights.sum(dim=-1, keepdim=True)  # (B, 1)
    size = min(1024, weights.shape[-1])
    while True:  # the set is small, nearly always: a full sort is not worth its time
        heaviest = weights.topk(size, dim=-1).values  # (B, size)
        before = heaviest.cumsum(dim=-1) - heaviest
        if size == weights.shape[-1] or bool((before[:, -1:] >= target).all()):
            break
        size = weights.shape[-1]
    smallest = torch.where(before < target, heaviest, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(weights < smallest, 0, weights)
