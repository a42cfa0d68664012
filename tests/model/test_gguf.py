"""A GGUF file: read back it is the model; what is not the model is refused, and leaves nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import save
from tiny_model import BYTES, SEQ_LEN, tiny_model

import slm
from slm.config import ModelConfig
from slm.errors import SlmError, UserError
from slm.model.export import gguf as writing
from slm.model.export.gguf import write_gguf
from slm.model.export.hugging_face import write_hugging_face
from slm.model.export.parity import ODD_TEXTS, Parity, ParityError, check_parity
from slm.model.export.readers import check_readable, limits
from slm.model.export.reading import Exported, read_gguf, read_hugging_face
from slm.model.gpt import GPT
from slm.source.stories import stories
from slm.storage import sha256_file
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.tokens.tokenizer.trimming import trim_vocabulary

pytest.importorskip("gguf")

STORIES = list(stories(7, 0, 6))
BYTE_DOCUMENTS = [np.array(BYTES.encode(text)) for text in STORIES]


def uneven(architecture: str) -> GPT:
    """A random model of which no norm is one and no bias zero."""
    model = tiny_model(architecture, scale=2.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def trimmed() -> Tokenizer:
    """The 400 most frequent ids of GPT-2's in a few stories."""
    base = gpt2()
    ids = np.concatenate([base.encode(text) for text in STORIES])
    return trim_vocabulary(base, np.bincount(ids, minlength=base.n_vocab), 400)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_what_is_read_back_is_the_model(architecture: str, dtype: Any, tmp_path: Path) -> None:
    model = uneven(architecture)
    write_gguf(tmp_path / "a.gguf", model, BYTES, dtype, {"run": "r"})
    exported = read_gguf(tmp_path / "a.gguf")
    parity = check_parity(model, BYTES, exported, dtype, BYTE_DOCUMENTS)
    assert parity.max_logit_difference < 1e-5
    assert parity.greedy_tokens >= 64
    if dtype == "f32":
        assert parity.greedy_same == parity.greedy_tokens
        assert parity.bpb_change == pytest.approx(0, abs=1e-6)
    else:
        assert parity.exported_bpb != parity.val_bpb
    assert exported.facts["slm.run"] == "r"
    assert exported.facts["tokenizer.ggml.pre"] == "gpt-2"
    assert exported.context == SEQ_LEN


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_gguf(tmp_path / name, uneven("gpt2"), BYTES, "f32", {"run": "r"})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_a_trimmed_vocabulary_encodes_alike(form: str, trimmed: Tokenizer, tmp_path: Path) -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, seq_len=32), trimmed.n_vocab).eval()
    if form == "gguf":
        write_gguf(tmp_path / "a.gguf", model, trimmed, "f32", {})
        exported = read_gguf(tmp_path / "a.gguf")
    else:
        write_hugging_face(tmp_path, model, trimmed)
        exported = read_hugging_face(tmp_path)
    texts = [*STORIES, *ODD_TEXTS]
    assert exported.encode(texts) == [trimmed.encode(text) for text in texts]
    assert len(exported.merges) == 400 - 256 - 1


def damaged(exported: Exported, damage: str) -> Exported:
    """An export with one mistake of those that are easily made."""
    weights, shape = dict(exported.weights), exported.weights["blk.0.attn_qkv.weight"].shape
    if damage == "transposed":
        weights["blk.1.attn_output.weight"] = weights["blk.1.attn_output.weight"].T
    elif damage == "queries, keys and values interleaved":
        by_head = weights["blk.0.attn_qkv.weight"].view(3, 4, -1, shape[1])
        weights["blk.0.attn_qkv.weight"] = by_head.transpose(0, 1).reshape(shape)
    elif damage == "a weight is missing":
        del weights["blk.1.ffn_up.bias"]
    elif damage == "an output layer of its own":
        weights["output.weight"] = weights["token_embd.weight"]
    elif damage == "another norm":
        return dataclasses.replace(exported, norm_eps=1e-3)
    elif damage == "other heads":
        return dataclasses.replace(exported, n_head=2, n_kv_head=2)
    elif damage == "no end of text":
        return dataclasses.replace(exported, end_of_text=0)
    elif damage == "a token is another":
        return dataclasses.replace(exported, tokens=["?", *exported.tokens[1:]])
    elif damage == "a merge too many":
        return dataclasses.replace(exported, merges=[("a", "a")], tokens=exported.tokens)
    elif damage == "rounded":
        weights = {name: tensor.half().float() for name, tensor in weights.items()}
    return dataclasses.replace(exported, weights=weights)


@pytest.mark.parametrize(
    "damage",
    [
        "transposed",
        "queries, keys and values interleaved",
        "a weight is missing",
        "an output layer of its own",
        "another norm",
        "other heads",
        "no end of text",
        "a token is another",
        "a merge too many",
        "rounded",
    ],
)
def test_what_is_not_the_model_is_refused(damage: str, tmp_path: Path) -> None:
    model = uneven("gpt2")
    write_gguf(tmp_path / "a.gguf", model, BYTES, "f32", {})
    exported = read_gguf(tmp_path / "a.gguf")
    check_parity(model, BYTES, exported, "f32", BYTE_DOCUMENTS[:1])
    with pytest.raises((ParityError, KeyError)):
        check_parity(model, BYTES, damaged(exported, damage), "f32", BYTE_DOCUMENTS[:1])


