"""Cross-entropy of a tied output layer, in chunks, so that no (tokens × V) array ever exists.

The gradients are made in the forward pass, chunk by chunk, while the logits are at hand (the idea
of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989): three matrix
products a chunk, none done twice, and a peak of `CHUNK × V` floats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256  # tokens: a chunk of 256 × 50,257 float32 is 51 MB


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = len(targets)
        matrix = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, rows, CHUNK):
            chunk = slice(start, start + CHUNK)
            h, target = hidden[chunk], targets[chunk, None]
            logits = (h @ matrix.T).float()  # (CHUNK, V)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            loss += (log_sum - logits.gather(1, target)).sum()
            d_logits = logits.sub_(log_sum).exp_()  # softmax, in place
            d_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            d = d_logits.mul_(1 / rows).to(hidden.dtype)
            d_hidden[chunk] = d @ matrix
            d_weight += d.T @ h
        ctx.save_for_backward(d_hidden, d_weight)
        return loss / rows

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grads[0], d_weight * grads[0], None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats, exact to `plain_cross_entropy`.

    Args:
        hidden: (N, C), in the precision that the products are to be made in.
        weight: (V, C) of the output layer; its gradient is accumulated in float32.
        targets: (N,) token ids.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The reference: all logits at once."""
    return F.cross_entropy(F.linear(hidden, weight.to(hidden.dtype)).float(), targets)
