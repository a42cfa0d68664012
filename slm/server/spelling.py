"""Tokens in an answer: how each is written, and where in the text it begins."""

import codecs
from collections.abc import Iterable
from typing import Any, NamedTuple

from slm.model.batch import Score
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer


def spell(token: int, tokenizer: Tokenizer) -> str:
    r"""A token as a client sees it: its text, or its bytes where they are no whole characters.

    As OpenAI writes them: `bytes:\xc3`.
    """
    if token == tokenizer.eot:
        return END_OF_TEXT
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(rf"\x{byte:02x}" for byte in data)


class _Entry(NamedTuple):
    offset: int
    score: Score


class Logprobs:
    """The `logprobs` of a choice in OpenAI's form for completions, as its tokens come.

    `text_offset` is the number of characters of the text in front of a token; the tokens of one
    character have its place.
    """

    def __init__(self, tokenizer: Tokenizer, alternatives: int) -> None:
        self.tokenizer, self.alternatives = tokenizer, alternatives
        self._offset = 0
        self._entries: list[_Entry] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, scores: Iterable[Score]) -> None:
        for score in scores:
            self._entries.append(_Entry(self._offset, score))
            if score.token != self.tokenizer.eot:
                data = self.tokenizer.decode_bytes([score.token])
                self._offset += len(self._decoder.decode(data))

    def take(self, characters: int | None = None) -> dict[str, Any]:
        """The fields of the tokens that are new and begin in so many characters; None: of all."""
        ready = [e for e in self._entries if characters is None or e.offset < characters]
        self._entries = self._entries[len(ready) :]
        tops = [self._top(entry.score) for entry in ready]
        return {
            "tokens": [spell(entry.score.token, self.tokenizer) for entry in ready],
            "token_logprobs": [entry.score.logprob for entry in ready],
            "top_logprobs": tops if self.alternatives else None,
            "text_offset": [entry.offset for entry in ready],
        }

    def _top(self, score: Score) -> dict[str, float] | None:
        """The likeliest tokens, and the one that was chosen."""
        if score.logprob is None:
            return None
        top = {spell(token, self.tokenizer): value for token, value in score.top}
        return {**top, spell(score.token, self.tokenizer): score.logprob}
