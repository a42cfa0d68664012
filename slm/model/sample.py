"""Text from a model: a KV cache, one pass over the prompts, then one token a row a step.

A row's text depends on its prompt, its seed and the settings, and on nothing else: not on the rows
beside it, nor on how many they are. Each row draws one uniform number a token from a generator of
its own; rows that have ended leave the batch.

Beyond the context: when a row has filled it, the last half is kept and read anew, and the row goes
on from there. A prompt that does not fit by itself is refused.
"""

import codecs
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slm.errors import UserError
from slm.model.decode import Decoder, KVCache
from slm.model.gpt import GPT
from slm.tokens.tokenizer.bpe import Tokenizer

MAX_ROWS = 64  # rows in one batch: more prompts than that take turns

OnText = Callable[[int, str], None]  # (number of the prompt, the characters that are new)


@dataclass(frozen=True)
class Sample:
    """What a model wrote."""

    prompt: str
    completion: str
    tokens: int  # generated, end-of-text not counted
    seconds: float  # from the call until this text was done
    ended: bool  # by end-of-text or a stop string, not by the limit


@dataclass(frozen=True)
class Settings:
    """How a token is chosen. Raises UserError for values that mean nothing.

    `temperature` divides the logits, 0 is greedy. `top_k` keeps the k likeliest tokens, then
    `top_p` the likeliest that together reach that probability (Holtzman et al. 2019,
    arXiv:1904.09751), then `min_p` those at least that fraction as likely as the likeliest (Nguyen
    et al. 2024, arXiv:2407.01082). `repetition_penalty` comes first: it weakens every token that
    the row has (Keskar et al. 2019, arXiv:1909.05858), end-of-text excepted.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or above"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or above"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < float("inf"),
                "above 0 (1: none)",
            ),
        )
        for name, value, valid, remedy in checks:
            if not valid:
                raise UserError(f"{name}={value}: it must be {remedy}")


def generate(
    model: GPT | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> list[Sample]:
    """One completion a prompt, in their order.

    Args:
        model: a `Decoder`, which is made of a model once, saves the making at every call.
        prompts: texts that the model goes on from, as if each opened a document.
        temperature, top_k, top_p, min_p, repetition_penalty: see `Settings`.
        seed: of every row, or one a row. The same seed gives the same text.
        stop: strings that end a text; neither they nor what follows is part of it.
        on_text: is given each text as it grows, in whole characters.

    Raises:
        UserError: a setting is out of range, or a prompt does not fit the context.
    """
    settings = Settings(temperature, top_k, top_p, min_p, repetition_penalty)
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens}: it must be 0 or above")
    if "" in stop:
        raise UserError("stop='': an empty string would end every text; leave it out")
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one, or one a prompt")
    rows = [
        Row(
            number,
            prompt,
            _encode(prompt, tokenizer, model.config.seq_len),
            random.Random(s),
            tuple(stop),
            on_text,
        )
        for number, (prompt, s) in enumerate(zip(prompts, seeds, strict=True))
    ]
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    with torch.inference_mode():
        for first in range(0, len(rows), MAX_ROWS):
            _write(decoder, tokenizer, rows[first : first + MAX_ROWS], max_new_tokens, settings)
    return [row.sample() for row in rows]


def _encode(prompt: str, tokenizer: Tokenizer, seq_len: int) -> list[int]:
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    if len(ids) > seq_len:
        raise UserError(
            f"the prompt {prompt[:40]!r}… has {len(ids) - 1} tokens, and the model's context has "
            f"room for {seq_len - 1}: shorten it, or train with a larger model.seq_len"
        )
    return ids


@dataclass
class Row:
    """A text in the making."""

    number: int
    prompt: str
    ids: list[int]  # prompt and completion
    rng: random.Random
    stop: tuple[str, ...] = ()
    on_text: OnText | None = None
    tokens: int = 0
    ended: bool = False
    text: str = ""
    shown: int = 0  # characters of `text` given to on_text
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def append(self, token: int, tokenizer: Tokenizer) -> None:
        """Takes the next token; sets `ended` where the text ends by itself."""
        if token == tokenizer.eot:
            self.ended = True
        else:
            self.ids.append(token)
            self.tokens += 1
            self.text += self.characters.decode(tokenizer.decode_bytes([token]))
            found = [at for at in map(self.text.find, self.stop) if at >= 0]
            if found:
                self.text, self.ended = self.text[: min(found)], True
        self.show(final=False)

    def show(self, final: bool) -> None:
        """Gives the new characters away, but for those that may turn out to begin a stop string."""
        if self.on_text is None:
            return
        until = len(self.text) - (0 if final or self.ended else _overlap(self.text, self.stop))
        if until > self.shown:
            self.on_text(self.number, self.text[self.shown : until])
            self.shown = until

    def finish(self) -> None:
        self.show(final=True)
        self.seconds = time.perf_counter() - self.started

    def sample(self) -> Sample:
        return Sample(self.prompt, self.text, self.tokens, self.seconds, self.ended)


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` that a stop string begins with."""
    lengths = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    return next((n for n in lengths if any(s.startswith(text[-n:]) for s in stops)), 0)


# ---- the loop ---------------------------------------------------------------------------------


