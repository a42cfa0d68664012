"""A Hugging Face model as one of ours: its config, weights and tokenizer, checked and converted.

The two forms are those that an export has: `GPT2LMHeadModel` (Radford et al. 2019), whose linear
layers are stored transposed, and `Qwen3ForCausalLM` (arXiv:2505.09388). Nothing is guessed: what a
model has and ours cannot be is refused by its name. No pickle is read.

Its files are given by name, wherever each of them is: in a folder, or in the cache of the hub.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from slm.config import GPT2_VOCAB_SIZE, ModelConfig
from slm.errors import CorruptionError, UserError, excerpt, first_invalid, listing
from slm.model.export.hugging_face import GPT2_NAMES, QWEN3_NAMES, hugging_face_weights
from slm.model.gpt import GPT, NORM_EPS
from slm.model.saved import CONFIG, MODEL, describe_model, first_not_finite
from slm.tokens.tokenizer.bpe import END_OF_TEXT, TOKENIZER, Tokenizer, from_spelling, gpt2

IMPORT_VERSION = 1
"""Goes up whenever the same files give another model."""

INDEX = "model.safetensors.index.json"  # of weights in several files
PICKLE = "pytorch_model.bin"
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")
NAMES = (CONFIG, MODEL, INDEX, PICKLE, *VOCABULARIES)  # the files that are looked for

Files = Mapping[str, Path]

# What ours computes: a setting → the values that mean it, and the one of a config that lacks it.
_GPT2: dict[str, tuple[tuple[Any, ...], Any]] = {
    "activation_function": (("gelu_new", "gelu_pytorch_tanh"), "gelu_new"),
    "layer_norm_epsilon": ((NORM_EPS["gpt2"],), NORM_EPS["gpt2"]),
    "scale_attn_weights": ((True,), True),
    "scale_attn_by_inverse_layer_idx": ((False,), False),
    "add_cross_attention": ((False,), False),
    "tie_word_embeddings": ((True,), True),
}
_QWEN3: dict[str, tuple[tuple[Any, ...], Any]] = {
    "hidden_act": (("silu",), "silu"),
    "rms_norm_eps": ((NORM_EPS["qwen3"],), NORM_EPS["qwen3"]),
    "attention_bias": ((False,), False),
    "use_sliding_window": ((False,), False),
    "rope_scaling": ((None,), None),
    "tie_word_embeddings": ((True,), False),
}
_FORMS = {"GPT2LMHeadModel": "gpt2", "Qwen3ForCausalLM": "qwen3"}
_SHAPE = {  # our setting → theirs
    "gpt2": {
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "seq_len": "n_positions",
    },
    "qwen3": {
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_kv_head": "num_key_value_heads",
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "seq_len": "max_position_embeddings",
    },
}
# In older files, and no weights: the causal mask, and the rotary frequencies.
_BUFFERS = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
_HEAD = "lm_head.weight"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FOREIGN = "encoding with another tokenizer than GPT-2's, or one trimmed from it, is not supported"


# ---- the shape --------------------------------------------------------------------------------


def read_shape(files: Files, at: str) -> tuple[ModelConfig, int]:
    """The shape that a `config.json` gives, and the size of its vocabulary.

    `at`: how messages name the model.

    Raises UserError for another form than the two, or what ours cannot compute.
    """
    if CONFIG not in files:
        raise UserError(f"{at} has no {CONFIG}: give the folder of a Hugging Face model")
    fields = _read_json(files[CONFIG], at)
    if "model" in fields and "vocab_size" in fields:
        raise UserError(f"{at} is a model of our own: leave out hf: and give its folder")
    kinds = fields.get("architectures") or [
        {"gpt2": "GPT2LMHeadModel"}.get(str(fields.get("model_type")))
    ]
    architecture = _FORMS.get(str(kinds[0]))
    if architecture is None:
        raise UserError(
            f"{at} is {kinds[0] or fields.get('model_type')}: {' and '.join(_FORMS)} are supported"
        )
    for name, (allowed, default) in (_GPT2 if architecture == "gpt2" else _QWEN3).items():
        if (value := fields.get(name, default)) not in allowed:
            meant = " or ".join(json.dumps(each) for each in allowed)
            raise UserError(f"{at} has {name}={json.dumps(value)}: only {meant} is supported")
    theirs = {**_SHAPE[architecture], "vocab_size": "vocab_size"}
    if wrong := [name for name in theirs.values() if not _is_count(fields.get(name))]:
        stated = ", ".join(f"{name}={json.dumps(fields.get(name))}" for name in wrong)
        raise UserError(f"{at}: its {CONFIG} has {stated}, and needs whole numbers from 1 on")
    shape = {ours: fields[name] for ours, name in theirs.items() if ours != "vocab_size"}
    shape |= _more_of_gpt2(fields) if architecture == "gpt2" else _more_of_qwen3(fields, at)
    try:
        return usual(ModelConfig(architecture=architecture, **shape)), fields["vocab_size"]
    except ValidationError as error:
        raise UserError(f"{at}: its {CONFIG} is not valid: {first_invalid(error)}") from error


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _more_of_gpt2(fields: Mapping[str, Any]) -> dict[str, Any]:
    rates = {fields.get(f"{part}_pdrop", 0.1) for part in ("attn", "embd", "resid")}
    return {"n_inner": fields.get("n_inner"), "dropout": rates.pop() if len(rates) == 1 else 0.0}


def _more_of_qwen3(fields: Mapping[str, Any], at: str) -> dict[str, Any]:
    width = fields["hidden_size"] // fields["num_attention_heads"]
    if fields.get("head_dim") != width:
        raise UserError(
            f"{at} has head_dim={fields.get('head_dim')}: heads of another width than hidden_size "
            f"/ num_attention_heads, {width}, are not supported"
        )
    rotary = fields.get("rope_parameters") or {}
    theta = rotary.get("rope_theta", fields.get("rope_theta"))
    if theta is None or rotary.get("rope_type", "default") != "default":
        raise UserError(
            f"{at} has rope_theta={theta} and rope_type={rotary.get('rope_type')}: only default "
            "rotary positions of a stated rope_theta are supported"
        )
    return {"rope_theta": theta}


def usual(shape: ModelConfig) -> ModelConfig:
    """The same shape with null for what the architecture has anyway, as recipes leave it out."""
    heads = None if shape.n_kv_head == shape.n_head else shape.n_kv_head
    inner = None if shape.n_inner == inner_width(shape, None) else shape.n_inner
    return ModelConfig(**{**shape.model_dump(), "n_kv_head": heads, "n_inner": inner})


def inner_width(shape: ModelConfig, n_inner: int | None) -> int:
    """The hidden width of the MLP that a setting means."""
    with torch.device("meta"):
        block = GPT(shape.model_copy(update={"n_layer": 1, "n_inner": n_inner}), 1)
    return next(p.shape[0] for n, p in block.named_parameters() if n.endswith("up_proj.weight"))


# ---- the vocabulary ---------------------------------------------------------------------------


def read_tokenizer(files: Files, vocab_size: int, at: str, root: Path | None = None) -> Tokenizer:
    """The tokenizer of a model: GPT-2's, or one trimmed from it.

    A model without one that has GPT-2's number of ids has GPT-2's. Raises UserError for any other.
    """
    if not any(name in files for name in VOCABULARIES):
        if vocab_size == GPT2_VOCAB_SIZE:
            return gpt2(root)
        raise UserError(
            f"{at} has {vocab_size:,} ids and no {VOCABULARIES[0]}: give the folder with its "
            f"tokenizer; without one, it is taken to be GPT-2's, of {GPT2_VOCAB_SIZE:,} ids"
        )
    vocabulary, merges = _spelled(files, at)
    tokenizer = _checked(vocabulary, merges, at, root)
    if tokenizer.n_vocab != vocab_size:
        raise UserError(
            f"{at} has vocab_size={vocab_size} and a tokenizer of {tokenizer.n_vocab:,} ids: a "
            "padded vocabulary is not supported"
        )
    return tokenizer


def _spelled(files: Files, at: str) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The ids of all tokens as the files spell them, and the merges in order."""
    if "tokenizer.json" not in files:
        if missing := [name for name in VOCABULARIES[1:] if name not in files]:
            raise UserError(f"{at} has no tokenizer.json, and no {missing[0]}")
        lines = files["merges.txt"].read_text("utf-8").splitlines()
        lines = [line for line in lines if line and not line.startswith("#version")]
        return _read_json(files["vocab.json"], at), [tuple(line.split(" ")) for line in lines]
    fields = _read_json(files["tokenizer.json"], at)
    model, split = fields.get("model") or {}, fields.get("pre_tokenizer") or {}
    is_ours = (
        model.get("type", "BPE") == "BPE"
        and split.get("type") == "ByteLevel"
        and not split.get("add_prefix_space")
        and split.get("use_regex", True)
        and not fields.get("normalizer")
    )
    if not is_ours:
        raise UserError(f"{at} splits text otherwise than GPT-2 does: {_FOREIGN}")
    vocabulary = dict(model.get("vocab") or {})
    vocabulary |= {each["content"]: each["id"] for each in fields.get("added_tokens") or ()}
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return vocabulary, [tuple(pair) for pair in pairs]


