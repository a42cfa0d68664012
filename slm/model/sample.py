"""Text from a model: a KV cache, one pass over the prompts, then one token per row per step.

A row's text depends on its prompt, its seed and the settings, and on nothing else: not on the other
rows, nor on how many they are. Each row draws one uniform number per token from a generator of its
own; rows that have ended leave the batch. One seed for several rows gives each row a seed of its
own, made from it and the row's number, so that one prompt twice is two texts.

Beyond the context: when a row has filled it, its last half is kept and read anew, and the row
continues from there. A prompt that does not fit by itself is refused.
"""

import codecs
import random
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

from slm.config import MAX_SEED, SEED_RULE, Weights
from slm.errors import UserError, unknown
from slm.model.decode import Decoder, KVCache
from slm.model.gpt import GPT
from slm.model.saved import LoadedModel
from slm.tokens.loader import derive_seed
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
    seed: int  # of this row: the same prompt with it, alone, is the same text


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is sampled. Raises UserError for values of another type or out of range.

    `temperature` divides the logits, 0 is greedy. `top_k` keeps the k likeliest tokens, then
    `top_p` the likeliest that together reach that probability (Holtzman et al. 2019,
    arXiv:1904.09751), then `min_p` those at least that fraction as likely as the likeliest (Nguyen
    et al. 2024, arXiv:2407.01082). `repetition_penalty` comes first: it weakens every token that
    is in the row (Keskar et al. 2019, arXiv:1909.05858), end-of-text excepted.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        t, k, p, m, r = (
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty,
        )  # fmt: skip
        checks = (
            ("temperature", t, _is_real(t) and 0 <= t < float("inf"), "a number, 0 or above"),
            (
                "top_k",
                k,
                k is None or (_is_whole(k) and k >= 1),
                "a whole number, 1 or above, or none",
            ),
            ("top_p", p, p is None or (_is_real(p) and 0 < p <= 1), "a number above 0, at most 1"),
            ("min_p", m, m is None or (_is_real(m) and 0 <= m <= 1), "a number between 0 and 1"),
            (
                "repetition_penalty",
                r,
                _is_real(r) and 0 < r < float("inf"),
                "a number above 0 (1: no penalty)",
            ),
        )
        for name, value, valid, rule in checks:
            _require(valid, name, value, f"it must be {rule}")


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _require(valid: bool, name: str, value: object, rule: str) -> None:
    """Raise UserError where a value is not valid, with the value shortened."""
    if not valid:
        raise UserError(f"{name}={reprlib.repr(value)}: {rule}")


def generate(
    model: GPT | Decoder,
    tokenizer: Tokenizer,
    prompts: str | Iterable[str],
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
    """One completion per prompt, in their order.

    Args:
        model: a `Decoder`, made from a model once, saves making one at every call.
        prompts: texts that the model continues, as if each opened a document; or one text.
        temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingSettings`.
        seed: as of `row_seeds`. The same seed gives the same texts.
        stop: strings that end a text; neither they nor what follows is part of it.
        on_text: receives each text as it grows, in whole characters.

    Raises:
        UserError: a setting is of another type or out of range, or a prompt does not fit the
            context.
    """
    settings = SamplingSettings(temperature, top_k, top_p, min_p, repetition_penalty)
    valid = _is_whole(max_new_tokens) and max_new_tokens >= 0
    _require(valid, "max_new_tokens", max_new_tokens, "it must be a whole number of 0 or above")
    stops = _texts("stop", stop)
    _require("" not in stops, "stop", "", "an empty string would end every text; leave it out")
    texts = _texts("prompts", [prompts] if isinstance(prompts, str) else prompts)
    rows = []
    for number, (prompt, row_seed) in enumerate(
        zip(texts, row_seeds(seed, len(texts)), strict=True)
    ):
        ids = _encode(prompt, tokenizer, model.config.seq_len)
        rows.append(Completion(number, prompt, ids, row_seed, stops, on_text))
    if not rows:
        return []
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    with torch.inference_mode():
        for first in range(0, len(rows), MAX_ROWS):
            batch = rows[first : first + MAX_ROWS]
            _generate_batch(decoder, tokenizer, batch, max_new_tokens, settings)
    return [row.sample() for row in rows]


def row_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """The seeds of so many rows. Raises UserError for what is no seed, or not as many.

    Of one seed, row 0 has that seed itself, and every other row one that is made from it and the
    row's number. Several are those of the rows.
    """
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        _check_seed(seed)
        return [int(seed) if row == 0 else derive_seed(seed, "row", row) for row in range(rows)]
    seeds = list(seed)
    for given in seeds:
        _check_seed(given)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} prompts: give one, or one per prompt")
    return list(map(int, seeds))


def _check_seed(value: object) -> None:
    _require(_is_whole(value) and 0 <= value <= MAX_SEED, "seed", value, SEED_RULE)


