"""The model one token at a time, as fast as its weights can be read.

The same function as `GPT.forward`, with a KV cache and its weights laid out for few rows: one
product for queries, keys and values, and on a CPU in float32 copies in oneDNN's own layout, read at
the memory's full rate (torch's default reaches a third of it). The precision is the same; the
layout is the one that torch's compiler uses, without the minute of compiling. With int8 weights it
is the function of the rounded weights (`slm.model.int8`).
"""

import math
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import Weights
from slm.errors import UserError
from slm.model.gpt import GPT, NORM_EPS, Block, GeluMLP, SwiGluMLP
from slm.model.int8 import MAX_ROWS, MIN_SHARED, Int8Product, check_int8, round_to_int8

MIN_SCREENED_BYTES = 1 << 25  # of an output layer: a smaller one stays in the caches
STRETCH = 128  # positions: a GPU's step reads a multiple of them
LANES = 16  # float32 numbers in a CPU's register
CHUNK = 256  # positions that a CPU's step attends to at once

Product = Callable[[Tensor], Tensor]
Rotation = tuple[Tensor, Tensor] | None


@dataclass
class KVCache:
    """Keys and values of the positions so far, preallocated; rows may differ in length."""

    keys: Tensor  # (n_layer, B, n_kv_head, seq_len, D)
    values: Tensor  # the same
    lengths: Tensor  # (B,), positions filled in each row
    graphs: dict[int, "StepGraph"] = field(default_factory=dict)  # by the positions that are read

    @classmethod
    def empty(cls, model: GPT, rows: int) -> "KVCache":
        c = model.config
        shape = (c.n_layer, rows, c.n_kv_head or c.n_head, c.seq_len, c.n_embd // c.n_head)
        weight = model.embed.weight
        keys, values = torch.zeros((2, *shape), dtype=weight.dtype, device=weight.device)
        return cls(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))


