"""Cross-entropy of a tied output layer, in chunks, so that no (tokens × V) array ever exists.

The gradients are made in the forward pass, chunk by chunk, while the logits are at hand (the idea
of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989): three matrix
products a chunk, none done twice, and a peak of `CHUNK × V` numbers in the products' precision.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # tokens: their logits at V = 50,257 are 103 MB in bf16
BLOCK = 1 << 21  # logits taken to float32 at once on a CPU: 8 MB, which its caches hold


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = len(targets)
        matrix = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        # Transposed, (C, V): on a CPU this product takes two thirds of the other's time.
        d_weight = torch.zeros_like(weight.T, dtype=torch.float32)
        for start in range(0, rows, CHUNK):
            chunk = slice(start, start + CHUNK)
            h = hidden[chunk]
            logits = h @ matrix.T  # (CHUNK, V)
            loss += differentiate(logits, targets[chunk])
            d_hidden[chunk] = logits @ matrix
            d_weight += h.T @ logits
        ctx.save_for_backward(d_hidden, d_weight.T.contiguous())
        ctx.rows = rows
        return loss / rows

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        # The mean is taken only now, with the scaler's factor: fp16 has no numbers that small.
        scale = grads[0] / ctx.rows
        return (d_hidden.float() * scale).to(d_hidden.dtype), d_weight * scale, None


def differentiate(logits: Tensor, targets: Tensor) -> Tensor:
    """Turns logits (N, V) into the gradient by them, in place; returns the summed cross-entropy."""
    rows = max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    losses = []
    blocks = zip(torch.split(logits, rows), torch.split(targets[:, None], rows), strict=True)
    for block, ids in blocks:
        x = block.float()
        p = x.softmax(dim=-1)
        # The greatest of V probabilities is at least 1 / V, so its logarithm is safe.
        log_sum = x.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log()
        losses.append((log_sum - x.gather(1, ids)).sum())
        p.scatter_add_(1, ids, torch.full_like(ids, -1, dtype=torch.float32))
        block.copy_(p)
    return torch.stack(losses).sum()


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
