"""The GPT and nothing else: two architectures that share everything but their parts.

`gpt2` (Radford et al. 2019): LayerNorm, learned positions, GELU, biases; exports to
`GPT2LMHeadModel`. `qwen3` (Qwen Team 2025, arXiv:2505.09388): RMSNorm, rotary positions, QK-norm,
SwiGLU, grouped-query attention, no biases; exports to `Qwen3ForCausalLM`. Both are pre-norm
decoders with the output layer tied to the embedding.

Shapes: B rows, T positions, C = n_embd, H heads of width D = C / H, V = vocab_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.model import fused

MAX_PLAIN_CONTEXT = 512  # tokens, up to which a CPU attends by plain products
NORM_EPS = {"gpt2": 1e-5, "qwen3": 1e-6}


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019 (arXiv:1910.07467), in the precision of its input."""

    fused = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.training:
            return fused.rms_norm(x, self.weight, NORM_EPS["qwen3"])
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS["qwen3"])


class Attention(nn.Module):
    """Causal self-attention; grouped queries, rotary positions and QK-norm where qwen3 has them."""

    fused = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rotary = config.architecture == "qwen3"
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.dropout = config.dropout
        kv_width = self.n_kv_head * self.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=not rotary)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=not rotary)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=not rotary)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=not rotary)
        self.q_norm = RMSNorm(self.head_dim) if rotary else None
        self.k_norm = RMSNorm(self.head_dim) if rotary else None

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, bias: Tensor | None = None
    ) -> Tensor:
        B, T, C = x.shape
        fuses = self.fused and self.training and rotation is not None
        q, k, v = self.fused_heads(x, rotation) if fuses else self.heads(x, rotation)
        y = attend(q, k, v, self.dropout if self.training else 0.0, scaled=fuses, bias=bias)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, C))
        return out

    def heads(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H or fewer, T, D) each."""
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part.view(*x.shape[:2], -1, self.head_dim) for part in projected)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def fused_heads(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with the queries scaled; `rotation` is that of `fused.rotation_tables`."""
        assert rotation is not None
        assert self.q_norm is not None
        assert self.k_norm is not None
        return fused.project_heads(
            x,
            (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight),
            (self.q_norm.weight, self.k_norm.weight),
            rotation,
            NORM_EPS["qwen3"],
        )


