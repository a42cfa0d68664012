"""Hugging Face models as ours: the same tensors, the same logits, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_model import BYTES, tiny_model

from slm.errors import CorruptionError, UserError
from slm.model import pretrained
from slm.model.export.hugging_face import hugging_face_weights
from slm.model.gpt import GPT
from slm.model.saved import CONFIG, MODEL, load_model
from slm.registry.exporting import export
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2

Fields = dict[str, Any]
SHAPES: dict[str, Fields] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "gpt2, inner": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "n_inner": 24},
    "qwen3": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen3, grouped": {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders that `transformers` wrote, of random weights and the vocabulary of bytes."""
    return lambda name, tokenizer=BYTES, **fields: random_folder(
        tmp_path / "theirs", name, tokenizer, fields
    )


def random_folder(path: Path, name: str, tokenizer: Tokenizer | None, fields: Fields) -> Path:
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 256, "eos_token_id": 256}
    common = {"vocab_size": tokenizer.n_vocab if tokenizer else 257, **ends, **SHAPES[name]}
    torch.manual_seed(3)
    if name.startswith("gpt2"):
        config = transformers.GPT2Config(**{**common, **fields})
        model = transformers.GPT2LMHeadModel(config)
    else:
        shape = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 40}
        shape |= {"max_position_embeddings": 32, "tie_word_embeddings": True}
        config = transformers.Qwen3Config(**{**shape, **common, **fields})
        model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    if tokenizer:
        tokenizer.save_hugging_face(path / "tokenizer.json")
    return path


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def read(folder: Path) -> tuple[GPT, Tokenizer]:
    shape, size = pretrained.read_shape(files(folder), "it")
    tokenizer = pretrained.read_tokenizer(files(folder), size, "it")
    return pretrained.read_model(files(folder), shape, size, "it"), tokenizer


