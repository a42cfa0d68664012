"""Requests in OpenAI's form: read from JSON, and checked."""

import json
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from slm.config import MAX_SEED
from slm.errors import UserError, excerpt, plain, unknown
from slm.model.next_token import SamplingSettings
from slm.server.errors import ApiError

MAX_STOPS, MAX_LOGPROBS = 4, 5

Prompt = str | list[str] | list[int] | list[list[int]]


class StreamOptions(BaseModel):
    """What a stream has besides the text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(None, description="One of /v1/models; without it the first one.")
    prompt: Prompt = Field(
        description="A text, or several. It opens a document, as in `slm sample`: an end-of-text "
        "is put in front. Or token ids, which are read exactly as they are."
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="16 by default. 0 is for echo, which then scores the prompt."
    )
    temperature: float | None = Field(None, description="1 by default; 0 is greedy.")
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0)] | None = Field(None, description="0: all tokens.")
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="The same seed gives the same texts; without it one is drawn."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        """Refuse in one sentence what no branch of the union takes."""
        kinds = {type(item) for item in value} if isinstance(value, list) else set()
        whole = isinstance(value, str) or (len(kinds) == 1 and kinds <= {str, int, list})
        if not whole:
            raise ValueError("give a text, a list of texts, a list of token ids, or several such")
        if kinds == {list} and any(type(i) is not int for ids in value for i in ids):
            raise ValueError("give lists of token ids, which are whole numbers")
        return value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or "" in stops:
            raise ValueError(f"give up to {MAX_STOPS} texts, none of them empty")
        return stops

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def copies(self) -> int:
        return self.n or 1

    @property
    def new_tokens(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def texts(self) -> list[str | list[int]]:
        """The prompts, as texts or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(i) for i in self.prompt if isinstance(i, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]

    def sampling(self) -> SamplingSettings:
        """Raises ApiError for a value that is out of range."""
        try:
            return SamplingSettings(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=self.top_k or None,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=(
                    1.0 if self.repetition_penalty is None else self.repetition_penalty
                ),
            )
        except UserError as error:
            param = str(error).partition("=")[0]
            raise ApiError(400, str(error), param=param, code="invalid_value") from error


def parse(body: bytes) -> CompletionRequest:
    """A completion's request. Raises ApiError, with status 400, for what is none."""
    try:
        fields = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = excerpt(str(error), 200)
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be one JSON object", code="invalid_json")
    for name in fields:
        if name not in CompletionRequest.model_fields:
            message = str(unknown("argument", name, CompletionRequest.model_fields))
            raise ApiError(400, message, param=excerpt(name), code="unknown_parameter")
    try:
        request = CompletionRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else None
        message = f"{'.'.join(map(str, first['loc']))}: {plain(first['msg'])}"
        raise ApiError(400, message, param=param, code="invalid_value") from error
    _check_supported(request)
    return request


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_supported(request: CompletionRequest) -> None:
    """Raise ApiError for what would not do what the client expects of it."""
    unsupported: dict[str, tuple[bool, str]] = {
        "suffix": (bool(request.suffix), "these models continue texts, and fill no gaps"),
        "logit_bias": (bool(request.logit_bias), "leave it out"),
        "presence_penalty": (bool(request.presence_penalty), "use repetition_penalty"),
        "frequency_penalty": (bool(request.frequency_penalty), "use repetition_penalty"),
        "best_of": (request.best_of not in (None, request.copies), "it must be equal to n"),
        "stream_options": (
            request.stream_options is not None and not request.stream,
            "it is for stream=true",
        ),
    }
    for name, (given, remedy) in unsupported.items():
        if given:
            message = f"{name} is not supported: {remedy}"
            raise ApiError(400, message, param=name, code="unsupported_value")
    if request.new_tokens == 0 and not request.echo:
        message = "max_tokens: 0 is for echo=true, which returns and scores the prompt"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    texts = [text for text in (*request.texts, *request.stops) if isinstance(text, str)]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"a text has half of a surrogate pair at character {error.start}"
            raise ApiError(400, message, code="invalid_value") from error
