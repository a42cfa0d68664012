"""A completion's answer: what its texts are so far, in OpenAI's form."""

import asyncio
import codecs
import secrets
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slm.errors import UserError
from slm.model.batch import Completion
from slm.model.sample import encode_prompt, row_seeds
from slm.server.engine import End, Progress, Ticket
from slm.server.errors import ApiError
from slm.server.schema import CompletionRequest
from slm.server.settings import ServerSettings
from slm.server.spelling import Logprobs
from slm.server.versions import ServedModel
from slm.tokens.tokenizer.bpe import Tokenizer

MAX_DRAWN_SEED = 2**31 - 1  # which every client's integers hold


@dataclass
class Choice:
    """One text of an answer."""

    index: int
    row: Completion
    prompt_tokens: int  # without the end-of-text in front of a text
    echoed: str  # the prompt, until it is sent as part of the text; empty where it is not
    logprobs: Logprobs | None
    sent: int = 0  # characters of the text
    begun: bool = False
    end: End | None = None

    def fields(self, progress: Progress, tokenizer: Tokenizer) -> dict[str, Any]:
        """A choice with what is new of it."""
        text = self.echoed + progress.text
        self.echoed, self.end = "", progress.end
        self.sent += len(text)
        logprobs = None
        if self.logprobs is not None:
            if not self.begun and self.row.scores_prompt:
                self.logprobs.add(self.row.prompt_scores[-self.prompt_tokens or None :])
            self.logprobs.add(progress.scores)
            scores = self.row.scores
            cut = self.row.ended and scores and scores[-1].token != tokenizer.eot
            logprobs = self.logprobs.take(None if self.end and not cut else self.sent)
        self.begun = True
        return {
            "text": text,
            "index": self.index,
            "logprobs": logprobs,
            "finish_reason": self.end,
            "seed": self.row.seed,
        }


@dataclass
class Answer:
    """The texts that a request asked for, and what is reported of them."""

    request: CompletionRequest
    model: ServedModel
    choices: list[Choice]
    tickets: list[Ticket]
    progress: "asyncio.Queue[tuple[Choice, Progress]]"
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.version,
            "choices": choices,
        }

    def usage(self) -> dict[str, int]:
        """Tokens read, each prompt once, and tokens generated; end-of-text is not counted."""
        prompts = {choice.row.number: choice.prompt_tokens for choice in self.choices}
        read = sum(prompts.values())
        generated = sum(choice.row.tokens for choice in self.choices)
        return {
            "prompt_tokens": read,
            "completion_tokens": generated,
            "total_tokens": read + generated,
        }


def prepare(
    request: CompletionRequest, model: ServedModel, settings: ServerSettings, deadline: float
) -> Answer:
    """The answer to a request, before anything is generated.

    Raises ApiError for a request that is too long, or out of range.
    """
    rows = _rows(request, model, settings)
    loop = asyncio.get_running_loop()
    progress: asyncio.Queue[tuple[Choice, Progress]] = asyncio.Queue()
    choices, tickets = [], []
    for index, row in enumerate(rows):
        logprobs = Logprobs(model.tokenizer, request.logprobs or 0)
        choice = Choice(
            index,
            row,
            prompt_tokens=len(row.ids) - isinstance(request.texts[row.number], str),
            echoed=row.prompt if request.echo else "",
            logprobs=logprobs if request.logprobs is not None else None,
        )
        choices.append(choice)
        tickets.append(
            Ticket(
                row,
                put=partial(_put, progress, choice),
                call=loop.call_soon_threadsafe,
                deadline=deadline,
                streams=bool(request.stream),
            )
        )
    return Answer(request, model, choices, tickets, progress)


def _put(
    queue: "asyncio.Queue[tuple[Choice, Progress]]", choice: Choice, progress: Progress
) -> None:
    queue.put_nowait((choice, progress))


def _rows(
    request: CompletionRequest, model: ServedModel, settings: ServerSettings
) -> list[Completion]:
    sampling = request.sampling()
    texts = request.texts
    if len(texts) * request.copies > settings.max_texts:
        message = (
            f"{len(texts)} prompts times n={request.copies} are more than {settings.max_texts} "
            "texts: send several requests"
        )
        raise ApiError(400, message, param="n", code="invalid_value")
    if request.new_tokens > settings.max_tokens:
        message = (
            f"max_tokens={request.new_tokens}: this server generates up to {settings.max_tokens} "
            "tokens per text"
        )
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    seed = secrets.randbelow(MAX_DRAWN_SEED + 1) if request.seed is None else request.seed
    seeds = row_seeds(seed, len(texts) * request.copies)
    rows: list[Completion] = []
    for number, prompt in enumerate(texts):
        text, ids = _prompt(prompt, model)
        for _ in range(request.copies):
            row = Completion(
                number=number,
                prompt=text,
                ids=list(ids),
                seed=seeds[len(rows)],
                settings=sampling,
                max_new_tokens=request.new_tokens,
                stop=request.stops,
                alternatives=request.logprobs,
                scores_prompt=bool(request.echo) and request.logprobs is not None,
            )
            if not isinstance(prompt, str):  # whose last character may be continued
                row.characters.decode(model.tokenizer.decode_bytes(ids))
            rows.append(row)
    return rows


def _prompt(prompt: str | list[int], model: ServedModel) -> tuple[str, list[int]]:
    """A prompt's text and tokens. Raises ApiError where it does not fit the context."""
    tokenizer, room = model.tokenizer, model.seq_len
    if isinstance(prompt, str):
        try:
            return prompt, encode_prompt(prompt, tokenizer, room)
        except UserError as error:
            code = "context_length_exceeded"
            raise ApiError(400, str(error), param="prompt", code=code) from error
    if not prompt or not all(0 <= token < tokenizer.n_vocab for token in prompt):
        message = f"a prompt of ids needs at least one, each from 0 to {tokenizer.n_vocab - 1}"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    if len(prompt) > room:
        message = f"the prompt has {len(prompt)} tokens, and the model's context has {room}"
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(tokenizer.decode_bytes(prompt)), prompt
