"""Vocabularies of one's own: trained on train alone, or given; and what follows from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slm
from slm import keys
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.recipes import load_recipe
from slm.records import Shards, Source, Vocabulary
from slm.run_folder import DataRoot
from slm.source.download import download
from slm.tokens.encode import encode_key
from slm.tokens.shards.reading import read_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2
from slm.tokens.tokenizer.patterns import PATTERNS
from slm.tokens.tokenizer.training import train_bpe
from slm.tokens.vocabulary import make_tokenizer

TRAINED = {"data.tokenizer.train": "bpe", "data.tokenizer.vocab_size": 330}
LANGUAGES = ("Merhaba dünya, bu güzel bir gün.", "हिन्दी में लिखा हुआ पाठ", "Привет, мир! 1234")

trains = pytest.mark.skipif(
    not slm.extras.is_installed("rustbpe"), reason="the extra tokenizer is not installed"
)


def of(data_root: Path, texts: list[str], **settings: Any) -> tuple[PipelineConfig, Source]:
    """A config and the source of some documents, one a line."""
    file = data_root.parent / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    changes = {
        "data.path": str(file),
        **{name.replace("__", "."): v for name, v in settings.items()},
    }
    config = load_recipe("files", changes)
    return config, download(config)


@pytest.fixture
def texts() -> list[str]:
    return [f"{text} {i} {i * 37 % 101}" for i in range(40) for text in LANGUAGES]


@trains
def test_the_vocabulary_is_that_of_train_alone(data_root: Path, texts: list[str]) -> None:
    """What only held-out documents have is in no token."""
    config, source = of(data_root, texts, **TRAINED)
    shards = slm.encode(config, source, vocabulary=(made := slm.make_tokenizer(config, source)))
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    assert (made.kind, made.vocab_size, made.tokenizer_sha256) == ("trained", 330, tokenizer.sha256)
    assert made.documents == shards.splits["train"].documents < len(texts)
    ids = read_tokens(shards.path / shards.splits["train"].files[0])
    train = [
        tokenizer.decode(part[1:].tolist())
        for part in np.split(ids, np.flatnonzero(ids == tokenizer.eot)[1:])
    ]
    alone = train_bpe(train, 330, PATTERNS["gpt2"])
    assert alone.tokens == tokenizer.tokens
    assert train_bpe(reversed(train), 330, PATTERNS["gpt2"]).tokens == tokenizer.tokens
    assert make_tokenizer(config, source).reused


@trains
def test_settings_of_its_own_make_another(data_root: Path, texts: list[str]) -> None:
    config, source = of(data_root, texts, **TRAINED)
    made = make_tokenizer(config, source)
    for changes in (
        {"data.tokenizer.vocab_size": 340},
        {"data.tokenizer.documents": 5},
        {"data.tokenizer.pattern": "qwen35"},
        {"data.tokenizer.special_tokens": ["<|user|>"]},
        {"data.clean.min_chars": 33},
    ):
        other, _ = of(data_root, texts, **{**TRAINED, **changes})
        again = make_tokenizer(other, source)
        assert again.key != made.key
        assert again.tokenizer_sha256 != made.tokenizer_sha256, changes
        assert encode_key(other, source, again.tokenizer_sha256) != encode_key(
            other, source, made.tokenizer_sha256
        )


@trains
def test_a_killed_training_resumes_and_leaves_nothing(
    data_root: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = of(data_root, texts, **TRAINED)
    monkeypatch.setenv("SLM_FAULT", "encode.unit:1:raise")
    with pytest.raises(RuntimeError, match="fault injected"):
        make_tokenizer(config, source)
    monkeypatch.delenv("SLM_FAULT")
    assert not DataRoot().results("tokenizers")
    made = make_tokenizer(config, source)
    assert [path.name for path in (data_root / "tokenizers").glob("[!.]*")] == [made.name]
    assert not list((data_root / "tokenizers").glob(".*.units"))


@trains
def test_special_tokens_are_in_no_other_token(data_root: Path, texts: list[str]) -> None:
    marked = [f"<|user|>{text}<|bot|>{text}" for text in texts]
    special = {"data.tokenizer.special_tokens": ["<|user|>", "<|bot|>"]}
    config, source = of(data_root, marked, **TRAINED, **special)
    tokenizer = Tokenizer.load(make_tokenizer(config, source).path / TOKENIZER)
    assert not [token for token in tokenizer.tokens if b"<|" in token or b"|>" in token]
    ids = tokenizer.encode(marked[0])
    assert (ids[0], ids.count(tokenizer.eot + 2)) == (tokenizer.eot + 1, 1)
    assert tokenizer.decode(ids) == marked[0]


@trains
def test_few_documents_make_fewer_tokens(data_root: Path) -> None:
    config, source = of(data_root, [f"abc {i}" for i in range(30)], **TRAINED)
    assert 257 <= make_tokenizer(config, source).vocab_size < 330


# ---- given ------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    """A tokenizer of another pattern, of GPT-2's first tokens."""
    return Tokenizer(gpt2(tmp_path).tokens[:600], PATTERNS["qwen2"])


