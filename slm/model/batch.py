"""Rows that are generated together: they join and leave between tokens.

A row has its own prompt, seed, settings and limits. On a CPU in float32 or int8 its hidden states
have the same bits alone and in any batch: a product's row depends on no other row, `Decoder.step`
reads keys in pieces that do not depend on the longest row, and texts are prefilled only together
with those of the same length. So its text is the same, whatever it is generated together with. On
a GPU the rows of a product may be rounded otherwise with their number.
"""

import codecs
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from slm.model.decode import Decoder, KVCache
from slm.model.next_token import SamplingSettings, sample_tokens
from slm.tokens.tokenizer.bpe import Tokenizer

MAX_SCORED = 1 << 22  # logits of a prompt at once

OnText = Callable[[int, str], None]  # (number of the prompt, the characters that are new)


class Score(NamedTuple):
    """A token's log-probability, in nats and by the model itself: at temperature 1, of all tokens.

    `top`: the likeliest tokens and theirs, as many as were asked for.
    """

    token: int
    logprob: float | None  # None: nothing precedes the token
    top: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Completion:
    """A text while it is generated: a row of the batch."""

    number: int
    prompt: str
    ids: list[int]  # prompt and completion
    seed: int
    settings: SamplingSettings
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    on_text: OnText | None = None
    alternatives: int | None = None  # per token that is scored; None: no scores
    scores_prompt: bool = False
    prompt_scores: list[Score] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    tokens: int = 0  # generated, end-of-text not counted
    ended: bool = False  # by end-of-text or a stop string
    text: str = ""
    shown: int = 0  # characters of `text` that were passed on
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.penalised: Tensor | None = None  # (V,), True where the repetition penalty applies

    @property
    def done(self) -> bool:
        return self.ended or self.tokens == self.max_new_tokens

    def append(self, token: int, tokenizer: Tokenizer) -> None:
        """Add the next token; set `ended` where the text ends by itself."""
        if token == tokenizer.eot:
            self.ended = True
        else:
            self.ids.append(token)
            self.tokens += 1
            self.text += self.characters.decode(tokenizer.decode_bytes([token]))
            stops = [start for start in map(self.text.find, self.stop) if start >= 0]
            if stops:
                self.text, self.ended = self.text[: min(stops)], True
            if self.penalised is not None:
                self.penalised[token] = True
        self.show(final=False)

    def take(self, final: bool) -> str:
        """The new characters, except those that may turn out to begin a stop string."""
        until = len(self.text) - (0 if final or self.ended else _overlap(self.text, self.stop))
        new = self.text[self.shown : until]
        self.shown = max(self.shown, until)
        return new

    def show(self, final: bool) -> None:
        if self.on_text is not None and (new := self.take(final)):
            self.on_text(self.number, new)

    def finish(self) -> None:
        self.show(final=True)
        self.seconds = time.perf_counter() - self.started


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` that a stop string begins with.

    >>> _overlap("She said Th", ["The end", "\\n"])
    2
    """
    lengths = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    return next((n for n in lengths if any(s.startswith(text[-n:]) for s in stops)), 0)


class Batch:
    """The rows that are being generated, and their KV cache."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, max_rows: int) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.cache = KVCache.empty(decoder.model, max_rows)  # row i of it is that of rows[i]
        self.rows: list[Completion] = []
        embed = decoder.model.embed.weight
        self.device = embed.device
        self.hidden = torch.zeros(max_rows, embed.shape[1], dtype=embed.dtype, device=self.device)
        self._views: dict[int, KVCache] = {}

    @property
    def free(self) -> int:
        return len(self.cache.lengths) - len(self.rows)

    @torch.inference_mode()
    def add(self, rows: Sequence[Completion]) -> list[Completion]:
        """Read the prompts of rows, for which there must be room; those that are done thereby."""
        first = len(self.rows)
        self.rows += rows
        self._prefill([row.ids for row in rows], list(range(first, len(self.rows))))
        for row in rows:
            if row.settings.repetition_penalty != 1:
                row.penalised = self._tokens_of(row)
        return self._remove_done()

    @torch.inference_mode()
    def choose(self) -> list[Completion]:
        """Add a token to every row; those that are done thereby, which leave."""
        for row, token in zip(self.rows, self._next_tokens(), strict=True):
            row.append(token, self.tokenizer)
        return self._remove_done()

    @torch.inference_mode()
    def read(self) -> None:
        """Read the last token of every row, after which the next can be chosen.

        A row that fills the context keeps its last half, which is read anew.
        """
        if not self.rows:
            return
        limit = self.decoder.config.seq_len
        view = self._view(len(self.rows))
        full = [i for i, n in enumerate(view.lengths.tolist()) if n == limit]
        if full:
            kept = max(1, limit // 2)  # with the new token, the last of them
            view.lengths[full] = 0
            if kept > 1:
                self._prefill([self.rows[i].ids[-kept:-1] for i in full], full)
        ids = torch.zeros(len(view.lengths), dtype=torch.long)
        ids[: len(self.rows)] = torch.tensor([row.ids[-1] for row in self.rows])
        view.lengths[len(self.rows) :] = 0
        self.hidden[: len(ids)] = self.decoder.step(ids.to(self.device), view)

    @torch.inference_mode()
    def remove(self, row: Completion) -> None:
        """Let a row leave; the last one takes its place."""
        i, last = self.rows.index(row), len(self.rows) - 1
        if i != last:
            cache = self.cache
            for tensor in (cache.keys.transpose(0, 1), cache.values.transpose(0, 1)):
                tensor[i] = tensor[last]
            cache.lengths[i], self.hidden[i] = cache.lengths[last], self.hidden[last]
            self.rows[i] = self.rows[last]
        self.rows.pop()

    def _remove_done(self) -> list[Completion]:
        done = [row for row in self.rows if row.done]
        for row in reversed(done):
            row.finish()
            self.remove(row)
        return done

    # ---- hidden states ------------------------------------------------------------------------

    def _view(self, rows: int) -> KVCache:
        """The first rows of the cache: on a GPU a power of two, as each has its graphs."""
        if self.device.type == "cuda":
            rows = min(1 << (rows - 1).bit_length(), len(self.cache.lengths))
        if rows not in self._views:
            keys, values, lengths = self.cache.keys, self.cache.values, self.cache.lengths
            self._views[rows] = KVCache(keys[:, :rows], values[:, :rows], lengths[:rows])
        return self._views[rows]

    def _prefill(self, texts: Sequence[list[int]], rows: Sequence[int]) -> None:
        """Fill some rows of the cache with texts, and `hidden` with the states at their ends."""
        for group in self._prefilled_together(texts):
            lengths = torch.tensor([len(texts[i]) for i in group])
            ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.long)  # (rows, T)
            for place, i in enumerate(group):
                ids[place, : len(texts[i])] = torch.tensor(texts[i])
            fresh = KVCache.empty(self.decoder.model, len(group))
            hidden = self.decoder.prefill(ids.to(self.device), fresh)  # (rows, T, C)
            into = [rows[i] for i in group]
            self.cache.keys[:, into] = fresh.keys
            self.cache.values[:, into] = fresh.values
            self.cache.lengths[into] = lengths.to(self.device)
            self.hidden[into] = hidden[torch.arange(len(group)), lengths - 1]
            for place, row in enumerate(into):
                if self.rows[row].scores_prompt and not self.rows[row].tokens:
                    self._score_prompt(self.rows[row], hidden[place])

    def _prefilled_together(self, texts: Sequence[list[int]]) -> list[list[int]]:
        """Groups of texts, by their numbers: the padding of another length changes the rounding."""
        if self.device.type != "cpu":
            return [list(range(len(texts)))]
        if self.decoder.weights == "int8":  # whose kernel depends on the number of tokens
            return [[i] for i in range(len(texts))]
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            groups.setdefault(len(text), []).append(i)
        return list(groups.values())

    # ---- tokens -------------------------------------------------------------------------------

    def _next_tokens(self) -> list[int]:
        """The next token of each row, and its score where it is asked for."""
        rows, hidden = self.rows, self.hidden[: len(self.rows)]
        uniforms = [row.rng.random() for row in rows]
        if (few := self._screened(hidden)) is not None:
            ids, logits = few
            return ids[sample_tokens(logits, rows[0].settings, uniforms)].tolist()
        logits = self.decoder.logits(hidden)  # (B, V)
        tokens = [0] * len(rows)
        for settings, places in _by_settings(rows).items():
            penalised = [rows[i].penalised for i in places]
            chosen = sample_tokens(
                logits if len(places) == len(rows) else logits[places],
                settings,
                [uniforms[i] for i in places],
                torch.stack([p for p in penalised if p is not None])
                if settings.repetition_penalty != 1
                else None,
            )
            for i, token in zip(places, chosen.tolist(), strict=True):
                tokens[i] = token
        for i, row in enumerate(rows):
            if row.alternatives is not None:
                row.scores += scores(logits[i : i + 1], tokens[i : i + 1], row.alternatives)
        return tokens

    def _screened(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """The likeliest tokens of a single row and their logits, where these are enough."""
        if self.decoder.screen is None or len(hidden) > 1:
            return None
        row = self.rows[0]
        k = 1 if row.settings.temperature == 0 else row.settings.top_k
        if k is None or row.penalised is not None or row.alternatives is not None:
            return None
        return self.decoder.screen(hidden, min(k, len(self.decoder.embed)))  # (N,), (1, N)

    def _tokens_of(self, row: Completion) -> Tensor:
        """Whether each token is in a row, (V,), end-of-text excepted."""
        mask = torch.zeros(len(self.decoder.embed), dtype=torch.bool)
        mask[row.ids] = True
        mask[self.tokenizer.eot] = False
        return mask.to(self.device)

    def _score_prompt(self, row: Completion, hidden: Tensor) -> None:
        """Score every token of a prompt but the first, from its hidden states (T, C)."""
        row.prompt_scores = [Score(row.ids[0], None, ())]
        size = max(1, MAX_SCORED // len(self.decoder.embed))
        for start in range(0, len(row.ids) - 1, size):
            expected = row.ids[start + 1 : start + 1 + size]
            logits = self.decoder.logits(hidden[start : start + len(expected)])
            row.prompt_scores += scores(logits, expected, row.alternatives or 0)


def _by_settings(rows: Iterable[Completion]) -> dict[SamplingSettings, list[int]]:
    """The numbers of the rows that are sampled in the same way."""
    groups: dict[SamplingSettings, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.settings, []).append(i)
    return groups


def scores(logits: Tensor, tokens: Sequence[int], alternatives: int) -> list[Score]:
    """The scores of tokens, from the logits (N, V) in front of them."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(alternatives, logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    return [
        Score(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(
            tokens, chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]
