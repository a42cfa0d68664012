"""Parts of qwen3's block for training on a CPU, each with its own backward pass.

They compute what `slm.model.gpt` computes, to rounding. On a CPU every operation of autograd reads
and writes its arrays once, and norms, rotary positions and SwiGLU are dozens of those around a few
products. Here a part is one function: in place where it may be, one pass for queries and keys
together, gradients written to where the next product reads them, and in float32 between products.

Shapes as in `slm.model.gpt`; N = B·T, D = C / H.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128  # queries that attend together: to the keys up to the last of them


def product_dtype(x: Tensor) -> torch.dtype:
    """What products are made in: autocast's dtype where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def stacked(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Weights below each other, in the dtype of the products."""
    out = torch.empty(sum(len(w) for w in weights), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(out, [len(w) for w in weights]), weights, strict=True):
        part.copy_(weight)
    return out


# ---- RMSNorm ----------------------------------------------------------------------------------


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, C)
        scale = inverse_rms(flat, eps)  # (N, 1)
        ctx.save_for_backward(flat, weight, scale)
        return (flat * scale).mul_(weight).to(dtype).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        """By LayerNorm's kernel with a mean of zero, which takes a mean out that is put back."""
        flat, weight, scale = ctx.saved_tensors
        grad = grads[0].reshape(flat.shape).float()
        width = flat.shape[1]
        d_flat, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, flat, [width], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        d_flat.add_(scale * (grad @ weight)[:, None], alpha=1 / width)
        return d_flat.view_as(grads[0]), d_weight, None, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + eps) over the last dimension, which is kept."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of float32 x (…, C), in the dtype of the products that read it."""
    out: Tensor = _RmsNorm.apply(x, weight, eps, product_dtype(x))  # type: ignore[no-untyped-call]
    return out