class StepGraph(NamedTuple):
    """`Decoder.padded_step` on a cache as a CUDA graph, and the tensors that it reads and makes."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    lengths: Tensor
    hidden: Tensor


class Decoder:
    """A model prepared for generation. Later changes of the model do not reach it.

    Takes as much memory as the weights once more, and about as long to make as ten tokens; with
    int8 weights about as long as a hundred.

    Raises UserError where int8 is given for a model on a GPU or not in float32.
    """

    def __init__(self, model: GPT, weights: Weights = "float32") -> None:
        if weights not in get_args(Weights):
            raise UserError(f"weights={reprlib.repr(weights)}: give float32 or int8")
        int8 = weights == "int8"
        if int8:
            check_int8(model)
        self.model, self.weights = model, weights
        self.config = model.config
        weight = model.embed.weight.detach()
        self.embed = round_to_int8(weight) if int8 else weight
        self.positions = model.positions.weight.detach() if model.positions is not None else None
        if self.positions is None:
            first, second = model.sin.chunk(2, dim=-1)
            self.cos, self.sin = model.cos, torch.cat((-first, second), dim=-1)  # (seq_len, D)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.layers = [_Layer(block, int8) for block in blocks]
        self.final_norm = _norm(model.final_norm)
        self.mask = torch.zeros(model.config.seq_len + LANES, dtype=weight.dtype)
        self.mask[-LANES:] = -torch.inf  # a window of it is the mask of rows of one length
        self.mask = self.mask.to(weight.device)
        largest = max(layer.largest for layer in self.layers)  # weights in a product
        read = largest * (1 if int8 else weight.itemsize)
        self.small = weight.device.type == "cpu" and read < MIN_SHARED
        self.logits = product(weight, int8=int8)  # (B, C) hidden states → (B, V)
        large = weight.nbytes > MIN_SCREENED_BYTES and not int8
        screened = large and _packs(weight) and multiplies_in_bf16()
        self.screen = Screen(weight) if screened else None

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Fill the empty rows of a cache with texts, padded on the right.

        Args:
            ids: (B, T). The caller sets `cache.lengths` to the lengths without padding, so that
                later positions never see it and later tokens are written over it.

        Returns:
            (B, T, C) hidden states after the final norm.
        """
        T = ids.shape[1]
        x, rotation = self._embed(ids, torch.arange(T, device=ids.device))  # (B, T, C)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            q, k, v = layer.project(x, rotation)  # (B, T, n_head or n_kv_head, D)
            keys[:, :, :T] = k.transpose(1, 2)  # keys: (B, n_kv_head, seq_len, D)
            values[:, :, :T] = v.transpose(1, 2)
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                is_causal=True,
                enable_gqa=q.shape[2] != k.shape[2],
            )
            x = layer.finish(x, y.transpose(1, 2).reshape(x.shape))
        return self.final_norm(x)

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Add one token to each row, none of which may be full, and advance the cache.

        Args:
            ids: (B,).

        Returns:
            (B, C) hidden states after the final norm.
        """
        lengths = cache.lengths.tolist()
        filled = max(lengths) + 1
        S = min(LANES * math.ceil(filled / LANES), cache.keys.shape[3])
        if ids.device.type == "cuda":
            hidden = self._replay(ids, cache, filled)
        elif min(lengths) + 1 < filled:
            hidden = self.padded_step(ids, cache.lengths, cache, S)
        else:  # rows of one length need no index tensors
            x, rotation = self._embed(ids, cache.lengths)  # (B, C)
            slot = (slice(None), slice(None), lengths[0])
            end = len(self.mask) - LANES  # the mask's first -inf
            mask = self.mask[end - filled : end - filled + S].expand(len(ids), 1, 1, S)
            with one_thread() if self.small and len(ids) == 1 else nullcontext():
                hidden = self._through_layers(x, rotation, cache, slot, mask, S)
        cache.lengths += 1
        return hidden

    @torch.inference_mode()
    def padded_step(self, ids: Tensor, lengths: Tensor, cache: KVCache, S: int) -> Tensor:
        """A step of rows that differ in length, of which S positions are read; (B, C).

        `lengths`: (B,), positions filled so far, each below S.
        """
        # Two rows with 3 and 1 positions filled: their new keys go to the positions 3 and 1, S is
        # 4, and the mask keeps the second row from positions 2 and 3 of the first one's length:
        #     positions   0 1 2 3
        #     row 0       . . . .     3 filled, and the new one
        #     row 1       . . ∞ ∞     1 filled, and the new one; ∞ stands for -inf
        x, rotation = self._embed(ids, lengths)  # (B, C)
        slot = (torch.arange(len(ids), device=ids.device), slice(None), lengths)
        visible = torch.arange(S, device=ids.device) <= lengths[:, None]  # (B, S)
        mask = torch.zeros(visible.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill_(~visible, -torch.inf)[:, None, None]  # (B, 1, 1, S)
        return self._through_layers(x, rotation, cache, slot, mask, S)

    def _through_layers(
        self,
        x: Tensor,
        rotation: Rotation,
        cache: KVCache,
        slot: tuple[object, ...],
        mask: Tensor,
        S: int,
    ) -> Tensor:
        """All layers on (B, C), whose keys and values go to `slot` of the cache; (B, C)."""
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            q, k, v = layer.project(x, rotation)  # (B, n_head or n_kv_head, D)
            keys[slot] = k
            values[slot] = v
            q = q.view(len(x), k.shape[1], -1, k.shape[2])  # (B, n_kv_head, queries that share, D)
            y = attend(q, keys[:, :, :S], values[:, :, :S], mask)
            x = layer.finish(x, y.reshape(x.shape))
        return self.final_norm(x)

    def _replay(self, ids: Tensor, cache: KVCache, filled: int) -> Tensor:
        """`padded_step` on a GPU, in one launch instead of hundreds, each of which takes as long.

        A graph is of fixed shapes, so there is one for every multiple of `STRETCH` positions.
        """
        S = min(STRETCH * math.ceil(filled / STRETCH), cache.keys.shape[3])
        if S not in cache.graphs:
            cache.graphs[S] = self._capture(cache, S)
        step = cache.graphs[S]
        step.ids.copy_(ids)
        step.lengths.copy_(cache.lengths)
        step.graph.replay()
        return step.hidden.clone()

    def _capture(self, cache: KVCache, S: int) -> StepGraph:
        """The graph of a step; what it writes meanwhile, its first replay writes over."""
        ids, lengths = torch.zeros_like(cache.lengths), cache.lengths.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate at their first call
            self.padded_step(ids, lengths, cache, S)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = self.padded_step(ids, lengths, cache, S)
        return StepGraph(graph, ids, lengths, hidden)

    def _embed(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Rotation]:
        x = F.embedding(ids, self.embed)
        if self.positions is not None:
            return x + F.embedding(positions, self.positions), None
        cos, sin = (table[positions].unsqueeze(-2) for table in (self.cos, self.sin))
        return x, (cos.to(x.dtype), sin.to(x.dtype))


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one position per row; a row's bits depend on its own positions alone.

    On a CPU sums are made in registers, in blocks that follow from the number of keys that are
    read. So it is always a multiple of a register, where what is masked adds zeros, and more than
    `CHUNK` keys are read in chunks. With the scores 1, 3 and 2 in chunks of two:

        chunk    a = logarithm of the sum of exponentials    its share of the whole
        1 3      log(e¹ + e³)                                exp(a - log(e¹ + e³ + e²))
        2        log(e²)                                     exp(a - log(e¹ + e³ + e²))

    A chunk that is masked as a whole changes nothing.

    Args:
        q: (B, n_kv_head, queries that share, D).
        keys, values: (B, n_kv_head, S, D).
        mask: (B, 1, 1, S), 0 or -inf.
    """
    S = keys.shape[2]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    if S <= CHUNK:
        only: Tensor = _flash(q, keys, values, attn_mask=mask)[0]
        return only
    y: Tensor | None = None
    for start in range(0, S, CHUNK):
        part = slice(start, start + CHUNK)
        # s: the chunk's logarithm, (B, n_kv_head, queries that share); total: that of all so far
        new, s = _flash(q, keys[:, :, part], values[:, :, part], attn_mask=mask[..., part])
        s = s.unsqueeze(-1).to(q.dtype)
        if y is None:  # no row has its first chunk masked
            y, total = new, s
            continue
        joined = torch.maximum(total, s) + torch.exp(-(total - s).abs()).log1p()
        seen = mask[..., start, None] == 0  # (B, 1, 1, 1): whether the chunk's first position is
        y = torch.where(seen, y * (total - joined).exp() + new * (s - joined).exp(), y)
        total = torch.where(seen, joined, total)
    assert y is not None
    return y


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Screen:
    """The likeliest next tokens of one row, at half the memory traffic: bf16 logits choose the
    candidates, of which float32 logits are computed.

    The output layer is most of a small model's weights. A logit in bf16 is off by at most `error`
    times the norm of the hidden state. So one that is further than twice that below the k-th
    highest is not among the highest k: with errors of at most 0.1 and k = 1, the bf16 logits
    2.0 1.9 1.7 leave the candidates 2.0 and 1.9, since 1.7 can be 1.8 at most, and 2.0 is 1.9 at
    least.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.product = product(weight.bfloat16())
        # Both factors and the result are rounded to 8 bits each; the rest is float32's rounding.
        self.error = 3.1 * 2**-8 * float(weight.norm(dim=1).max())

    def __call__(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(1, C) hidden states → ids (N,) that hold the k likeliest, and their logits (1, N)."""
        rough = self.product(hidden.bfloat16()).float()  # (1, V)
        k = min(max(k, 2), rough.shape[1])  # a product with one output channel rounds otherwise
        threshold = rough.topk(k).values[0, -1] - 2 * self.error * hidden.norm()
        ids = (rough[0] >= threshold).nonzero().flatten()
        return ids, product(self.weight[ids])(hidden)