def _checked(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], at: str, root: Path | None
) -> Tokenizer:
    """The tokenizer of a vocabulary whose merges are ours; so it encodes every text alike."""
    spellings = sorted(vocabulary, key=vocabulary.__getitem__)
    in_order = [vocabulary[each] for each in spellings] == list(range(len(spellings)))
    if not in_order or not spellings or spellings[-1] != END_OF_TEXT:
        raise UserError(f"{at}: its ids are not a vocabulary with {END_OF_TEXT} last: {_FOREIGN}")
    try:
        tokens = [from_spelling(each) for each in spellings[:-1]]
        if sum(len(token) == 1 for token in tokens) != 256 or len(set(tokens)) != len(tokens):
            raise ValueError("its single bytes are not 256")
        tokenizer = gpt2(root) if len(spellings) == GPT2_VOCAB_SIZE else Tokenizer(tokens)
        expected = [(spellings[a], spellings[b]) for a, b in filter(None, tokenizer.merges)]
    except ValueError as error:
        raise UserError(f"{at}: {error}: {_FOREIGN}") from error
    if tokenizer.tokens != tokens or expected != list(merges):
        raise UserError(f"{at} merges bytes otherwise than GPT-2 does: {_FOREIGN}")
    return tokenizer


# ---- the weights ------------------------------------------------------------------------------


