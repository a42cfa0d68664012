"""A trained vocabulary of every pattern in tiktoken, Hugging Face and llama.cpp: encoded alike."""

import random
import unicodedata
from pathlib import Path

import pytest
import torch

from slm.config import ModelConfig
from slm.extras import is_installed
from slm.model.export.gguf import write_gguf
from slm.model.export.hugging_face import write_hugging_face
from slm.model.export.parity import check_parity
from slm.model.export.reading import read_gguf, read_hugging_face
from slm.model.gpt import GPT
from slm.source.stories import stories
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.tokens.tokenizer.patterns import PATTERNS, Pattern
from slm.tokens.tokenizer.training import train_bpe

SPECIAL = ("<|user|>", "<|bot|>")
SHAPE = ModelConfig(n_layer=1, n_head=1, n_embd=8, seq_len=32)
SCRIPTS = (  # code points of letters, marks and digits
    (0x61, 0x7B), (0xC0, 0x180), (0x391, 0x3CA), (0x410, 0x450), (0x531, 0x557), (0x5D0, 0x5EB),
    (0x620, 0x660), (0x900, 0x970), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE01, 0xE5C),
    (0x10D0, 0x10FB), (0x1200, 0x1257), (0x3041, 0x3097), (0x30A1, 0x30FB), (0x4E00, 0x5E00),
    (0xAC00, 0xB400),
)  # fmt: skip


def many_scripts(megabytes: float) -> list[str]:
    """Texts of words of many scripts, with digits, signs, spaces and newlines between them."""
    draw, texts, size = random.Random(5), list[str](), 0
    alphabets = [
        [chr(i) for i in range(*span) if unicodedata.category(chr(i))[0] in "LMN"]
        for span in SCRIPTS
    ]
    borders = (
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        ", ",
        ". ",
        "-",
        " (",
        "'s ",
        "\t",
        "12 ",
        " 3.14",
    )
    while size < megabytes * 1e6:
        words = []
        for _ in range(200):
            letters = draw.choice(alphabets)
            words += [*draw.choices(letters, k=draw.randint(1, 7)), draw.choice(borders)]
        texts.append("".join(words))
        size += len(texts[-1].encode())
    return texts


def trained(pattern: Pattern, root: Path) -> Tokenizer:
    """Of many scripts; without the library that trains, of GPT-2's first tokens."""
    if is_installed("rustbpe"):
        return train_bpe(many_scripts(0.3), 3000, pattern, SPECIAL)
    return Tokenizer(gpt2(root).tokens[:3000], pattern, SPECIAL)


@pytest.mark.parametrize("name", PATTERNS)
def test_exports_are_read_alike(name: str, tmp_path: Path) -> None:
    """By the independent reader that every export is checked with."""
    pytest.importorskip("gguf")
    tokenizer = trained(PATTERNS[name], tmp_path)
    model = GPT(SHAPE, tokenizer.n_vocab).eval()
    texts = [*stories(3, 0, 3), "a<|user|>b 1234's\n\n  c हिन्दी"]
    ids = [torch.tensor(tokenizer.encode(text)).numpy() for text in texts]
    write_gguf(tmp_path / "model.gguf", model, tokenizer, "f32", {})
    check_parity(model, tokenizer, read_gguf(tmp_path / "model.gguf"), "f32", ids)
    (tmp_path / "hf").mkdir()
    write_hugging_face(tmp_path / "hf", model, tokenizer)
    check_parity(model, tokenizer, read_hugging_face(tmp_path / "hf"), "f32", ids)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PATTERNS)
def test_all_three_encode_10_megabytes_of_many_scripts_alike(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = trained(PATTERNS[name], tmp_path)
    texts = many_scripts(10)
    texts[::50] = [f"<|user|>{text}<|bot|>" for text in texts[::50]]
    tokenizer.save_hugging_face(tmp_path / "tokenizer.json")
    write_gguf(tmp_path / "model.gguf", GPT(SHAPE, tokenizer.n_vocab), tokenizer, "f32", {})
    hugging_face = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    differ = dict.fromkeys(("tiktoken", "hugging face", "llama.cpp"), 0)
    together = iter(tokenizer.encode_utf8([text.encode() for text in texts]).tolist())
    for text, encoded in zip(texts, hugging_face.encode_batch(texts), strict=True):
        ids = tokenizer.encode(text)
        assert [next(together) for _ in range(len(ids) + 1)] == [tokenizer.eot, *ids]
        same = tokenizer.encoding.encode(text, allowed_special=set(SPECIAL), disallowed_special=())
        differ["tiktoken"] += same != ids
        differ["hugging face"] += encoded.ids != ids
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        differ["llama.cpp"] += theirs != ids
    assert differ == dict.fromkeys(differ, 0)
