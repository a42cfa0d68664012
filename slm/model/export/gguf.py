"""A model as one GGUF file, for llama.cpp and what is built on it.

The names of tensors and keys, and what they mean, are those of llama.cpp's architectures `gpt2` and
`qwen3`. The file has the vocabulary with it, as tokens and merges with GPT-2's splitting into
words, or another one that is named: readers do not guess it, so any vocabulary is read alike.
End-of-text begins each text, as in training.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor

from slm import extras
from slm.errors import UserError, excerpt
from slm.model.export.hugging_face import inner_width
from slm.model.gpt import GPT, NORM_EPS
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer
from slm.tokens.tokenizer.patterns import PATTERNS

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
CLAIM = "slm."  # begins the keys by which a file names the model that it is
FILE_TYPES: dict[Dtype, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's `ftype`
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens; the last are tokens in any text
QUANTIZATION_VERSION = 2

_NAMES = {  # ours → theirs
    "embed.": "token_embd.",
    "positions.": "position_embd.",
    "final_norm.": "output_norm.",
    "attention_norm.": "attn_norm.",
    "mlp_norm.": "ffn_norm.",
    "attention.q_norm.": "attn_q_norm.",
    "attention.k_norm.": "attn_k_norm.",
    "attention.q_proj.": "attn_q.",
    "attention.k_proj.": "attn_k.",
    "attention.v_proj.": "attn_v.",
    "attention.qkv.": "attn_qkv.",
    "attention.o_proj.": "attn_output.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
    "blocks.": "blk.",
}


def gguf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights in float32 by GGUF's names, (out, in) each.

    The output layer is not among them: where a file has none, readers take the embedding.
    """
    state = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    if model.config.architecture == "gpt2":  # theirs has one layer for queries, keys and values
        for i in range(model.config.n_layer):
            for kind in ("weight", "bias"):
                parts = [state.pop(f"blocks.{i}.attention.{p}_proj.{kind}") for p in "qkv"]
                state[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    return {_renamed(name): tensor.contiguous() for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor takes the file's dtype; norms, biases and positions stay float32."""
    return tensor.dim() == 2 and name != "position_embd.weight"


def gguf_metadata(
    model: GPT, tokenizer: Tokenizer, dtype: Dtype, claim: Mapping[str, str]
) -> dict[str, Any]:
    """The keys of the file, `general.architecture` excepted, in its order.

    Args:
        claim: what the file is made from, by names that get the prefix `slm.`.
    """
    c = model.config
    shape: dict[str, Any] = {
        "context_length": c.seq_len,
        "embedding_length": c.n_embd,
        "block_count": c.n_layer,
        "feed_forward_length": inner_width(model),
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head or c.n_head,
        "vocab_size": model.vocab_size,
    }
    if c.architecture == "gpt2":
        shape["attention.layer_norm_epsilon"] = NORM_EPS["gpt2"]
    else:
        width = c.n_embd // c.n_head
        shape |= {
            "attention.layer_norm_rms_epsilon": NORM_EPS["qwen3"],
            "attention.key_length": width,
            "attention.value_length": width,
            "rope.dimension_count": width,
            "rope.freq_base": float(c.rope_theta),
        }
    special = len(tokenizer.special)
    kinds = [NORMAL] * len(tokenizer.tokens) + [CONTROL] + [USER_DEFINED] * special
    spelled = tokenizer.spelling
    merges = [f"{spelled[left]} {spelled[right]}" for left, right in filter(None, tokenizer.merges)]
    words: dict[str, Any] = {
        "model": "gpt2",
        "pre": tokenizer.pattern.gguf,
        "tokens": [*spelled, END_OF_TEXT, *tokenizer.special],
        "token_type": kinds,
        "merges": merges,
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "padding_token_id": tokenizer.eot,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    general = {
        "general.type": "model",
        "general.name": claim.get("version") or claim.get("run") or "slm",
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return {
        **general,
        **{f"{c.architecture}.{key}": value for key, value in shape.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in words.items() if value != []},
        **{CLAIM + key: value for key, value in claim.items()},
    }


def write_gguf(
    path: Path, model: GPT, tokenizer: Tokenizer, dtype: Dtype, claim: Mapping[str, str]
) -> None:
    """Write the file; the same model, dtype and claim give the same bytes.

    Raises UserError where llama.cpp has no name for how the vocabulary splits text into words.
    """
    extras.require("gguf", "a GGUF file")
    check_pattern(tokenizer)
    import gguf

    writer = gguf.GGUFWriter(path, model.config.architecture)
    for key, value in gguf_metadata(model, tokenizer, dtype, claim).items():
        _add(writer, key, value)
    for name, data, stored in stored_tensors(model, dtype):
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[stored.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_pattern(tokenizer: Tokenizer) -> None:
    """Raises UserError where no reader of GGUF would encode text alike."""
    if not tokenizer.pattern.gguf:
        raise UserError(
            "the vocabulary splits text into words by a pattern that llama.cpp has no name for, "
            f"{excerpt(tokenizer.pattern.regex)}: export to a Hugging Face folder, or train with "
            f"data.tokenizer.pattern one of {', '.join(PATTERNS)}"
        )


def stored_tensors(model: GPT, dtype: Dtype) -> Iterator[tuple[str, npt.NDArray[Any], Dtype]]:
    """Each tensor as a file of a dtype holds it: its name, its data, its own dtype."""
    import gguf

    for name, tensor in gguf_weights(model).items():
        stored: Dtype = dtype if is_matrix(name, tensor) else "f32"
        kind = gguf.GGMLQuantizationType[stored.upper()]
        yield name, gguf.quants.quantize(tensor.numpy(), kind), stored


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that readers expect: whole numbers are unsigned, of 32 bits."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def modelfile(name: str, context: int) -> str:
    """A `Modelfile` for a GGUF file of that name: Ollama's description of a model.

    The prompt goes in as it is: the model continues texts, it does not chat.
    """
    return (
        f"FROM ./{name}\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        f"PARAMETER num_ctx {context}\n"
        "PARAMETER temperature 0.8\n"
        "PARAMETER top_k 50\n"
        "PARAMETER top_p 1\n"
        "PARAMETER repeat_penalty 1\n"
        f'PARAMETER stop "{END_OF_TEXT}"\n'
    )