def read_model(files: Files, shape: ModelConfig, vocab_size: int, at: str) -> GPT:
    """The model of a shape with the weights of the files, in float32.

    Every tensor of the files is used, and none is missing. The parity is checked: written back in
    their form, the model has the same tensors.

    Raises UserError naming the first tensors that do not fit, CorruptionError for files that
    cannot be read.
    """
    model = GPT(shape, vocab_size)
    expected = {name: tensor.shape for name, tensor in hugging_face_weights(model).items()}
    theirs = _read_weights(files, shape.architecture, at)
    head = theirs.pop(_HEAD, None)
    missing = [f"{name} {tuple(expected[name])}" for name in expected if name not in theirs]
    others = [f"{name} {_form(theirs[name])}" for name in theirs if name not in expected]
    for kind, names in (("lacks", missing), ("has, besides what such a model has,", others)):
        if names:
            raise UserError(
                f"the weights of {at} do not fit its {CONFIG}: it {kind} {listing(names)}"
            )
    for name, tensor in theirs.items():
        if tensor.shape != expected[name] or tensor.dtype not in _DTYPES:
            raise UserError(
                f"the weights of {at} do not fit its {CONFIG}: {name} is {_form(tensor)}, not "
                f"{tuple(expected[name])} of float32, bfloat16 or float16"
            )
    theirs = {name: tensor.float() for name, tensor in theirs.items()}
    if other := first_not_finite(theirs):
        raise UserError(f"{at}: {other} is not finite")
    model.load_state_dict(our_weights(theirs, model))
    if head is not None and not torch.equal(head.float(), model.embed.weight):
        raise UserError(
            f"{at} has an output layer of its own, {_HEAD}: only one that is tied to the embedding "
            "is supported"
        )
    for name, tensor in hugging_face_weights(model).items():
        if not torch.equal(tensor, theirs[name]):
            raise CorruptionError(f"{at}: {name} is not what was read, once it is written back")
    return model.eval()