@pytest.mark.parametrize(
    ("name", "value"), [("rope_theta", 500.0), ("n_layer", 1), ("n_kv_head", 4), ("context", 99)]
)
def test_a_key_that_is_not_the_models_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    model = uneven("qwen3")
    write_gguf(tmp_path / "a.gguf", model, BYTES, "f32", {})
    exported = dataclasses.replace(read_gguf(tmp_path / "a.gguf"), **{name: value})
    with pytest.raises(ParityError, match=name):
        check_parity(model, BYTES, exported, "f32", BYTE_DOCUMENTS[:1])


def test_rounding_that_costs_too_much_is_refused(tmp_path: Path) -> None:
    """One large number in a row leaves the others hardly any of eight bits."""
    model = uneven("qwen3")
    with torch.no_grad():
        model.embed.weight[:, 0] = 100
        model.final_norm.weight.mul_(100)
        model.final_norm.weight[0] = 0
    write_gguf(tmp_path / "a.gguf", model, BYTES, "q8_0", {})
    with pytest.raises(ParityError, match=r"q8_0 changes the bits per byte .* --dtype f32"):
        check_parity(model, BYTES, read_gguf(tmp_path / "a.gguf"), "q8_0", BYTE_DOCUMENTS)


# ---- slm.export ---------------------------------------------------------------------------------


def test_the_file_has_a_modelfile_and_its_parity_next_to_it(tmp_path: Path) -> None:
    checkpoint = save(uneven("qwen3"), tmp_path / "run" / "checkpoints" / "step_000001")
    record = slm.export(checkpoint, tmp_path / "out" / "a.gguf")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"a.gguf", "a.gguf.json", "Modelfile"}
    noted = json.loads((out / "a.gguf.json").read_text())
    assert noted["files"]["a.gguf"]["sha256"] == sha256_file(out / "a.gguf")
    assert noted["parity"] == record.parity
    parity = Parity.model_validate(record.parity)
    assert parity.greedy_same == parity.greedy_tokens
    assert "identical" in parity.summary
    modelfile = (out / "Modelfile").read_text()
    assert "FROM ./a.gguf\n" in modelfile
    assert f"PARAMETER num_ctx {SEQ_LEN}\n" in modelfile
    slm.export(checkpoint, out / "b.gguf", dtype="q8_0")
    assert (out / "Modelfile").read_text() == modelfile
    assert "FROM ./b.gguf\n" in (out / "b.Modelfile").read_text()


def test_where_it_is_not_the_model_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(uneven("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    other = tiny_model("gpt2", seed=3)
    monkeypatch.setattr(
        writing, "write_gguf", lambda path, _, *rest: write_gguf(path, other, *rest)
    )
    with pytest.raises(SlmError, match="is not ours"):
        slm.export(checkpoint, tmp_path / "out" / "a.gguf")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("a.gguf", {"to": "hf"}, "name a folder"),
        ("a", {"to": "gguf"}, "name a file, such as a.gguf"),
        ("a", {"dtype": "q8_0"}, "of hf give f32, f16, bf16"),
        ("a.gguf", {"dtype": "int4"}, "of gguf give f32, f16, bf16, q8_0"),
        ("a", {"to": "onnx"}, "give hf or gguf"),
        ("a", {"push": "nobody"}, "write ORG/NAME"),
        ("there.gguf", {}, "exists already: name a file"),
    ],
)
def test_what_means_nothing_is_refused(
    target: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = save(uneven("gpt2"), tmp_path / "checkpoint")
    (tmp_path / "there.gguf").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        slm.export(checkpoint, tmp_path / target, **settings)
    assert sorted(tmp_path.iterdir()) == before


# ---- shapes -------------------------------------------------------------------------------------


def test_shapes_that_a_reader_does_not_take_are_named(tmp_path: Path) -> None:
    usual = ModelConfig(architecture="qwen3", n_head=4, n_embd=256)
    assert limits(usual) == []
    for width in (20, 24, 33 * 2, 264):
        narrow = ModelConfig(architecture="qwen3", n_head=1, n_embd=width)
        assert any("vLLM" in line for line in limits(narrow)) == (width != 64)
    odd = ModelConfig(n_head=1, n_embd=48)
    check_readable(odd, "gguf", "f32")
    with pytest.raises(UserError, match=r"n_embd=48: .* no multiple"):
        check_readable(odd, "gguf", "q8_0")
    with pytest.raises(UserError, match="n_inner=100"):
        check_readable(ModelConfig(n_head=1, n_embd=64, n_inner=100), "gguf", "q8_0")
    deep = ModelConfig(n_head=1, n_embd=64, n_layer=513)
    with pytest.raises(UserError, match="up to 512 layers"):
        check_readable(deep, "gguf", "f32")
    check_readable(deep, "hf", "f32")
