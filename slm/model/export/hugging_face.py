"""A checkpoint as a Hugging Face folder: config, safetensors, tokenizer, model card.

`transformers` loads it as `GPT2LMHeadModel` or `Qwen3ForCausalLM`, with the same logits and the
same greedy text. It holds no pickle. llama.cpp reads the GGUF file of `slm.model.export.gguf`; its
own converter knows no trimmed vocabulary.

In training every document began with end-of-text. The tokenizer puts it before every text, as
`slm sample` does, and pads with it on the left.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from slm.errors import CorruptionError
from slm.model.gpt import GPT, NORM_EPS
from slm.run_folder import run_of_checkpoint
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer

WEIGHTS = "model.safetensors"
TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

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

_USAGE = """\
## Use

`slm export RUN FOLDER` writes the model for `transformers`. In training every document began with
end-of-text; the exported tokenizer puts it before every prompt. A text may be as long as the
context, prompt included.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
prompt = tokenizer(PROMPT, return_tensors="pt")
limit = tokenizer.model_max_length
text = model.generate(**prompt, max_length=limit, do_sample=True, temperature=0.8, top_k=50)
print(tokenizer.decode(text[0], skip_special_tokens=True))
```

For lm-evaluation-harness, add `add_bos_token=True` to `--model_args`.
"""


def usage(prompt: str) -> str:
    """The section of a model card on what is exported, with an example that begins so."""
    return _USAGE.replace("PROMPT", json.dumps(prompt, ensure_ascii=False))


def write_hugging_face(folder: Path, model: GPT, tokenizer: Tokenizer, dtype: str = "f32") -> None:
    """Write the files of a model, without its card, into an empty folder.

    The same model and dtype give the same bytes. `dtype`: one of `TORCH_DTYPES`.
    """
    kind = TORCH_DTYPES[dtype]
    weights = {name: tensor.to(kind) for name, tensor in hugging_face_weights(model).items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, {"format": "pt"})
    for name, content in (
        ("config.json", hugging_face_config(model, tokenizer, dtype)),
        ("generation_config.json", _generation_config(model, tokenizer)),
        ("tokenizer.json", _tokenizer(tokenizer)),
        ("tokenizer_config.json", _tokenizer_config(model)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def model_card(checkpoint: Path, weights_sha256: str) -> Path | None:
    """The model card of the run, where it has a sound report of these weights."""
    run = run_of_checkpoint(checkpoint)
    with suppress(CorruptionError):  # a damaged report is no reason to keep a sound model in
        evaluation, report = (run.evaluation, run.report) if run else (None, None)
        if report and evaluation and evaluation.weights_sha256 == weights_sha256:
            return report.path / report.card
    return None


def with_usage(card: bytes) -> bytes:
    """A model card with the present `usage`: that of an older report may be for another export."""
    before, use, after = card.rpartition(b"\n## Use\n")
    former, limits, rest = after.partition(b"\n## Limits\n")
    if not (use and limits):
        return card
    example = re.search(rb'tokenizer\(("(?:[^"\\]|\\.)*")', former)
    prompt = json.loads(example[1]).removeprefix(END_OF_TEXT) if example else ""
    return before + b"\n" + usage(prompt).encode() + limits + rest


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


def inner_width(model: GPT) -> int:
    """The hidden width of the MLP."""
    return next(t.shape[0] for n, t in model.named_parameters() if n.endswith("up_proj.weight"))


def hugging_face_config(model: GPT, tokenizer: Tokenizer, dtype: str = "f32") -> dict[str, Any]:
    """The content of `config.json`."""
    c = model.config
    common = {
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": True,
        "dtype": str(TORCH_DTYPES[dtype]).removeprefix("torch."),
        **_ends(tokenizer),
    }
    width = inner_width(model)
    if c.architecture == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": c.seq_len,
            "n_ctx": c.seq_len,  # the same by its older name
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


def _generation_config(model: GPT, tokenizer: Tokenizer) -> dict[str, int]:
    """The content of `generation_config.json`.

    The pad token is not in `config.json`: Qwen3 would not train the embedding of end-of-text. GPT-2
    has no position beyond its context, where a `pipeline` without a limit would fail.
    """
    limit = {"max_length": model.config.seq_len} if model.positions is not None else {}
    return {**_ends(tokenizer), "pad_token_id": tokenizer.eot, **limit}


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`, which puts end-of-text before each text."""
    begin = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [begin, {"Sequence": {"id": "B", "type_id": 0}}]
    special = {"id": END_OF_TEXT, "ids": [tokenizer.eot], "tokens": [END_OF_TEXT]}
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": {END_OF_TEXT: special},
    }
    return {**tokenizer.to_hugging_face(), "post_processor": template}


def _tokenizer_config(model: GPT) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "add_bos_token": True,  # for readers that do not look into tokenizer.json
        "model_max_length": model.config.seq_len,
        "clean_up_tokenization_spaces": False,
    }