class _Layer:
    """A block's functions of (…, C) hidden states."""

    def __init__(self, block: Block, int8: bool) -> None:
        a, mlp = block.attention, block.mlp
        self.heads = (a.n_head, a.n_kv_head)
        self.head_dim = a.head_dim
        self.attention_norm, self.mlp_norm = _norm(block.attention_norm), _norm(block.mlp_norm)
        self.qk_norm = None  # (heads of queries and keys, D)
        if a.q_norm is not None and a.k_norm is not None:
            norms = ((a.q_norm, a.n_head), (a.k_norm, a.n_kv_head))
            self.qk_norm = torch.cat([norm.weight.detach().expand(n, -1) for norm, n in norms])
        qkv = _concatenated(a.q_proj, a.k_proj, a.v_proj)
        self.qkv = product(*qkv, int8=int8)
        self.out = product_plus(a.o_proj.weight, a.o_proj.bias, int8=int8)
        if isinstance(mlp, GeluMLP):
            up = mlp.up_proj.weight
            self.up = product(up, mlp.up_proj.bias, gelu=True, int8=int8)
        else:
            assert isinstance(mlp, SwiGluMLP)
            up, _ = _concatenated(mlp.gate_proj, mlp.up_proj)
            self.up = _gated(product(up, int8=int8))
        self.down = product_plus(mlp.down_proj.weight, mlp.down_proj.bias, int8=int8)
        self.largest = max(qkv[0].numel(), up.numel())

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (…, heads, D) each."""
        heads = self.qkv(self.attention_norm(x)).view(*x.shape[:-1], -1, self.head_dim)
        qk, v = torch.split_with_sizes(heads, (sum(self.heads), self.heads[1]), dim=-2)
        if self.qk_norm is not None:
            qk = torch.rms_norm(qk, (self.head_dim,), None, NORM_EPS["qwen3"]) * self.qk_norm
        if rotation is not None:  # as of `rotate`
            cos, signed_sin = rotation
            qk = qk * cos + qk.roll(self.head_dim // 2, dims=-1) * signed_sin
        q, k = torch.split_with_sizes(qk, self.heads, dim=-2)
        return q, k, v

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's output from its input and the output of attention, (…, C) both."""
        x = self.out(y, x)
        return self.down(self.up(self.mlp_norm(x)), x)