def _texts(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Several texts. Raises UserError for one alone, whose characters are not meant."""
    listed = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
    _require(listed, name, texts, "give a list of texts")
    given = tuple(texts)
    for text in given:
        _require(isinstance(text, str), name, text, "it is no text")
    return given


def sample(
    model: LoadedModel,
    prompts: str | Iterable[str],
    *,
    weights: Weights = "float32",
    **settings: Any,
) -> list[Sample]:
    """Texts that a loaded model writes: one per prompt, in their order.

    Args:
        model: what `slm.load_model` returns.
        prompts: one text, or several.
        weights: "int8" rounds them to eight bits and reads these: faster for one prompt on a CPU.
        settings: those of `generate`, such as `temperature`, `top_k`, `max_new_tokens`, `seed`.

    Raises UserError for what is no loaded model, for settings that do not exist, and as `generate`.
    """
    if not isinstance(model, LoadedModel):
        remedy = "give what slm.load_model(RUN) returns"
        raise UserError(f"slm.sample takes a loaded model, not {reprlib.repr(model)}: {remedy}")
    names = [name for name, p in signature(generate).parameters.items() if p.kind == p.KEYWORD_ONLY]
    for name in settings:
        if name not in names:
            raise unknown("setting", name, [*names, "weights"])
    return generate(Decoder(model.model, weights), model.tokenizer, prompts, **settings)


def _encode(prompt: str, tokenizer: Tokenizer, seq_len: int) -> list[int]:
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    if len(ids) > seq_len:
        raise UserError(
            f"the prompt {prompt[:40]!r}… has {len(ids) - 1} tokens, and the model's context has "
            f"room for {seq_len - 1}: shorten it, or train with a larger model.seq_len"
        )
    return ids


@dataclass
class Completion:
    """A text while it is generated: a row of the batch."""

    number: int
    prompt: str
    ids: list[int]  # prompt and completion
    seed: int
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

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

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
        self.show(final=False)

    def show(self, final: bool) -> None:
        """Pass the new characters on, except those that may turn out to begin a stop string."""
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
        return Sample(self.prompt, self.text, self.tokens, self.seconds, self.ended, self.seed)


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` that a stop string begins with.

    >>> _overlap("She said Th", ["The end", "\\n"])
    2
    """
    lengths = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    return next((n for n in lengths if any(s.startswith(text[-n:]) for s in stops)), 0)


# ---- the loop ---------------------------------------------------------------------------------


def _generate_batch(
    decoder: Decoder,
    tokenizer: Tokenizer,
    rows: list[Completion],
    max_new_tokens: int,
    settings: SamplingSettings,
) -> None:
    """Complete every row. Row i of the cache is always that of active[i]."""
    active = [row for row in rows if row.tokens < max_new_tokens]
    if not active:
        return
    penalised = None
    if settings.repetition_penalty != 1:
        penalised = _tokens_of_rows(decoder, tokenizer, active)  # (B, V)
    cache = KVCache.empty(decoder.model, len(active))
    hidden = _prefill(decoder, cache, [row.ids for row in active], list(range(len(active))))
    while True:
        uniforms = [row.rng.random() for row in active]
        tokens = _next_tokens(decoder, hidden, settings, uniforms, penalised)  # (B,)
        if penalised is not None:
            penalised.scatter_(1, tokens[:, None], tokens[:, None] != tokenizer.eot)
        for row, token in zip(active, tokens.tolist(), strict=True):
            row.append(token, tokenizer)
        done = [i for i, r in enumerate(active) if r.ended or r.tokens == max_new_tokens]
        for i in reversed(done):
            active[i].finish()
            _remove_row(i, active, cache, tokens, *([] if penalised is None else [penalised]))
        if not active:
            return
        if done:
            B = len(active)
            tokens, penalised = tokens[:B], None if penalised is None else penalised[:B]
            cache = KVCache(cache.keys[:, :B], cache.values[:, :B], cache.lengths[:B])
        hidden = _step(decoder, cache, active, tokens)


def _next_tokens(
    decoder: Decoder,
    hidden: Tensor,
    settings: SamplingSettings,
    uniforms: list[float],
    penalised: Tensor | None,
) -> Tensor:
    """The next token of each row, (B,), from the hidden states (B, C) at their ends."""
    k = 1 if settings.temperature == 0 else settings.top_k
    if decoder.screen is None or len(hidden) > 1 or penalised is not None or k is None:
        return sample_tokens(decoder.logits(hidden), settings, uniforms, penalised)
    ids, logits = decoder.screen(hidden, min(k, len(decoder.embed)))  # (N,), (1, N)
    return ids[sample_tokens(logits, settings, uniforms)]


def _tokens_of_rows(decoder: Decoder, tokenizer: Tokenizer, rows: list[Completion]) -> Tensor:
    """Whether each token is in each row, (B, V), end-of-text excepted."""
    mask = torch.zeros(len(rows), len(decoder.embed), dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, row.ids] = True
    mask[:, tokenizer.eot] = False
    return mask.to(decoder.embed.device)


def _remove_row(i: int, rows: list[Completion], cache: KVCache, *tensors: Tensor) -> None:
    """Remove row i; the last row takes its place, in the cache and in other tensors (B, …)."""
    last = len(rows) - 1
    if i != last:
        cached = (cache.keys.transpose(0, 1), cache.values.transpose(0, 1), cache.lengths)
        for tensor in (*cached, *tensors):
            tensor[i] = tensor[last]
        rows[i] = rows[last]
    rows.pop()


def _prefill(decoder: Decoder, cache: KVCache, texts: list[list[int]], rows: list[int]) -> Tensor:
    """Fill some rows of the cache with texts; the hidden states (rows, C) at their ends."""
    device = cache.lengths.device
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)  # (rows, T)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text, device=device)
    fresh = KVCache.empty(decoder.model, len(texts))
    hidden = decoder.prefill(ids, fresh)  # (rows, T, C)
    cache.keys[:, rows] = fresh.keys
    cache.values[:, rows] = fresh.values
    cache.lengths[rows] = lengths
    return hidden[torch.arange(len(texts), device=device), lengths - 1]