def project(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """The outputs of several layers on x, by one product: faster than several small ones."""
    weight = torch.cat(tuple(layer.weight for layer in layers))
    biases = tuple(layer.bias for layer in layers if layer.bias is not None)
    y = F.linear(x, weight, torch.cat(biases) if biases else None)
    return torch.split(y, [layer.out_features for layer in layers], dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    scaled: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """Causal attention: (B, H, T, D) queries over (B, H or fewer, T, D) keys and values.

    In bf16 on a CPU torch's kernel takes two to three times as long as plain products, so these
    are used for contexts whose scores, (B, H, T, T), are small. `scaled`: of the fused parts, whose
    queries are divided by √D. `bias`: of `document_bias`, instead of the causal mask alone.
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_PLAIN_CONTEXT
    if not plain or k.shape[1] != q.shape[1]:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            is_causal=bias is None,
            dropout_p=dropout,
            enable_gqa=k.shape[1] != q.shape[1],
            scale=1.0 if scaled else None,
        )
    if scaled and dropout == 0:
        return fused.causal_attention(q, k, v, bias)
    scores = (q if scaled else q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
    if bias is None:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill_(future, -math.inf)
    else:
        scores += bias
    return drop(scores.softmax(dim=-1), dropout) @ v


def document_bias(ids: Tensor, eot: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of (B, T) tokens, so that each attends to its document alone.

    (B, 1, T, T): 0 for the tokens of its own document up to itself, else -inf, of which the softmax
    makes an exact 0. A document begins with its end-of-text, so the number of them so far is the
    document that a token is of; a row may begin inside one. With 0 as end-of-text:

    >>> document_bias(torch.tensor([[7, 0, 8, 9]]), 0, torch.float32)[0, 0]
    tensor([[0., -inf, -inf, -inf],
            [-inf, 0., -inf, -inf],
            [-inf, 0., 0., -inf],
            [-inf, 0., 0., 0.]])
    """
    T = ids.shape[1]
    document = (ids == eot).cumsum(dim=1, dtype=torch.int16 if T < 2**15 else torch.int32)  # (B, T)
    others = document[:, :, None] != document[:, None, :]  # (B, T, T)
    others |= torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1)
    bias = torch.zeros(others.shape, dtype=dtype, device=ids.device)
    return bias.masked_fill_(others, -math.inf)[:, None]


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout (Srivastava et al. 2014, JMLR 15): zeroes that fraction of x, the rest scaled up.

    On a CPU torch draws a number per element, on one thread; 16 bits per element, four from a
    number, take a third of the time. The rate is rounded to a multiple of 2⁻¹⁶ there.
    """
    if rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = round(rate * 2**16)
    numbers = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * (kept.to(x.dtype) * (2**16 / (2**16 - dropped)))


class GeluMLP(nn.Module):
    """GPT-2's MLP: four times as wide, GELU by tanh."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_inner or 4 * config.n_embd
        self.up_proj = nn.Linear(config.n_embd, width)
        self.down_proj = nn.Linear(width, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return out


class SwiGluMLP(nn.Module):
    """Shazeer 2020 (arXiv:2002.05202): 8/3 as wide, so as many weights as GPT-2's."""

    fused = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_inner or 32 * math.ceil(config.n_embd * 8 / 3 / 32)
        self.gate_proj = nn.Linear(config.n_embd, width, bias=False)
        self.up_proj = nn.Linear(config.n_embd, width, bias=False)
        self.down_proj = nn.Linear(width, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.training:
            inner = fused.swiglu(x, self.gate_proj.weight, self.up_proj.weight)
        else:
            gate, up = project(x, self.gate_proj, self.up_proj)
            inner = F.silu(gate) * up
        out: Tensor = self.down_proj(inner)
        return out


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = GeluMLP(config) if config.architecture == "gpt2" else SwiGluMLP(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, bias: Tensor | None = None
    ) -> Tensor:
        rate = self.dropout if self.training else 0.0
        x = x + drop(self.attention(self.attention_norm(x), rotation, bias), rate)
        out: Tensor = x + drop(self.mlp(self.mlp_norm(x)), rate)
        return out


class GPT(nn.Module):
    """A decoder-only transformer: `forward` returns hidden states, from which `logits` follow."""

    cos: Tensor
    sin: Tensor
    fused = False
    document_eot: int | None = None  # at which attention ends in training

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embed = nn.Embedding(vocab_size, config.n_embd)
        learned = config.architecture == "gpt2"
        self.positions = nn.Embedding(config.seq_len, config.n_embd) if learned else None
        self.dropout = config.dropout
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = make_norm(config)
        cos, sin = rotary_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """GPT-2's initialisation: normal(0, 0.02), and the layers that write to the residual
        scaled down by the square root of their number, so that its variance does not grow with
        depth.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms start at one and biases, below, at zero
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = math.sqrt(2 * self.config.n_layer) if residual else 1.0
            nn.init.normal_(parameter, std=0.02 / scale)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) token ids → (B, T, C) hidden states after the final norm.

        Raises ValueError beyond `seq_len` positions.
        """
        T, limit = ids.shape[1], self.config.seq_len
        if limit < T:
            raise ValueError(f"{T} tokens do not fit the context of {limit}")
        x = self.embed(ids)  # (B, T, C)
        rotation = None
        if self.positions is not None:
            x = x + self.positions.weight[:T]
        else:  # (T, 1, D), to broadcast over heads
            rotation = (self.cos[:T, None], self.sin[:T, None])
        if rotation is not None and self.fused and self.training:
            rotation = fused.rotation_tables(self.cos[:T], self.sin[:T], *self.head_counts)
        bias = None
        if self.document_eot is not None and self.training:
            bias = document_bias(ids, self.document_eot, fused.product_dtype(x))
        x = drop(x, self.dropout if self.training else 0.0)
        for block in self.blocks:
            x = block(x, rotation, bias)
        out: Tensor = self.final_norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states → (…, V), by the embedding itself: the two are tied."""
        return F.linear(hidden, self.embed.weight)

    def use_fused_parts(self) -> None:
        """Train by the parts of `slm.model.fused` from now on; scoring stays as it is."""
        for module in self.modules():
            if isinstance(module, GPT | RMSNorm | Attention | SwiGluMLP):
                module.fused = True

    def mask_documents(self, eot: int) -> None:
        """Train with attention that ends at end-of-text from now on.

        Positions count on: only what attention sees changes, not what the weights mean. Documents
        are scored and continued one at a time, so nothing else needs it.
        """
        self.document_eot = eot

    @property
    def head_counts(self) -> tuple[int, int]:
        """The heads of queries and of keys."""
        return self.config.n_head, self.config.n_kv_head or self.config.n_head

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> float:
        """Floating-point operations per training token, forward and backward.

        Six per weight that is multiplied, and attention's 6·L·C·T (half of the full matrix, since
        it is causal): Kaplan et al. 2020 and PaLM's appendix B, with the causal half.
        """
        c = self.config
        matrices = sum(p.numel() for n, p in self.named_parameters() if p.dim() == 2)
        if self.positions is not None:
            matrices -= self.positions.weight.numel()  # looked up, not multiplied
        return 6.0 * matrices + 6.0 * c.n_layer * c.n_embd * c.seq_len


def make_norm(config: ModelConfig) -> nn.Module:
    if config.architecture == "gpt2":
        return nn.LayerNorm(config.n_embd, eps=NORM_EPS["gpt2"])
    return RMSNorm(config.n_embd)


def rotary_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, (seq_len, D) each (Su et al. 2021, arXiv:2104.09864)."""
    width = config.n_embd // config.n_head
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(config.seq_len).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: pairs (i, i + D/2) of x, (B, T, H, D), turned by their angles."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
