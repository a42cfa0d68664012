"""Cross-entropy of a tied output layer, in chunks, so that no (tokens × V) array ever exists.

The gradients are computed in the forward pass, chunk by chunk, while the logits exist (the idea of
Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989): three matrix products
per chunk, none repeated. How large a chunk is, and how the weight's gradient is laid out, depends
on the device: see `chunking`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 30  # of a chunk's logits, on an accelerator
ALIGNED = 64  # logits: an accelerator's products are fast where a row's length is a multiple


class Chunking(NamedTuple):
    """How the loss is divided."""

    tokens: int  # whose logits exist at a time
    block: int  # logits that are taken to float32 at a time
    transposed: bool  # the weight's gradient is accumulated as (C, V), else as (V, C)
    padding: int  # logits of no token after those of the vocabulary


def chunking(device_type: str, vocab_size: int, itemsize: int) -> Chunking:
    """The division for a kind of device, a vocabulary and the bytes of a logit.

    A CPU wants blocks that fit its caches, and makes the (C, V) product in two thirds of the time
    of the other. An accelerator wants large products with rows of aligned length, and adding a
    (C, V) product to a gradient of (V, C) would read it against the order of its memory.

    >>> chunking("cpu", 50_257, 2)
    Chunking(tokens=1024, block=2097152, transposed=True, padding=0)
    >>> chunking("cuda", 50_257, 2)  # 10,672 tokens × 50,304 logits × 2 bytes are 1 GiB
    Chunking(tokens=10672, block=33554432, transposed=False, padding=47)
    """
    if device_type == "cpu":
        return Chunking(tokens=1024, block=1 << 21, transposed=True, padding=0)
    padding = -vocab_size % ALIGNED
    tokens = max(1, CHUNK_BYTES // ((vocab_size + padding) * itemsize))
    return Chunking(tokens, block=1 << 25, transposed=False, padding=padding)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunks: Chunking,
        gradient: "Gradient",
    ) -> Tensor:
        count, vocab_size = len(targets), len(weight)
        matrix = weight.to(hidden.dtype)  # (V, C)
        if chunks.padding:  # rows of zeros: their logits are 0 and stay it
            matrix = F.pad(matrix, (0, 0, 0, chunks.padding))
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)  # (N, C)
        layout = matrix.T if chunks.transposed else matrix
        d_weight = torch.zeros_like(layout, dtype=torch.float32)  # (C, V) or (V, C)
        for start in range(0, count, chunks.tokens):
            chunk = slice(start, start + chunks.tokens)
            h = hidden[chunk]  # (n, C)
            logits = h @ matrix.T  # (n, V)
            loss += gradient(logits, targets[chunk], vocab_size, chunks.block)
            d_hidden[chunk] = logits @ matrix
            if chunks.transposed:
                d_weight += h.T @ logits
            elif h.dtype == d_weight.dtype:
                d_weight.addmm_(logits.T, h)
            else:
                d_weight += logits.T @ h
        d_weight = d_weight.T.contiguous() if chunks.transposed else d_weight[:vocab_size]
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.count = count
        return loss / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        # The mean is taken only now, with the scaler's factor: fp16 has no numbers that small.
        scale = grads[0] / ctx.count
        return (d_hidden.float() * scale).to(d_hidden.dtype), d_weight * scale, None, None, None


Gradient = Callable[[Tensor, Tensor, int, int], Tensor]  # `differentiate`, or a form for compiling


def differentiate(logits: Tensor, targets: Tensor, vocab_size: int, block: int) -> Tensor:
    """Turn logits (N, V) into the gradient by them, in place; return the summed cross-entropy.

    The gradient is the softmax minus the one-hot target. Logits after the first `vocab_size` are of
    no token and stay as they are. `block`: logits that are taken to float32 at a time.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]]).log1p()  # chances ½ ½ and ⅕ ⅘
    >>> differentiate(logits, torch.tensor([0, 1]), vocab_size=2, block=2)  # −ln ½ − ln ⅘
    tensor(0.9163)
    >>> logits
    tensor([[-0.5000,  0.5000],
            [ 0.2000, -0.2000]])
    """
    logits = logits[:, :vocab_size]
    rows = max(1, block // vocab_size)
    losses = []
    blocks = zip(torch.split(logits, rows), torch.split(targets[:, None], rows), strict=True)
    for part, ids in blocks:  # (rows, V), (rows, 1)
        x = part.float()  # itself where it is float32 already
        largest, of_target = x.amax(dim=-1, keepdim=True), x.gather(1, ids)
        # Logits in float32 become their own gradient, on a CPU: one array instead of two.
        p = torch.softmax(x, dim=-1, out=x if x is part and x.device.type == "cpu" else None)
        # The largest of V probabilities is at least 1 / V, so its logarithm is safe.
        log_sum = largest - p.amax(dim=-1, keepdim=True).log()  # (rows, 1)
        losses.append((log_sum - of_target).sum())
        p.scatter_add_(1, ids, torch.full_like(ids, -1, dtype=torch.float32))
        if p is not part:
            part.copy_(p)
    return torch.stack(losses).sum()


def differentiate_by_expression(
    logits: Tensor, targets: Tensor, vocab_size: int, block: int
) -> Tensor:
    """`differentiate` in a form from which a compiler makes two passes.

    It has no blocks, since no array in float32 comes to exist, and no scattered write. The padding
    is computed with the rest, as a logit of -inf, so that rows are read and written whole: rows of
    an odd length take three times as long.
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    x = logits.float().masked_fill(ids >= vocab_size, -torch.inf)
    log_sum = x.logsumexp(dim=-1, keepdim=True)
    loss = (log_sum - x.gather(1, targets[:, None])).sum()
    logits.copy_((x - log_sum).exp() - (ids == targets[:, None]).float())
    return loss


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunks: Chunking | None = None,
    gradient: Gradient = differentiate,
) -> Tensor:
    """Mean negative log-likelihood in nats, exact to that of all logits together.

    Args:
        hidden: (N, C), in the precision of the products.
        weight: (V, C) of the output layer; its gradient is accumulated in float32.
        targets: (N,) token ids.
        chunks: None: those of the device.
        gradient: `differentiate`, or `compiled_gradient()`.
    """
    chunks = chunks or chunking(hidden.device.type, len(weight), hidden.element_size())
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, chunks, gradient
    )
    return loss


def compiled_gradient() -> Gradient:
    """What a compiled training uses: on a GPU a fifth of the memory traffic of `differentiate`."""
    gradient: Gradient = torch.compile(differentiate_by_expression, dynamic=False)
    return gradient
