"""A tokenizer from a file of others: Hugging Face's `tokenizer.json`, or tiktoken's ranks.

Its merges and its pattern are taken as they are, so every text becomes the same tokens, with the
same ids where those of the file begin at 0. Its own special tokens are left out, as training is
from the seed: end-of-text comes after the tokens, then those that the config names.
"""

import json
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm.errors import UserError, excerpt
from slm.tokens.tokenizer.bpe import Tokenizer, from_spelling
from slm.tokens.tokenizer.patterns import GPT2, PATTERNS, Pattern, pattern_of

SUFFIX = ".tiktoken"
_REMEDY = (
    "give a byte-level BPE, as GPT-2, Llama 3, Qwen and GPT-4 have it, or train one: "
    "data.tokenizer.train=bpe"
)


def read_given(
    path: Path, at: str, *, is_tiktoken: bool, pattern: str, special: Sequence[str]
) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        path: of the file.
        at: how messages name it.
        is_tiktoken: whether it has tiktoken's lines, of a base64 and a rank each.
        pattern: by its name; of tiktoken's form, which has none.
        special: texts that are one token each.

    Raises UserError for what is not byte-level BPE.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{at} cannot be read: {error.strerror or error}") from error
    try:
        if is_tiktoken:
            tokens, split = _tiktoken(data), PATTERNS[pattern]
        else:
            tokens, split = _hugging_face(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{at} is no byte-level BPE ({excerpt(error)}): {_REMEDY}") from error
    tokenizer = Tokenizer(tokens, split, special)
    if taken := [text for text in special if text.encode() in set(tokens)]:
        raise UserError(
            f"{at} has {taken[0]!r} as an ordinary token: leave it out of "
            "data.tokenizer.special_tokens"
        )
    try:
        _ = tokenizer.encoding, tokenizer.merges
    except ValueError as error:
        raise UserError(f"{at} is no byte-level BPE ({excerpt(error)}): {_REMEDY}") from error
    return tokenizer


def _tiktoken(data: bytes) -> list[bytes]:
    try:
        pairs = [line.split() for line in data.splitlines() if line]
        ranks = {a2b_base64(token, strict_mode=True): int(rank) for token, rank in pairs}
    except Base64Error as error:
        raise ValueError(f"it has no lines of a base64 and a rank: {error}") from error
    return _checked(sorted(ranks, key=ranks.__getitem__), [*ranks.values()])


def _hugging_face(data: bytes) -> tuple[list[bytes], Pattern]:
    fields = json.loads(data)
    model = fields["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"its model is {model.get('type')}, with bytes as a fallback alone")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"its model has {name}={model[name]!r}")
    normalizer = fields.get("normalizer") or {"type": "NFC"}
    if normalizer["type"] != "NFC":  # which data.clean.fix_text does: bytes are kept as they are
        raise ValueError(f"it changes text beforehand, by {normalizer['type']}")
    added = {each["content"]: each for each in fields.get("added_tokens") or ()}
    if plain := [text for text, each in added.items() if not each.get("special")]:
        raise ValueError(f"it adds the token {plain[0]!r} to those of its merges")
    vocabulary = {text: rank for text, rank in model["vocab"].items() if text not in added}
    spelled = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = _checked([from_spelling(text) for text in spelled], [*range(len(spelled))])
    _check_merges(tokens, model["merges"], ignores=bool(model.get("ignore_merges")))
    return tokens, _pattern(fields["pre_tokenizer"])


def _checked(tokens: list[bytes], ranks: list[int]) -> list[bytes]:
    singles = sum(len(token) == 1 for token in tokens)
    if singles != 256 or len(set(tokens)) != len(tokens) or len(set(ranks)) != len(tokens):
        raise ValueError(f"of the 256 bytes {singles} are tokens")
    return tokens


def _check_merges(tokens: list[bytes], merges: Sequence[Any], *, ignores: bool) -> None:
    """Raises ValueError unless the tokens are in the order in which the merges make them."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    made = [from_spelling(left) + from_spelling(right) for left, right in pairs]
    expected = [token for token in tokens if len(token) > 1]
    if ignores:  # whole words need no merge, and some tokens of them have several
        made = list(dict.fromkeys(made))
    if made != expected:
        raise ValueError("its ids are not in the order of its merges")


def _pattern(split: dict[str, Any]) -> Pattern:
    """The pattern of a pre-tokenizer. Raises ValueError for any other than one Split."""
    parts = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    byte_level = parts[-1]
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space"):
        raise ValueError("it does not split text into bytes, or adds a space before it")
    if byte_level.get("use_regex", True) and len(parts) == 1:
        return GPT2
    [splitter, _] = parts
    if splitter["type"] != "Split" or splitter["behavior"] != "Isolated" or splitter.get("invert"):
        raise ValueError(f"it splits text by {splitter['type']} {splitter.get('behavior', '')}")
    if byte_level.get("use_regex", True):
        raise ValueError("it splits text twice")
    return pattern_of(splitter["pattern"]["Regex"])
