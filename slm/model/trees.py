"""Many short texts that begin alike, read together, each beginning once.

A row holds a tree in preorder: after a position come all those that it leads to, then its siblings.
Each one sees those that lead to it, at its depth, so its hidden state is that of the whole text.
The sentences "the cat sat down" and "the cat ran" (0 is end-of-text, a letter is a token):

    ids     0  t  c  s  r      the last token of a text is predicted and not read
    depth   0  1  2  3  3
    end     5  5  5  4  5      the subtree of a position ends before this one
                               "s" and "r" both follow "c"; "r" does not see "s", which ended

The function is that of `GPT.forward`. On a CPU a small model spends as much time on passes over its
activations as on products: here they are few, and made within the products where oneDNN can.

Shapes: B rows, T positions, N = B·T, C = n_embd, D = C / H.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.model.decode import gated_product, product, product_plus
from slm.model.fused import inverse_rms, turn
from slm.model.gpt import GPT, NORM_EPS, Block, GeluMLP, SwiGluMLP

Rotation = tuple[Tensor, Tensor] | None


class TreeReader:
    """A model prepared for reading trees. Later changes of the model do not reach it.

    Takes as much memory as the weights once more.
    """

    def __init__(self, model: GPT) -> None:
        self.embed = model.embed.weight.detach()
        self.positions = model.positions.weight.detach() if model.positions is not None else None
        first, second = model.sin.chunk(2, dim=-1)
        self.cos, self.sin = model.cos, torch.cat((-first, second), dim=-1)  # as `turn` takes them
        self.layers = [_Layer(block) for block in model.blocks if isinstance(block, Block)]
        self.final_norm = _Norm(model.final_norm)
        self.logits = product(self.embed)  # (…, C) hidden states → (…, V)

    @torch.inference_mode()
    def hidden(self, ids: Tensor, depths: Tensor, ends: Tensor) -> Tensor:
        """The hidden states of trees after the final norm, (N, C).

        Args:
            ids, depths, ends: (B, T). A position of padding ends before the next one.
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        seen = (place <= place[:, None]) & (place[:, None] < ends[:, None])  # (B, T, T)
        mask = torch.zeros(seen.shape, dtype=self.embed.dtype, device=ids.device)
        mask = mask.masked_fill_(~seen, -math.inf)[:, None]  # (B, 1, T, T)
        x = F.embedding(ids, self.embed).flatten(0, 1)  # (N, C)
        rotation = None
        if self.positions is not None:
            x = x + F.embedding(depths, self.positions).flatten(0, 1)
        else:
            rotation = (self.cos[depths].unsqueeze(2), self.sin[depths].unsqueeze(2))
        for layer in self.layers:
            x = layer(x, rotation, mask)
        return self.final_norm(x)


class _Norm:
    """A norm in few passes."""

    def __init__(self, module: nn.Module) -> None:
        self.weight = module.get_parameter("weight").detach()
        self.bias = module.bias.detach() if isinstance(module, nn.LayerNorm) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS["gpt2"])
        return (x * inverse_rms(x, NORM_EPS["qwen3"])).mul_(self.weight)


class _Layer:
    """A block."""

    def __init__(self, block: Block) -> None:
        a, mlp = block.attention, block.mlp
        self.heads, self.head_dim = [a.n_head, a.n_kv_head], a.head_dim
        self.attention_norm, self.mlp_norm = _Norm(block.attention_norm), _Norm(block.mlp_norm)
        self.gain = None  # (heads of queries and keys, D)
        if a.q_norm is not None and a.k_norm is not None:
            norms = ((a.q_norm, a.n_head), (a.k_norm, a.n_kv_head))
            self.gain = torch.cat([norm.weight.detach().expand(n, -1) for norm, n in norms])
        parts = (a.q_proj, a.k_proj, a.v_proj)
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        weight = torch.cat([part.weight.detach() for part in parts])
        self.qkv = product(weight, torch.cat(biases) if biases else None)
        self.out = product_plus(a.o_proj.weight, a.o_proj.bias)
        if isinstance(mlp, GeluMLP):
            self.up = product(mlp.up_proj.weight, mlp.up_proj.bias, gelu=True)
        else:
            assert isinstance(mlp, SwiGluMLP)
            self.up = gated_product(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.down = product_plus(mlp.down_proj.weight, mlp.down_proj.bias)

    def __call__(self, x: Tensor, rotation: Rotation, mask: Tensor) -> Tensor:
        """The block's output from its input, (N, C) both; mask: (B, 1, T, T), 0 or -inf."""
        B, _, T, _ = mask.shape
        projected = self.qkv(self.attention_norm(x)).view(B, T, -1, self.head_dim)
        qk, v = torch.split(projected, [sum(self.heads), self.heads[1]], dim=2)
        if self.gain is not None:
            qk = (qk * inverse_rms(qk, NORM_EPS["qwen3"])).mul_(self.gain)
        if rotation is not None:
            qk = turn(qk, *rotation)
        q, k = torch.split(qk, self.heads, dim=2)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            enable_gqa=self.heads[0] != self.heads[1],
        )  # (B, H, T, D)
        x = self.out(y.transpose(1, 2).reshape(x.shape), x)
        return self.down(self.up(self.mlp_norm(x)), x)
