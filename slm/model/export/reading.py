"""An exported model read back, and run by what its file says alone: none of our model's code.

So a mistake in an export cannot cancel out with the same mistake in a reader. The computation is
written from what other programs do with these formats: the architectures `gpt2` and `qwen3` of
`transformers` and llama.cpp.

Shapes: B rows, T positions, C width, H heads of width D, V tokens.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm import extras
from slm.errors import UserError
from slm.tokens.tokenizer.patterns import PATTERNS

# GPT-2's splitting of text into words (its encoder.py), which both formats have a name for.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Exported:
    """What a file holds: weights by GGUF's names, (out, in) each, the shape, the vocabulary."""

    architecture: str
    weights: dict[str, Tensor]
    stored: dict[str, str]  # how the file holds each of them: f32, f16, bf16, q8_0
    n_layer: int
    n_head: int
    n_kv_head: int
    norm_eps: float
    rope_theta: float
    context: int
    tokens: list[str]  # spelled by GPT-2's visible characters; end-of-text is one of them
    merges: list[tuple[str, str]]
    end_of_text: int
    words: str = _WORDS  # the pattern that splits text into words
    anywhere: tuple[str, ...] = ()  # tokens that a text has wherever it spells them
    facts: dict[str, Any] = field(default_factory=dict)  # every other key of the file

    # ---- the model ----

    def logits(self, ids: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, T) token ids → (B, T, V), in float32.

        `weights`: others in place of the file's, by the same names.
        """
        w = self.weights if weights is None else weights
        embedding = w["token_embd.weight"]
        x = F.embedding(ids, embedding)  # (B, T, C)
        if "position_embd.weight" in w:
            x = x + w["position_embd.weight"][: ids.shape[1]]
        for i in range(self.n_layer):
            part = {
                name.removeprefix(f"blk.{i}."): tensor
                for name, tensor in w.items()
                if name.startswith(f"blk.{i}.")
            }
            x = x + self._attention(self._norm(x, part, "attn_norm"), part)
            x = x + self._mlp(self._norm(x, part, "ffn_norm"), part)
        x = self._norm(x, w, "output_norm")
        return F.linear(x, w.get("output.weight", embedding))

    def _norm(self, x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
        weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
        if self.architecture == "gpt2":
            return F.layer_norm(x, weight.shape, weight, bias, self.norm_eps)
        return x * (x.square().mean(-1, keepdim=True) + self.norm_eps).rsqrt() * weight

    def _attention(self, x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        B, T, _ = x.shape
        if "attn_qkv.weight" in w:
            parts = F.linear(x, w["attn_qkv.weight"], w["attn_qkv.bias"]).chunk(3, dim=-1)
        else:
            parts = tuple(F.linear(x, w[f"attn_{p}.weight"]) for p in "qkv")
        counts = (self.n_head, self.n_kv_head, self.n_kv_head)
        q, k, v = (
            part.view(B, T, heads, -1).transpose(1, 2)  # (B, H, T, D)
            for part, heads in zip(parts, counts, strict=True)
        )
        if "attn_q_norm.weight" in w:
            q, k = self._norm(q, w, "attn_q_norm"), self._norm(k, w, "attn_k_norm")
            q, k = self._turned(q), self._turned(k)
        k, v = (each.repeat_interleave(self.n_head // self.n_kv_head, dim=1) for each in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(B, T, -1)
        return F.linear(y, w["attn_output.weight"], w.get("attn_output.bias"))

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary positions on the pairs (i, i + D/2) of x, (B, H, T, D)."""
        half = x.shape[-1] // 2
        frequencies = self.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies  # (T, D/2)
        cos, sin = angles.cos().float(), angles.sin().float()
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _mlp(self, x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        inner = F.linear(x, w["ffn_up.weight"], w.get("ffn_up.bias"))
        if "ffn_gate.weight" in w:
            inner = F.silu(F.linear(x, w["ffn_gate.weight"])) * inner
        else:
            inner = F.gelu(inner, approximate="tanh")
        return F.linear(inner, w["ffn_down.weight"], w.get("ffn_down.bias"))

    # ---- the vocabulary ----

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts, by the tokens and merges, each once through: what a reader does."""
        import regex  # type: ignore[import-untyped]  # tiktoken brings it

        words = regex.compile(self.words)
        ids = {token: i for i, token in enumerate(self.tokens)}
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        characters = byte_characters()
        known: dict[str, list[int]] = {}
        encoded = []
        for text in texts:
            row = list[int]()
            for part in self._parts(text):
                if part in self.anywhere:
                    row.append(ids[part])
                    continue
                for word in words.findall(part):
                    if word not in known:
                        spelled = [characters[byte] for byte in word.encode()]
                        known[word] = [ids[merged] for merged in _merged(spelled, ranks)]
                    row += known[word]
            encoded.append(row)
        return encoded

    def _parts(self, text: str) -> list[str]:
        """The text cut around the tokens of `anywhere`."""
        if not self.anywhere:
            return [text]
        return re.split(f"({'|'.join(map(re.escape, self.anywhere))})", text)


def _merged(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts after all merges: always the first of the pairs with the lowest rank."""
    last = len(ranks)
    while len(parts) > 1:
        pairs = [ranks.get(pair, last) for pair in pairwise(parts)]
        lowest = min(pairs)
        if lowest == last:
            break
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_characters() -> list[str]:
    """The visible character of each byte, by the rule of GPT-2's encoder.py."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


# By llama.cpp's names.
_NAMED = {pattern.gguf: pattern.regex for pattern in PATTERNS.values()} | {"gpt-2": _WORDS}
_USER_DEFINED = 4

# ---- GGUF ---------------------------------------------------------------------------------------


def read_gguf(path: Path) -> Exported:
    """The model of a GGUF file, its weights in float32.

    Raises UserError for a file that is none, or of an architecture that is not ours.
    """
    extras.require("gguf", "a GGUF file")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is no GGUF file that can be read: {error}") from error
    keys = {key: each.contents() for key, each in reader.fields.items()}
    kind = str(keys.get("general.architecture"))
    if kind not in ("gpt2", "qwen3"):
        raise UserError(f"{path} is of the architecture {kind}: slm exports gpt2 and qwen3")

    def weight(tensor: Any) -> Tensor:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(values.copy()).view(*map(int, reversed(tensor.shape)))

    eps = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    try:
        return Exported(
            architecture=kind,
            weights={tensor.name: weight(tensor) for tensor in reader.tensors},
            stored={t.name: t.tensor_type.name.lower() for t in reader.tensors},
            n_layer=keys[f"{kind}.block_count"],
            n_head=keys[f"{kind}.attention.head_count"],
            n_kv_head=keys[f"{kind}.attention.head_count_kv"],
            norm_eps=keys[f"{kind}.attention.{eps}"],
            rope_theta=keys.get(f"{kind}.rope.freq_base", math.nan),
            context=keys[f"{kind}.context_length"],
            tokens=keys["tokenizer.ggml.tokens"],
            merges=[_pair(merge) for merge in keys.get("tokenizer.ggml.merges", [])],
            end_of_text=keys["tokenizer.ggml.eos_token_id"],
            words=_NAMED[keys["tokenizer.ggml.pre"]],
            anywhere=tuple(
                token
                for token, is_a in zip(
                    keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True
                )
                if is_a == _USER_DEFINED
            ),
            facts={key: value for key, value in keys.items() if not key.startswith("GGUF.")},
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}: it was not written by slm") from error


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


# ---- Hugging Face -------------------------------------------------------------------------------

_FROM_GPT2 = {
    r"transformer\.wte\.": "token_embd.",
    r"transformer\.wpe\.": "position_embd.",
    r"transformer\.ln_f\.": "output_norm.",
    r"transformer\.h\.(\d+)\.": r"blk.\1.",
    r"\.attn\.c_attn\.": ".attn_qkv.",
    r"\.attn\.c_proj\.": ".attn_output.",
    r"\.mlp\.c_fc\.": ".ffn_up.",
    r"\.mlp\.c_proj\.": ".ffn_down.",
    r"\.ln_1\.": ".attn_norm.",
    r"\.ln_2\.": ".ffn_norm.",
}
_FROM_QWEN3 = {
    r"model\.embed_tokens\.": "token_embd.",
    r"model\.norm\.": "output_norm.",
    r"model\.layers\.(\d+)\.": r"blk.\1.",
    r"\.self_attn\.([qkv])_proj\.": r".attn_\1.",
    r"\.self_attn\.([qk])_norm\.": r".attn_\1_norm.",
    r"\.self_attn\.o_proj\.": ".attn_output.",
    r"\.mlp\.(gate|up|down)_proj\.": r".ffn_\1.",
    r"\.input_layernorm\.": ".attn_norm.",
    r"\.post_attention_layernorm\.": ".ffn_norm.",
    r"lm_head\.": "output.",
}


def read_hugging_face(folder: Path) -> Exported:
    """The model of a Hugging Face folder, its weights in float32.

    Raises UserError for a folder that is none, or of a form that is not ours.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        config = json.loads((folder / "config.json").read_bytes())
        vocabulary = json.loads((folder / "tokenizer.json").read_bytes())
        tokenizer = vocabulary["model"]
        splits = vocabulary["pre_tokenizer"]
        added = [each["content"] for each in vocabulary["added_tokens"] if not each["special"]]
        state = safetensors.torch.load_file(folder / "model.safetensors")
        kind = config["model_type"]
        if kind not in ("gpt2", "qwen3"):
            raise UserError(f"{folder} is of the form {kind}: slm exports gpt2 and qwen3")
        gpt2 = kind == "gpt2"
        spelled = sorted(tokenizer["vocab"].items(), key=lambda item: item[1])
        heads = config["n_head" if gpt2 else "num_attention_heads"]
        return Exported(
            architecture=kind,
            weights={
                _read_name(name, gpt2): _read_weight(name, tensor.float(), gpt2)
                for name, tensor in state.items()
            },
            stored={
                _read_name(name, gpt2): _DTYPES.get(tensor.dtype, str(tensor.dtype))
                for name, tensor in state.items()
            },
            n_layer=config["n_layer" if gpt2 else "num_hidden_layers"],
            n_head=heads,
            n_kv_head=heads if gpt2 else config["num_key_value_heads"],
            norm_eps=config["layer_norm_epsilon" if gpt2 else "rms_norm_eps"],
            rope_theta=math.nan if gpt2 else config["rope_parameters"]["rope_theta"],
            context=config["n_positions" if gpt2 else "max_position_embeddings"],
            tokens=[token for token, _ in spelled],
            merges=[tuple(pair) for pair in tokenizer["merges"]],
            end_of_text=config["eos_token_id"],
            words=_WORDS
            if splits["type"] == "ByteLevel"
            else splits["pretokenizers"][0]["pattern"]["Regex"],
            anywhere=tuple(added),
            facts=config,
        )
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no model in Hugging Face's form: {error}") from error


_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def _read_name(name: str, gpt2: bool) -> str:
    for pattern, ours in (_FROM_GPT2 if gpt2 else _FROM_QWEN3).items():
        name = re.sub(pattern, ours, name)
    return name


def _read_weight(name: str, tensor: Tensor, gpt2: bool) -> Tensor:
    """GPT-2's form has the weights of its layers, but not its embeddings, transposed."""
    return tensor.T if gpt2 and tensor.dim() == 2 and ".h." in name else tensor