def _read_weights(files: Files, architecture: str, at: str) -> dict[str, Tensor]:
    """The tensors of the files by their names in a whole model, without what are no weights."""
    prefix = {"gpt2": "transformer.", "qwen3": "model."}[architecture]
    tensors: dict[str, Tensor] = {}
    for file in weight_files(files, at):
        if file not in files:
            raise UserError(f"{at} has no {file}, which its {INDEX} names")
        try:
            loaded: dict[str, Tensor] = safetensors.torch.load_file(files[file])
        except (OSError, SafetensorError) as error:
            raise CorruptionError(f"{at}: {file} cannot be read: {error}") from error
        for name, tensor in loaded.items():
            if not _BUFFERS.fullmatch(name):
                whole = name if name == _HEAD or name.startswith(prefix) else prefix + name
                tensors[whole] = tensor
    return tensors


def weight_files(files: Files, at: str) -> list[str]:
    """The names of the files with the weights. Raises UserError where there are none."""
    if MODEL in files:
        return [MODEL]
    if INDEX in files:
        names = sorted(set(_read_json(files[INDEX], at).get("weight_map", {}).values()))
        if not names or not all(re.fullmatch(r"\w[\w.-]*", name) for name in names):
            raise UserError(f"{at}: its {INDEX} names no files")
        return names
    if PICKLE in files:
        raise UserError(
            f"{at} has its weights as a pickle, {PICKLE}, which is not read: save it with "
            "safetensors, model.save_pretrained(FOLDER) in transformers"
        )
    raise UserError(f"{at} has no {MODEL}")


def our_weights(theirs: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """Weights by Hugging Face's names → by ours; the inverse of `hugging_face_weights`.

    GPT-2's `c_attn` holds queries, keys and values next to each other: its weight, (C, 3C), is
    turned and cut into three of (C, C).
    """
    gpt2_form = model.config.architecture == "gpt2"
    names = GPT2_NAMES if gpt2_form else QWEN3_NAMES
    weights = {}
    for ours in model.state_dict():
        part = re.search(r"attention\.([qkv])_proj\.", ours) if gpt2_form else None
        name = ours.replace(part[0], "attn.c_attn.") if part else ours
        for old, new in names.items():
            name = name.replace(old, new)
        tensor = theirs[name]
        if gpt2_form and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T
        if part:
            tensor = tensor.chunk(3)["qkv".index(part[1])]
        weights[ours] = tensor.contiguous()
    return weights


def save(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model's files, the same bytes as a checkpoint of it has."""
    safetensors.torch.save_file(model.state_dict(), folder / MODEL)
    text = json.dumps(describe_model(model), indent=1, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text)
    tokenizer.save(folder / TOKENIZER)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _read_json(path: Path, at: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
        if isinstance(fields, dict):
            return fields
        raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptionError(f"{at}: {path.name} cannot be read: {excerpt(str(error))}") from error
