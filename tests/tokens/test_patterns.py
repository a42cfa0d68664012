"""Tokenizers of other patterns than GPT-2's, with special tokens: all readers encode alike."""

from pathlib import Path

import numpy as np
import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import CorruptionError
from slm.source.stories import stories
from slm.tokens.tokenizer import pretokenize, pretokenize_newer
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer, gpt2
from slm.tokens.tokenizer.patterns import PATTERNS, Pattern, pattern_of

SPECIAL = ("<|user|>", "<|bot|>")
ASCII = st.text(st.sampled_from("abS'sltvedmLR  \n\n\r\t.,!_1234"), max_size=16)
ANY = st.text(
    st.one_of(
        st.sampled_from("abS's1. \n\t12é́हि्न्दीя東京ئە‍🎉ſ…\u00a0\u2003\u3000ÀΣ٣²\u0085\u200b"),
        st.characters(codec="utf-8"),
    ),
    max_size=24,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """GPT-2's first tokens by every pattern, with special tokens."""
    tokens = gpt2(tmp_path_factory.mktemp("data")).tokens[:4000]
    return {name: Tokenizer(tokens, pattern, SPECIAL) for name, pattern in PATTERNS.items()}


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(st.lists(ASCII.filter(bool), min_size=1, max_size=4))
def test_words_begin_where_the_pattern_splits(name: str, texts: list[str]) -> None:
    pattern, joined = PATTERNS[name], "".join(texts).encode()
    ends = np.cumsum([len(text) for text in texts])
    starts = (
        pretokenize_newer.word_starts(joined, ends, pattern.digits)
        if pattern.digits
        else pretokenize.word_starts(joined, ends)
    )
    words = [each for text in texts for each in regex.findall(pattern.regex, text)]
    assert starts.tolist() == [0, *np.cumsum([len(word) for word in words])[:-1]]


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=4))
def test_encoding_is_tiktokens(
    tokenizers: dict[str, Tokenizer], name: str, texts: list[str]
) -> None:
    tokenizer = tokenizers[name]
    expected = [tokenizer.encoding.encode_ordinary(text) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    together = tokenizer.encode_utf8([text.encode() for text in texts]).tolist()
    assert together == [i for ids in expected for i in (tokenizer.eot, *ids)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from((*SPECIAL, END_OF_TEXT, "<|", "us")), ANY), max_size=8))
def test_special_tokens_are_tokens_wherever_they_are(
    tokenizers: dict[str, Tokenizer], parts: list[str]
) -> None:
    tokenizer, text = tokenizers["qwen35"], "".join(parts)
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encoding.encode(
        text, allowed_special=set(SPECIAL), disallowed_special=()
    )
    assert tokenizer.encode_utf8([text.encode()]).tolist() == [tokenizer.eot, *ids]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids, "a text that spells end-of-text does not end"
    assert tokenizer.count_bytes(np.array(ids, np.int64)) == len(text.encode())


@pytest.fixture(scope="module")
def hugging_face(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    module = pytest.importorskip("tokenizers")
    folder, loaded = tmp_path_factory.mktemp("hf"), {}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_hugging_face(folder / f"{name}.json")
        loaded[name] = module.Tokenizer.from_file(str(folder / f"{name}.json"))
        loaded[name].encode_special_tokens = True
    return loaded


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from((*SPECIAL, END_OF_TEXT)), ANY), max_size=4))
def test_hugging_face_encodes_alike(hugging_face, tokenizers, name: str, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    text = "".join(parts)
    assert hugging_face[name].encode(text).ids == tokenizers[name].encode(text)


@pytest.mark.parametrize("name", PATTERNS)
def test_long_runs_are_no_trouble(tokenizers: dict[str, Tokenizer], name: str) -> None:
    text = "a." + "\n" * 9 + " " * 300_000 + "b  \n" + " " * 70_000
    assert tokenizers[name].decode(tokenizers[name].encode(text)) == text


@pytest.mark.parametrize("name", PATTERNS)
def test_a_file_keeps_pattern_and_special_tokens(
    tokenizers: dict[str, Tokenizer], name: str, tmp_path: Path
) -> None:
    tokenizer = tokenizers[name]
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert (loaded.pattern, loaded.special) == (PATTERNS[name], SPECIAL)
    assert (loaded.tokens, loaded.sha256) == (tokenizer.tokens, tokenizer.sha256)
    plain = Tokenizer(tokenizer.tokens, PATTERNS[name])
    assert (plain.sha256 == Tokenizer(tokenizer.tokens).sha256) == (name == "gpt2")


def test_tiktoken_reads_the_ranks(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    tokenizer = tokenizers["qwen2"]
    tokenizer.save_tiktoken(tmp_path / "ranks")
    assert load_tiktoken_bpe(str(tmp_path / "ranks")) == {
        token: rank for rank, token in enumerate(tokenizer.tokens)
    }


@pytest.mark.parametrize("header", [b"# {}", b"# [", b'# {"pattern": 1}'])
def test_a_damaged_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(header + b"\nAA== 0\n")
    with pytest.raises(CorruptionError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path / "damaged")


def test_any_other_pattern_encodes_as_tiktoken_does(tokenizers: dict[str, Tokenizer]) -> None:
    pattern = pattern_of(r"\p{L}+|\p{N}{2}|\s+(?!\S)|.|\s+")
    assert pattern == Pattern(r"\p{L}+|\p{N}{2}|\s+(?!\S)|.|\s+")
    tokenizer = Tokenizer(tokenizers["gpt2"].tokens, pattern)
    for text in stories(5, 0, 3):
        assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)