def _step(decoder: Decoder, cache: KVCache, rows: list[Completion], tokens: Tensor) -> Tensor:
    """The hidden states (B, C) after one more token per row; a full row keeps its last half."""
    limit = decoder.config.seq_len
    full = [i for i, length in enumerate(cache.lengths.tolist()) if length == limit]
    if full:
        kept = max(1, limit // 2)  # with the new token, the last of them
        cache.lengths[full] = 0
        if kept > 1:
            _prefill(decoder, cache, [rows[i].ids[-kept:-1] for i in full], full)
    return decoder.step(tokens, cache)


# ---- sampling a token -------------------------------------------------------------------------


def sample_tokens(
    logits: Tensor,
    settings: SamplingSettings,
    uniforms: Sequence[float],
    penalised: Tensor | None = None,
) -> Tensor:
    """The next token of each row, (B,).

    Args:
        logits: (B, V).
        uniforms: one number in [0, 1) per row. The token is where the cumulative distribution, in
            the order of the ids, passes it, so that rounding hardly ever changes a text.
        penalised: (B, V), True where the repetition penalty applies.

    Three rows of the probabilities 0.5, 0.1, 0.4; top-k keeps the tokens 0 and 2, with the weights
    1 and 0.8 and so the cumulative weights 1 and 1.8. The uniforms times 1.8 are 0.9, 1.08, 1.782:

    >>> logits = torch.tensor([0.5, 0.1, 0.4]).log().expand(3, -1)
    >>> sample_tokens(logits, SamplingSettings(top_k=2), [0.5, 0.6, 0.99])
    tensor([0, 2, 2])
    """
    logits = logits.float()
    if penalised is not None:
        penalty = settings.repetition_penalty
        weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(penalised, weakened, logits)
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    ids = None  # of the K tokens that are left; None: all V
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        ids = logits.topk(settings.top_k, dim=-1).indices.sort(dim=-1).values  # (B, K)
        logits = logits.gather(-1, ids)
    device = logits.device
    if device.type == "mps":  # which has no float64
        logits, ids = logits.cpu(), None if ids is None else ids.cpu()
    logits = logits.double()
    logits -= logits.amax(dim=-1, keepdim=True)  # before the division: tiny temperatures are fine
    weights = (logits / settings.temperature).exp()  # (B, K)
    if settings.top_p is not None and settings.top_p < 1:
        weights = _nucleus(weights, settings.top_p)
    if settings.min_p:
        weights = torch.where(weights < settings.min_p, 0, weights)  # the likeliest weighs 1
    cumulative = weights.cumsum(dim=-1)  # (B, K)
    uniform = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]  # (B, 1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    index = index.clamp_max(weights.shape[-1] - 1)  # (B, 1)
    return (index if ids is None else ids.gather(-1, index)).flatten().to(device)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """`weights` (B, K) without those outside the smallest set that reaches `top_p` of the sum.

    Of a sum of 10, 0.8 are 8. The weights in descending order and the sums before each are 4 3 1.5
    1 0.5 and 0 4 7 8.5 9.5: those with less than 8 before them stay.

    >>> _nucleus(torch.tensor([[1.0, 4.0, 0.5, 3.0, 1.5]]), 0.8)
    tensor([[0.0000, 4.0000, 0.0000, 3.0000, 1.5000]])
    """
    target = top_p * weights.sum(dim=-1, keepdim=True)  # (B, 1)
    size = min(1024, weights.shape[-1])
    while True:  # the set is small, nearly always: a full sort is not worth its time
        heaviest = weights.topk(size, dim=-1).values  # (B, size)
        before = heaviest.cumsum(dim=-1) - heaviest
        if size == weights.shape[-1] or bool((before[:, -1:] >= target).all()):
            break
        size = weights.shape[-1]
    smallest = torch.where(before < target, heaviest, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(weights < smallest, 0, weights)