def _write(
    decoder: Decoder, tokenizer: Tokenizer, rows: list[Row], max_new_tokens: int, settings: Settings
) -> None:
    """Brings every row to its end. Row i of the cache is rows[i], always."""
    alive = [row for row in rows if row.tokens < max_new_tokens]
    if not alive:
        return
    seen = _seen(decoder, tokenizer, alive) if settings.repetition_penalty != 1 else None
    cache = KVCache.empty(decoder.model, len(alive))
    hidden = _read(decoder, cache, [row.ids for row in alive], list(range(len(alive))))
    while True:
        uniforms = [row.rng.random() for row in alive]
        chosen = _next(decoder, hidden, settings, uniforms, seen)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], chosen[:, None] != tokenizer.eot)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            row.append(token, tokenizer)
        done = [i for i, r in enumerate(alive) if r.ended or r.tokens == max_new_tokens]
        for i in reversed(done):
            alive[i].finish()
            _drop(i, alive, cache, chosen, *([] if seen is None else [seen]))
        if not alive:
            return
        if done:
            n = len(alive)
            chosen, seen = chosen[:n], None if seen is None else seen[:n]
            cache = KVCache(cache.keys[:, :n], cache.values[:, :n], cache.lengths[:n])
        hidden = _step(decoder, cache, alive, chosen)


def _next(
    decoder: Decoder,
    hidden: Tensor,
    settings: Settings,
    uniforms: list[float],
    seen: Tensor | None,
) -> Tensor:
    """The next token of each row, (B,), from the hidden states (B, C) at their ends."""
    wanted = 1 if settings.temperature == 0 else settings.top_k
    if decoder.screen is None or len(hidden) > 1 or seen is not None or wanted is None:
        return choose(decoder.logits(hidden), settings, uniforms, seen)
    ids, logits = decoder.screen(hidden, min(wanted, len(decoder.embed)))
    return ids[choose(logits, settings, uniforms)]


def _seen(decoder: Decoder, tokenizer: Tokenizer, rows: list[Row]) -> Tensor:
    """Which tokens each row has, (B, V), end-of-text excepted."""
    seen = torch.zeros(len(rows), len(decoder.embed), dtype=torch.bool)
    for i, row in enumerate(rows):
        seen[i, row.ids] = True
    seen[:, tokenizer.eot] = False
    return seen.to(decoder.embed.device)


def _drop(i: int, rows: list[Row], cache: KVCache, *others: Tensor) -> None:
    """Row i leaves: the last row takes its place."""
    last = len(rows) - 1
    if i != last:
        for tensor in (cache.keys.transpose(0, 1), cache.values.transpose(0, 1), cache.lengths):
            tensor[i] = tensor[last]
        for tensor in others:
            tensor[i] = tensor[last]
        rows[i] = rows[last]
    rows.pop()


def _read(decoder: Decoder, cache: KVCache, texts: list[list[int]], where: list[int]) -> Tensor:
    """Fills the rows `where` of the cache with texts; the hidden states (rows, C) at their ends."""
    device = cache.lengths.device
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text, device=device)
    fresh = KVCache.empty(decoder.model, len(texts))
    hidden = decoder.read(ids, fresh)  # (B, T, C)
    cache.keys[:, where] = fresh.keys
    cache.values[:, where] = fresh.values
    cache.lengths[where] = lengths
    return hidden[torch.arange(len(texts), device=device), lengths - 1]


def _step(decoder: Decoder, cache: KVCache, rows: list[Row], chosen: Tensor) -> Tensor:
    """The hidden states (B, C) after one more token a row; rows that are full keep a half."""
    limit = decoder.config.seq_len
    full = [i for i, length in enumerate(cache.lengths.tolist()) if length == limit]
    if full:
        kept = max(1, limit // 2)  # the chosen token is the last of them
        cache.lengths[full] = 0
        if kept > 1:
            _read(decoder, cache, [rows[i].ids[-kept:-1] for i in full], full)
    return decoder.step(chosen, cache)


# ---- choosing a token -------------------------------------------------------------------------


def choose(
    logits: Tensor, settings: Settings, uniforms: Sequence[float], seen: Tensor | None = None
) -> Tensor:
    """The next token of each row, (B,).

    Args:
        logits: (B, V).
        uniforms: one number in [0, 1) a row. The token is where the cumulative distribution, in
            the order of the ids, passes it, so that rounding hardly ever changes a text.
        seen: (B, V), True where the repetition penalty applies.
    """
    logits = logits.float()
    if seen is not None:
        penalty = settings.repetition_penalty
        weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, weaker, logits)
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    ids = None
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        ids = logits.topk(settings.top_k, dim=-1).indices.sort(dim=-1).values
        logits = logits.gather(-1, ids)
    logits = logits.double()
    logits -= logits.amax(dim=-1, keepdim=True)  # before the division: tiny temperatures are fine
    weights = (logits / settings.temperature).exp()  # (B, K)
    if settings.top_p is not None and settings.top_p < 1:
        weights = _nucleus(weights, settings.top_p)
    if settings.min_p:
        weights = torch.where(weights < settings.min_p, 0, weights)  # the likeliest weighs 1
    cumulative = weights.cumsum(dim=-1)
    uniform = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    where = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    where = where.clamp_max(weights.shape[-1] - 1)
    return (where if ids is None else ids.gather(-1, where)).flatten()


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """`weights` (B, K) without those outside the smallest set that reaches `top_p` of the sum."""
    target = top_p * weights.sum(dim=-1, keepdim=True)
    size = min(1024, weights.shape[-1])
    while True:  # the set is small, nearly always: a full sort is not worth its time
        heaviest = weights.topk(size, dim=-1).values
        before = heaviest.cumsum(dim=-1) - heaviest
        if size == weights.shape[-1] or bool((before[:, -1:] >= target).all()):
            break
        size = weights.shape[-1]
    least = torch.where(before < target, heaviest, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(weights < least, 0, weights)