@pytest.mark.parametrize("form", ["tokenizer.json", "ranks.tiktoken"])
def test_a_given_tokenizer_is_taken_as_it_is(
    data_root: Path, texts: list[str], small: Tokenizer, tmp_path: Path, form: str
) -> None:
    path = tmp_path / form
    (small.save_tiktoken if form.endswith("tiktoken") else small.save_hugging_face)(path)
    given = {"data.tokenizer.path": str(path), "data.tokenizer.pattern": "qwen2"}
    config, source = of(data_root, texts, **given)
    made = slm.make_tokenizer(config, source)
    assert (made.kind, made.pattern, made.tokenizer_sha256) == ("given", "qwen2", small.sha256)
    shards = slm.encode(config, source, vocabulary=made)
    assert shards.tokenizer_sha256 == small.sha256
    path.write_bytes(path.read_bytes() + b"\n")
    assert make_tokenizer(config, source).key != made.key, "its key is that of its content"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}, "merges": []}}, "WordPiece"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "bytes"),
        ({"added_tokens": [{"content": "  ", "id": 700, "special": False}]}, "adds the token"),
        ({"model": None}, "no byte-level BPE"),
    ],
)
def test_what_is_not_byte_level_bpe_is_refused(
    data_root: Path, small: Tokenizer, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**small.to_hugging_face(), **change}))
    config, source = of(data_root, list(LANGUAGES), **{"data.tokenizer.path": str(path)})
    with pytest.raises(UserError, match=problem) as refused:
        make_tokenizer(config, source)
    assert "byte-level BPE" in str(refused.value)
    assert not DataRoot().results("tokenizers")


def test_a_missing_file_is_refused(data_root: Path) -> None:
    config, source = of(data_root, list(LANGUAGES), **{"data.tokenizer.path": "nothing.json"})
    with pytest.raises(UserError, match="there is no such file"):
        make_tokenizer(config, source)


# ---- the settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({**TRAINED, "data.vocab_size": 1000}, "trims GPT-2's vocabulary"),
        ({**TRAINED, "data.tokenizer.path": "x.json"}, "exclude each other"),
        ({**TRAINED, "train.init_from": "latest"}, "keeps the vocabulary"),
        ({**TRAINED, "data.tokenizer.vocab_size": 257,
          "data.tokenizer.special_tokens": ["<a>"]}, "alone are 258"),
        ({**TRAINED, "data.tokenizer.special_tokens": ["<a>", "<a>b"]}, "part of"),
        ({"data.tokenizer.documents": 3}, "no vocabulary to make"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_recipe("quickstart", changes)


def test_without_the_setting_nothing_is_there() -> None:
    config = load_recipe("quickstart")
    assert not config.data.tokenizer.is_set
    assert keys.stage_fields("encode", config).keys() == {
        "clean", "val_fraction", "vocab_size", "shard_tokens",
    }  # fmt: skip


def test_gpt2s_vocabulary_is_made_by_no_stage(data_root: Path) -> None:
    config, source = of(data_root, list(LANGUAGES))
    with pytest.raises(UserError, match="has GPT-2's vocabulary"):
        make_tokenizer(config, source)


def test_encoding_asks_for_the_vocabulary(data_root: Path) -> None:
    config, source = of(data_root, list(LANGUAGES), **TRAINED)
    with pytest.raises(UserError, match=r"slm\.make_tokenizer"):
        slm.encode(config, source)


def test_records_are_found_by_key_and_by_shards(
    data_root: Path, texts: list[str], small: Tokenizer, tmp_path: Path
) -> None:
    small.save_hugging_face(tmp_path / "tokenizer.json")
    config, source = of(data_root, texts, **{"data.tokenizer.path": str(tmp_path)})
    made: Vocabulary = make_tokenizer(config, source)
    shards: Shards = slm.encode(config, source, vocabulary=made)
    root = DataRoot()
    assert root.vocabulary(made.key) == root.vocabulary_of(shards)
