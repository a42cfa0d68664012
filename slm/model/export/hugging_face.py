"""A checkpoint as a Hugging Face folder: config, safetensors, tokenizer, model card.

`transformers` loads it as `GPT2LMHeadModel` or `Qwen3ForCausalLM`, with the same logits; so do
the programs that read its format: vLLM, llama.cpp's converter, Ollama. It holds no pickle.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from slm import storage
from slm.errors import CorruptionError, UserError
from slm.model.gpt import GPT, NORM_EPS
from slm.model.saved import MODEL, load_model
from slm.records import Record
from slm.run_folder import run_of_checkpoint
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer

GPT2_NAMES = {  # ours → theirs, the first that fits
    "embed.": "transformer.wte.",
    "positions.": "transformer.wpe.",
    "final_norm.": "transformer.ln_f.",
    "attention.o_proj.": "attn.c_proj.",
    "mlp.up_proj.": "mlp.c_fc.",
    "mlp.down_proj.": "mlp.c_proj.",
    "attention_norm.": "ln_1.",
    "mlp_norm.": "ln_2.",
    "blocks.": "transformer.h.",
}
QWEN3_NAMES = {
    "embed.": "model.embed_tokens.",
    "final_norm.": "model.norm.",
    "attention.": "self_attn.",
    "attention_norm.": "input_layernorm.",
    "mlp_norm.": "post_attention_layernorm.",
    "blocks.": "model.layers.",
}


def export(checkpoint: Path, target: Path) -> list[str]:
    """Write the model of a checkpoint folder into a new folder; return the names of its files.

    The model card is that of the run's report, where it has one of this checkpoint.

    Raises:
        UserError: `target` exists already, or it cannot be written.
        CorruptionError: the checkpoint's files are not those that its record names.
    """
    if target.exists():
        raise UserError(f"{target} exists already: name a folder that does not")
    model, tokenizer = load_model(checkpoint)
    with _staging(target) as staging:
        safetensors.torch.save_file(
            hugging_face_weights(model), staging / "model.safetensors", {"format": "pt"}
        )
        for name, content in (
            ("config.json", hugging_face_config(model, tokenizer)),
            ("generation_config.json", _ends(tokenizer)),
            ("tokenizer.json", tokenizer.to_hugging_face()),
            ("tokenizer_config.json", _tokenizer_config(model)),
        ):
            (staging / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
        key = storage.sha256_file(checkpoint / MODEL)
        if card := _card(checkpoint, key):
            shutil.copy(card, staging / "README.md")
        return sorted(storage.commit(staging, target, Record(key=key)).files)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, of a unique name; what is left in it is deleted."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent} ({error.strerror}): name another folder"
        ) from error
    with temporary as name:
        staging = Path(name) / target.name  # a temporary folder is closed to all other users
        staging.mkdir()
        yield staging


def _card(checkpoint: Path, weights_sha256: str) -> Path | None:
    """The model card of the run, where it has a sound report of these weights."""
    run = run_of_checkpoint(checkpoint)
    with suppress(CorruptionError):  # a damaged report is no reason to keep a sound model in
        evaluation, report = (run.evaluation, run.report) if run else (None, None)
        if report and evaluation and evaluation.weights_sha256 == weights_sha256:
            return report.path / report.card
    return None


def hugging_face_weights(model: GPT) -> dict[str, Tensor]:
    """The weights by Hugging Face's names, without the output layer, which is the embedding."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    gpt2 = model.config.architecture == "gpt2"
    if gpt2:  # theirs has transposed weights, and one layer for queries, keys and values
        for i in range(model.config.n_layer):
            for kind in ("weight", "bias"):
                parts = [state.pop(f"blocks.{i}.attention.{p}_proj.{kind}") for p in "qkv"]
                state[f"transformer.h.{i}.attn.c_attn.{kind}"] = torch.cat(parts)
        transposed = ("c_attn.weight", "_proj.weight")
        state = {n: t.T if n.endswith(transposed) else t for n, t in state.items()}
    names = GPT2_NAMES if gpt2 else QWEN3_NAMES
    return {_renamed(name, names): tensor.contiguous() for name, tensor in state.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def hugging_face_config(model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `config.json`."""
    c = model.config
    common = {
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_ends(tokenizer),
    }
    width = next(t.shape[0] for n, t in model.named_parameters() if n.endswith("up_proj.weight"))
    if c.architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": c.seq_len,
            "n_embd": c.n_embd,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_inner": width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": NORM_EPS["gpt2"],
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout),
            **common,
        }
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "max_position_embeddings": c.seq_len,
        "hidden_size": c.n_embd,
        "intermediate_size": width,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head or c.n_head,
        "head_dim": c.n_embd // c.n_head,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS["qwen3"],
        "rope_theta": c.rope_theta,  # for versions older than rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        **common,
    }


def _ends(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}


def _tokenizer_config(model: GPT) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": model.config.seq_len,
        "clean_up_tokenization_spaces": False,
    }
