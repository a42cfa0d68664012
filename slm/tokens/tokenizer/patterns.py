"""The patterns that split text into words before bytes are merged, and what knows them by name.

Each word is encoded alone, so a pattern is as much a part of a tokenizer as its tokens are. Those
here are ones that llama.cpp knows by name: it reads no pattern from a GGUF file.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from tiktoken_ext import openai_public  # type: ignore[import-untyped]

# How nearly every newer pattern ends: the last of several spaces goes to the word that follows.
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


@dataclass(frozen=True)
class Pattern:
    """A pattern, as tiktoken and Hugging Face's tokenizers take it."""

    regex: str
    name: str = ""  # in `data.tokenizer.pattern`; empty: one that only a given tokenizer has
    gguf: str = ""  # llama.cpp's name of it; empty: it has none
    digits: int = 0  # digits in a word at most, of the newer patterns; 0: any number, or unknown
    marks: bool = False  # whether combining marks are in words, as many scripts need it

    @cached_property
    def plain(self) -> str | None:
        """The pattern without look-ahead, which is faster and fails on no long run of spaces.

        It splits alike where the text is cut before the last of three spaces or more: see
        `pretokenize.segments`. None where no such form is known.
        """
        if self.name == "gpt2":
            return r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s"
        head = self.regex.removesuffix(_TAIL)
        if head == self.regex or re.search(r"\(\?<?[=!]|\$", head):
            return None
        return head + r"|\s*[\r\n]+|\s+$|\s"


def _newer(name: str, gguf: str, digits: int, marks: bool = False) -> Pattern:
    letter = r"[\p{L}\p{M}]" if marks else r"\p{L}"
    other = r"[^\s\p{L}\p{M}\p{N}]" if marks else r"[^\s\p{L}\p{N}]"
    number = r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}"
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letter}+"
    regex = rf"{_CONTRACTIONS}|{word}|{number}| ?{other}+[\r\n]*{_TAIL}"
    return Pattern(regex, name, gguf, digits, marks)


GPT2 = Pattern(openai_public.r50k_pat_str, "gpt2", "gpt-2")
PATTERNS = {
    pattern.name: pattern
    for pattern in (
        GPT2,
        _newer("llama3", "llama-bpe", 3),
        _newer("qwen2", "qwen2", 1),
        _newer("qwen35", "qwen35", 1, marks=True),
    )
}

# Other spellings of the same, in files that people have.
_SPELLINGS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
}


def pattern_of(regex: str) -> Pattern:
    """The pattern of a text, by its name where it is a known one, however that is spelled."""
    spelled = regex.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)
    name = _SPELLINGS.get(regex)
    for pattern in PATTERNS.values():
        if pattern.name == name or pattern.regex in (regex, spelled):
            return pattern
    return Pattern(regex)