@pytest.mark.parametrize("name", SHAPES)
def test_a_random_model_is_imported_and_exported_to_the_same_bits(
    name: str, folder: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = folder(name)
    model, tokenizer = read(theirs)
    assert tokenizer.tokens == BYTES.tokens
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    pretrained.save(model, tokenizer, checkpoint)
    export(checkpoint, tmp_path / "out")
    before, after = (safetensors.torch.load_file(f / MODEL) for f in (theirs, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert tensor.numpy().tobytes() == after[key].numpy().tobytes(), key
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(0, 257, (2, 20))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()(ids).logits
        torch.testing.assert_close(model.logits(model(ids)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_an_export_is_imported_to_the_bytes_of_its_checkpoint(
    architecture: str, tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    for each in (first, again):
        each.mkdir()
    ours = tiny_model(architecture)
    if architecture == "qwen3":  # whose form has no place for it
        ours.config = ours.config.model_copy(update={"dropout": 0.0})
    pretrained.save(ours, BYTES, first)
    export(first, tmp_path / "out")
    model, tokenizer = read(tmp_path / "out")
    pretrained.save(model, tokenizer, again)
    for name in (MODEL, CONFIG, TOKENIZER):
        assert (again / name).read_bytes() == (first / name).read_bytes(), name
    assert load_model(again).model.config == ours.config


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a folder."""
    tensors = safetensors.torch.load_file(folder / MODEL)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / MODEL, {"format": "pt"})


def test_the_forms_in_which_gpt2_itself_is_stored(folder: Callable[..., Path]) -> None:
    """Without the prefix, with the mask as a buffer, in half precision, in several files."""
    theirs = folder("gpt2")
    weights = hugging_face_weights(read(theirs)[0])

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    rewrite(theirs, older)
    same = hugging_face_weights(read(theirs)[0])
    assert all(torch.equal(same[name], weights[name]) for name in weights)

    tensors = safetensors.torch.load_file(theirs / MODEL)
    names = sorted(tensors)
    parts = {"a-1.safetensors": names[::2], "b-2.safetensors": names[1::2]}
    for file, held in parts.items():
        half = {name: tensors[name].bfloat16() for name in held}
        safetensors.torch.save_file(half, theirs / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (theirs / pretrained.INDEX).write_text(json.dumps(index))
    (theirs / MODEL).unlink()
    halves = hugging_face_weights(read(theirs)[0])
    assert all(torch.equal(halves[name], weights[name].bfloat16().float()) for name in weights)


def test_a_vocabulary_in_the_older_files(folder: Callable[..., Path]) -> None:
    theirs = folder("gpt2")
    model = json.loads((theirs / "tokenizer.json").read_text())["model"]
    (theirs / "tokenizer.json").unlink()
    (theirs / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (theirs / "merges.txt").write_text("\n".join(lines) + "\n")
    assert read(theirs)[1].tokens == BYTES.tokens


def test_gpt2_own_vocabulary(tmp_path: Path) -> None:
    tokenizer = gpt2(tmp_path)
    assert pretrained.read_tokenizer({}, 50_257, "it", tmp_path).tokens == tokenizer.tokens
    path = tmp_path / "tokenizer.json"
    tokenizer.save_hugging_face(path)
    given = pretrained.read_tokenizer({path.name: path}, 50_257, "it", tmp_path)
    assert given.tokens == tokenizer.tokens
    changed = json.loads(path.read_text())
    merges = changed["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="merges bytes otherwise than GPT-2"):
        pretrained.read_tokenizer({path.name: path}, 50_257, "it", tmp_path)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "gpt2",
            {"activation_function": "relu"},
            'has activation_function="relu": only "gelu_new"',
        ),
        ("gpt2", {"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon=1e-06: only 1e-05"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true"),
        ("gpt2", {"n_layer": "2"}, 'has n_layer="2", and needs whole numbers'),
        ("gpt2", {"n_head": 0}, "has n_head=0, and needs whole numbers"),
        ("gpt2", {"n_head": 3}, r"model\.n_embd=16 is not a multiple of model\.n_head=3"),
        ("gpt2", {"architectures": ["LlamaForCausalLM"]}, "is LlamaForCausalLM: GPT2LMHeadModel"),
        ("gpt2", {"vocab_size": 300}, "has vocab_size=300 and a tokenizer of 257 ids"),
        ("qwen3", {"head_dim": 16}, "has head_dim=16: heads of another width than .*, 8,"),
        ("qwen3", {"tie_word_embeddings": False}, "has tie_word_embeddings=false: only true"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type=yarn"),
        ("qwen3", {"rope_parameters": None}, "rope_theta=None"),
        ("qwen3", {"max_position_embeddings": None}, "max_position_embeddings=null"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=true: only false"),
    ],
)
def test_what_ours_cannot_be_is_named(
    name: str, fields: Fields, message: str, folder: Callable[..., Path]
) -> None:
    theirs = folder(name)
    config = json.loads((theirs / CONFIG).read_text())
    (theirs / CONFIG).write_text(json.dumps({**config, **fields}))
    with pytest.raises(UserError, match=message):
        read(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.h.1.ln_1.bias"), r"it lacks transformer\.h\.1\.ln_1\.bias"),
        (
            lambda t: t.update(extra=torch.ones(2)),
            r"besides .* transformer\.extra \(2,\) of float32",
        ),
        (
            lambda t: t.update({"transformer.wpe.weight": torch.ones(3, 16)}),
            r"transformer\.wpe\.weight is \(3, 16\) of float32, not \(32, 16\)",
        ),
        (
            lambda t: t.update({"transformer.wpe.weight": torch.ones(32, 16).double()}),
            r"is \(32, 16\) of float64, not",
        ),
        (lambda t: t["transformer.ln_f.bias"].fill_(float("nan")), "ln_f.bias is not finite"),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(257, 16)}),
            "an output layer of its own, lm_head.weight",
        ),
    ],
)
def test_every_tensor_is_used_and_none_is_missing(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, folder: Callable[..., Path]
) -> None:
    theirs = folder("gpt2")
    rewrite(theirs, change)
    with pytest.raises(UserError, match=message):
        read(theirs)


def test_files_that_are_not_weights(folder: Callable[..., Path]) -> None:
    theirs = folder("gpt2")
    (theirs / MODEL).write_bytes(b"x" * 99)
    with pytest.raises(CorruptionError, match=r"model\.safetensors cannot be read"):
        read(theirs)
    (theirs / MODEL).rename(theirs / pretrained.PICKLE)
    with pytest.raises(UserError, match=r"as a pickle, pytorch_model\.bin, which is not read"):
        pretrained.weight_files(files(theirs), "it")
    for names in ({}, {"a": "../../elsewhere"}):
        (theirs / pretrained.INDEX).write_text(json.dumps({"weight_map": names}))
        with pytest.raises(UserError, match="names no files"):
            pretrained.weight_files(files(theirs), "it")
    (theirs / CONFIG).write_text("[")
    with pytest.raises(CorruptionError, match=r"config\.json cannot be read"):
        read(theirs)


def foreign(fields: Fields) -> None:
    fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": []}


def two_ends(fields: Fields) -> None:
    fields["added_tokens"].append({"id": 257, "content": "<|im_end|>"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (foreign, "splits text otherwise than GPT-2"),
        (two_ends, r"with <\|endoftext\|> last"),
        (lambda f: f["model"]["vocab"].pop("a"), r"with <\|endoftext\|> last"),
        (lambda f: f["model"].update(type="Unigram"), "splits text otherwise"),
        (lambda f: f.update(normalizer={"type": "NFC"}), "splits text otherwise"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    change: Callable[[Fields], None], message: str, folder: Callable[..., Path]
) -> None:
    theirs = folder("gpt2")
    fields = json.loads((theirs / "tokenizer.json").read_text())
    change(fields)
    (theirs / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as refusal:
        read(theirs)
    assert "is not supported" in str(refusal.value)


def test_a_model_without_its_tokenizer_is_refused(folder: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"has 257 ids and no tokenizer\.json"):
        read(folder("gpt2", tokenizer=None))