def _concatenated(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer whose output is those of several, concatenated."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on one thread: waking another takes longer than a small one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _gated(products: Product) -> Product:
    def up(x: Tensor) -> Tensor:
        gate, value = products(x).chunk(2, dim=-1)
        return F.silu(gate) * value

    return up


def _norm(module: nn.Module) -> Product:
    """A norm as a plain function: calling a module costs more than this norm itself."""
    weight = module.get_parameter("weight").detach()
    shape = weight.shape
    if isinstance(module, nn.LayerNorm):
        bias, eps = module.bias.detach(), module.eps
        return partial(torch.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=eps)
    return partial(torch.rms_norm, normalized_shape=shape, weight=weight, eps=NORM_EPS["qwen3"])


# ---- products ---------------------------------------------------------------------------------


def product(
    weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, int8: bool = False
) -> Product:
    """x → x Wᵀ + b, with `gelu` followed by GELU (by tanh), with `int8` of the rounded weights."""
    weight = weight.detach()
    if int8:
        return _int8_product(weight, bias, gelu)
    if not _packs(weight):
        plain = partial(F.linear, weight=weight, bias=bias)
        return (lambda x: F.gelu(plain(x), approximate="tanh")) if gelu else plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    call = torch.ops.mkldnn._linear_pointwise.default
    if gelu:
        return lambda x: call(x, packed, bias, "gelu", [], "tanh")
    return lambda x: call(x, packed, bias, "none", [], "")


def product_plus(
    weight: Tensor, bias: Tensor | None, *, int8: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """x, y → y + x Wᵀ + b, with `int8` of the rounded weights."""
    weight = weight.detach()
    if int8 or not _packs(weight):
        plain = product(weight, bias, int8=int8)
        return lambda x, y: y + plain(x)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    call = torch.ops.mkldnn._linear_pointwise.binary
    return lambda x, y: call(x, y, packed, bias, "add")


def gated_product(gate: Tensor, up: Tensor) -> Product:
    """x → silu(x Gᵀ) · (x Uᵀ), SwiGLU; where oneDNN can, without a pass over either factor."""
    gate, up = gate.detach(), up.detach()
    if not _packs(gate):
        return lambda x: F.silu(F.linear(x, gate)).mul_(F.linear(x, up))
    packed_gate, packed_up = map(torch.ops.mkldnn._reorder_linear_weight, (gate, up))
    plain = torch.ops.mkldnn._linear_pointwise.default
    times = torch.ops.mkldnn._linear_pointwise.binary

    def call(x: Tensor) -> Tensor:
        opened = plain(x, packed_gate, None, "swish", [], "")
        out: Tensor = times(x, opened, packed_up, None, "mul")
        return out

    return call


def _int8_product(weight: Tensor, bias: Tensor | None, gelu: bool) -> Product:
    """A product that reads eight bits for a few rows, and is made in float32 once more need it."""
    few = Int8Product(weight, bias)
    many = cache(lambda: product(few.weight(), bias, gelu=gelu))

    def call(x: Tensor) -> Tensor:
        if x.numel() > MAX_ROWS * few.width:
            return many()(x)
        return F.gelu(few(x), approximate="tanh") if gelu else few(x)

    return call


def _packs(weight: Tensor) -> bool:
    """Whether there is a layout of oneDNN's own for this weight."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    half = weight.dtype == torch.bfloat16 and multiplies_in_bf16()
    return half or weight.dtype == torch.float32


def multiplies_in_bf16() -> bool:
    """Whether this CPU multiplies in bf16 itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