# ---- queries, keys and values -----------------------------------------------------------------


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
        q_gain: Tensor, k_gain: Tensor, cos: Tensor, sin: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        B, T, C = x.shape
        D = len(q_gain)
        widths = [len(q_weight), len(k_weight), len(v_weight)]
        heads = [width // D for width in widths]
        weight = stacked((q_weight, k_weight, v_weight), x.dtype)
        y = x.reshape(-1, C) @ weight.T  # (N, widths)
        normed = widths[0] + widths[1]
        f = y[:, :normed].float().view(B, T, -1, D)  # of queries and keys
        scale = inverse_rms(f, eps)
        # A turned f·gain is f·(cos·gain) + swapped f·(sin·swapped gain).
        gain = torch.cat((q_gain.expand(heads[0], D), k_gain.expand(heads[1], D)))  # (heads, D)
        turned = turn(f, cos * gain, sin * swap_halves(gain)).mul_(scale)
        turned = turned.to(x.dtype).transpose(1, 2)  # (B, heads, T, D)
        q, k = (part.contiguous() for part in torch.split(turned, heads[:2], dim=1))
        v = y[:, normed:].view(B, T, -1, D).transpose(1, 2).contiguous()
        ctx.save_for_backward(x, weight, f, scale, gain, cos, sin)
        ctx.heads = heads
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, f, scale, gain, cos, sin = ctx.saved_tensors
        B, T, _, D = f.shape
        heads = ctx.heads
        grad = torch.empty_like(f)
        for part, d_part in zip(torch.split(grad, heads[:2], dim=2), grads[:2], strict=True):
            part.copy_(d_part.transpose(1, 2))
        back = turn(grad, cos, -sin)  # the gradient of f·gain·scale
        d_gain = ((back * f).mul_(scale)).sum(dim=(0, 1))  # (heads, D)
        back.mul_(gain)
        inner = (back * f).sum(dim=-1, keepdim=True)
        back.mul_(scale).addcmul_(f, inner.mul_(scale**3), value=-1 / D)
        d_y = torch.empty(B, T, sum(heads), D, dtype=weight.dtype)
        d_y[:, :, : -heads[2]] = back
        d_y[:, :, -heads[2] :] = grads[2].transpose(1, 2)
        d_y = d_y.view(B * T, -1)
        d_weight = (d_y.T @ x.reshape(B * T, -1)).float()
        d_weights = torch.split(d_weight, [count * D for count in heads])
        d_gains = (part.sum(dim=0) for part in torch.split(d_gain, heads[:2]))
        return (d_y @ weight).view_as(x), *d_weights, *d_gains, None, None, None


def swap_halves(x: Tensor) -> Tensor:
    """(…, D) with its two halves exchanged."""
    return torch.cat(tuple(reversed(x.chunk(2, dim=-1))), dim=-1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + swapped x·sin, where sin has its sign already: the first half's is negative."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def rotation_tables(cos: Tensor, sin: Tensor, n_head: int, n_kv_head: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (T, D) of every head of queries and keys, (T, heads, D) each.

    Those of the queries are divided by √D, so that no pass over them or their scores does it.
    """
    width = cos.shape[1]
    sign = torch.ones(width)
    sign[: width // 2] = -1
    scale = torch.ones(n_head + n_kv_head, 1)
    scale[:n_head] = width**-0.5
    return cos[:, None] * scale, (sin * sign)[:, None] * scale


def project_heads(
    x: Tensor, weights: tuple[Tensor, Tensor, Tensor], gains: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor], eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries, keys and values of x (B, T, C): normed, turned and scaled, (B, heads, T, D) each.

    Args:
        weights: of the three projections.
        gains: (D,) each, of the norms of queries and keys.
        tables: of `rotation_tables`.
    """
    parts: tuple[Tensor, Tensor, Tensor] = _Heads.apply(x, *weights, *gains, *tables, eps)  # type: ignore[no-untyped-call]
    return parts


# ---- attention --------------------------------------------------------------------------------


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out, kept = torch.empty_like(v), []
        for block in query_blocks(q.shape[1]):
            seen = slice(block.stop)
            scores = q[:, block] @ k[:, seen].mT  # (B·H, block, seen)
            if bias is not None:  # (B, 1, T, T), of B·H scores
                scores.view(len(bias), -1, *scores.shape[1:]).add_(bias[:, :, block, seen])
            else:
                own = scores[:, :, block.start :]  # the others are all earlier
                own += torch.full(own.shape[1:], -math.inf, dtype=q.dtype).triu(1)
            chances = scores.softmax(dim=-1)
            out[:, block] = chances @ v[:, seen]
            kept.append(chances)
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        """Nothing is masked again: what has no chance gets no gradient from the softmax."""
        q, k, v, *kept = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, chances in zip(query_blocks(q.shape[1]), kept, strict=True):
            seen, grad = slice(block.stop), grads[0][:, block]
            d_v[:, seen] += chances.mT @ grad
            d_scores = torch._softmax_backward_data(
                grad @ v[:, seen].mT, chances, -1, chances.dtype
            )
            d_q[:, block] = d_scores @ k[:, seen]
            d_k[:, seen] += d_scores.mT @ q[:, block]
        return d_q, d_k, d_v, None


def query_blocks(length: int) -> list[slice]:
    """The queries that attend together.

    >>> query_blocks(300)
    [slice(0, 128, None), slice(128, 256, None), slice(256, 300, None)]
    """
    starts = range(0, length, QUERY_BLOCK)
    return [slice(start, min(start + QUERY_BLOCK, length)) for start in starts]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention by plain products: (B, H, T, D) each, the queries already scaled.

    `bias`: (B, 1, T, T), added to the scores instead of the causal mask, which it contains.
    """
    flat = (part.flatten(0, 1) for part in (q, k, v))
    out: Tensor = _CausalAttention.apply(*flat, bias)  # type: ignore[no-untyped-call]
    return out.view_as(q)


# ---- SwiGLU -----------------------------------------------------------------------------------


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
        flat, width = x.reshape(-1, x.shape[-1]), len(gate_weight)
        weight = stacked((gate_weight, up_weight), x.dtype)  # (2·width, C)
        gate, up = flat @ weight[:width].T, flat @ weight[width:].T  # (N, width)
        opened = F.silu(gate)
        ctx.save_for_backward(flat, weight, gate, up, opened)
        return (opened * up).view(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        flat, weight, gate, up, opened = ctx.saved_tensors
        width = gate.shape[1]
        grad = grads[0].reshape(gate.shape)
        both = torch.empty(len(flat), 2 * width, dtype=gate.dtype)
        torch.mul(grad, opened, out=both[:, width:])
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=both[:, :width])
        d_weight = (both.T @ flat).float()
        d_x = (both @ weight).view(*grads[0].shape[:-1], flat.shape[1])
        return d_x, d_weight[:width], d_weight[width:]


def swiglu(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
    """silu(x Gᵀ) · (x Uᵀ), (…, C) → (…, width); x in the dtype of the products."""
    out: Tensor = _SwiGlu.apply(x, gate_weight, up_weight)  # type: ignore[no-untyped-call]
    return out
