"""Text from a model: a KV cache, one pass over the prompts, then one token per row per step.

A row's text depends on its prompt, its seed and the settings, and on nothing else: not on the other
rows, nor on how many they are. Each row draws one uniform number per token from a generator of its
own; rows that have ended leave the batch. One seed for several rows gives each row a seed of its
own, made from it and the row's number, so that one prompt twice is two texts.

Beyond the context: when a row has filled it, its last half is kept and read anew, and the row
continues from there. A prompt that does not fit by itself is refused.
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from slm.config import MAX_SEED, SEED_RULE, Weights
from slm.errors import UserError, unknown
from slm.model.batch import Batch, Completion, OnText
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.next_token import SamplingSettings, is_whole, require
from slm.model.saved import LoadedModel
from slm.tokens.permutation import derive_seed
from slm.tokens.tokenizer.bpe import Tokenizer

MAX_ROWS = 64  # rows in one batch: more prompts than that take turns


@dataclass(frozen=True)
class Sample:
    """What a model wrote."""

    prompt: str
    completion: str
    tokens: int  # generated, end-of-text not counted
    seconds: float  # from the call until this text was done
    ended: bool  # by end-of-text or a stop string, not by the limit
    seed: int  # of this row: the same prompt with it, alone, is the same text


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
    valid = is_whole(max_new_tokens) and max_new_tokens >= 0
    require(valid, "max_new_tokens", max_new_tokens, "it must be a whole number of 0 or above")
    stops = as_texts("stop", stop)
    require("" not in stops, "stop", "", "an empty string would end every text; leave it out")
    texts = as_texts("prompts", [prompts] if isinstance(prompts, str) else prompts)
    rows = []
    for number, (prompt, row_seed) in enumerate(
        zip(texts, row_seeds(seed, len(texts)), strict=True)
    ):
        ids = encode_prompt(prompt, tokenizer, model.config.seq_len)
        rows.append(
            Completion(number, prompt, ids, row_seed, settings, max_new_tokens, stops, on_text)
        )
    if max_new_tokens and rows:
        decoder = model if isinstance(model, Decoder) else Decoder(model)
        for first in range(0, len(rows), MAX_ROWS):
            some = rows[first : first + MAX_ROWS]
            batch = Batch(decoder, tokenizer, len(some))
            batch.add(some)
            while batch.rows:
                batch.choose()
                batch.read()
    return [
        Sample(row.prompt, row.text, row.tokens, row.seconds, row.ended, row.seed) for row in rows
    ]


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
    require(is_whole(value) and 0 <= value <= MAX_SEED, "seed", value, SEED_RULE)


def as_texts(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Several texts. Raises UserError for one alone, whose characters are not meant."""
    listed = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
    require(listed, name, texts, "give a list of texts")
    given = tuple(texts)
    for text in given:
        require(isinstance(text, str), name, text, "it is no text")
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


def encode_prompt(prompt: str, tokenizer: Tokenizer, seq_len: int) -> list[int]:
    """The tokens of a prompt, after an end-of-text. Raises UserError beyond the context."""
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    if len(ids) > seq_len:
        raise UserError(
            f"the prompt {prompt[:40]!r}… has {len(ids) - 1} tokens, and the model's context has "
            f"room for {seq_len - 1}: shorten it, or train with a larger model.seq_len"
        )
    return ids
