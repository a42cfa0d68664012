"""The HTTP API, in OpenAI's form: completions, models, health and metrics."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm import __version__
from slm.errors import UserError
from slm.server.answers import Answer, Choice, prepare
from slm.server.engine import Busy, Closed, Progress
from slm.server.errors import ApiError, failed, timed_out
from slm.server.metrics import Metrics
from slm.server.page_files import add_page
from slm.server.schema import CompletionRequest, parse
from slm.server.settings import ServerSettings
from slm.server.versions import ServedModel, ServedModels

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
CLOSING = "closing"  # the code of an error
GONE = 499  # what nginx logs for a client that has left

REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": CompletionRequest.model_json_schema()}},
    }
}


def create_app(models: ServedModels, settings: ServerSettings | None = None) -> FastAPI:
    """The application. Its models stay the caller's, who closes them."""
    settings = settings or ServerSettings()
    metrics = Metrics(models)
    # The pages that show an API's schema load their code from elsewhere.
    app = FastAPI(
        title="slm", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.models, app.state.settings, app.state.metrics = models, settings, metrics
    app.add_middleware(Measured, metrics=metrics)
    _report_errors(app)
    add_page(app)

    def check(request: Request) -> None:
        _check_host(request, settings)
        _check_key(request, settings)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        served = {name: models.get(name) for name in models.names()}
        if not all(each.engine.alive for each in served.values()):
            raise failed()
        versions = {name: each.version for name, each in served.items()}
        stale = sorted(models.stale)  # aliases that are not followed; why: /v1/models, and the log
        return {"status": "ok", "models": list(served), "versions": versions, "stale": stale}

    @app.get("/metrics", dependencies=[Depends(check)])
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", dependencies=[Depends(check)])
    async def list_models() -> dict[str, Any]:
        served = [_describe(find(models, name), models) for name in models.names()]
        return {"object": "list", "data": served}

    @app.get("/v1/models/{name:path}", dependencies=[Depends(check)])
    async def show_model(name: str) -> dict[str, Any]:
        return _describe(find(models, name), models)

    @app.post("/v1/completions", dependencies=[Depends(check)], openapi_extra=REQUEST_BODY)
    async def complete(request: Request) -> Response:
        deadline = time.monotonic() + settings.timeout
        asked = parse(await read_body(request, settings))
        answer = begin(asked, models, settings, deadline)
        if asked.stream:
            return EventStream(answer, settings, metrics)
        return await collect(answer, request, settings, metrics)

    @app.post("/v1/chat/completions", dependencies=[Depends(check)])
    async def chat(request: Request) -> Response:
        raise ApiError(
            400,
            "these models continue texts and have no chat template: POST /v1/completions",
            code="no_chat_template",
        )

    return app


def find(models: ServedModels, name: str | None) -> ServedModel:
    """The model of a name. Raises ApiError, with status 404, where there is none."""
    try:
        return models.get(name)
    except UserError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error


def _describe(model: ServedModel, models: ServedModels) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.opened),
        "owned_by": "slm",
        "version": model.version,
        "context": model.seq_len,
        "vocabulary": model.tokenizer.n_vocab,
        "not_followed": models.stale.get(model.name),  # why a newer version is not served
    }


# ---- who may ask ------------------------------------------------------------------------------


def _check_key(request: Request, settings: ServerSettings) -> None:
    if settings.api_key is None:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), settings.api_key.encode())
    if kind.lower() != "bearer" or not right:
        raise ApiError(
            401,
            "the API key is wrong or missing: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_host(request: Request, settings: ServerSettings) -> None:
    """Without a key answer this machine alone: not a web page that names us by its own domain."""
    host = request.headers.get("host", "").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if settings.api_key is None and name not in LOCAL_NAMES:
        raise ApiError(
            403,
            f"without an API key only {', '.join(LOCAL_NAMES)} are answered, not {name[:100]!r}: "
            "start the server with --api-key",
            code="wrong_host",
        )


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """A request's body of JSON. Raises ApiError where it is too large, too slow or another type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # no web page can send it without being asked whether it may
        message = f"the content type is {kind[:100]!r}: send application/json"
        raise ApiError(415, message, code="unsupported_media_type")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for part in request.stream():
                body += part
                if len(body) > settings.max_body:
                    message = f"the body is larger than {settings.max_body:,} bytes"
                    headers = {"Connection": "close"}
                    raise ApiError(413, message, code="body_too_large", headers=headers)
    except TimeoutError as error:
        message = f"the body did not arrive within {settings.body_timeout:g} s"
        headers = {"Connection": "close"}
        raise ApiError(408, message, code="body_timeout", headers=headers) from error
    return bytes(body)


# ---- answers ----------------------------------------------------------------------------------


def begin(
    request: CompletionRequest, models: ServedModels, settings: ServerSettings, deadline: float
) -> Answer:
    """The answer to a request, whose texts wait for a place. Raises ApiError where it is refused.

    A model that was replaced since it was looked up takes no more texts: its successor does.
    """
    while True:
        model = find(models, request.model)
        answer = prepare(request, model, settings, deadline)
        try:
            submit(answer)
        except ApiError as error:
            if error.code != CLOSING or find(models, request.model) is model:
                raise
        else:
            return answer


def submit(answer: Answer) -> None:
    """Let the texts of an answer wait for a place. Raises ApiError where there is no room."""
    try:
        answer.model.engine.submit(answer.tickets)
    except Busy as error:
        raise ApiError(
            429,
            f"{error}: try again in a second",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": "1"},
        ) from error
    except Closed as error:
        raise ApiError(
            503,
            f"{error}: try again",
            kind="server_error",
            code=CLOSING,
            headers={"Retry-After": "1"},
        ) from error


async def collect(
    answer: Answer, request: Request, settings: ServerSettings, metrics: Metrics
) -> Response:
    """The whole answer, once it is done; nothing where the client has left."""
    try:
        fields = await _unless_gone(_all_fields(answer, metrics, settings), request.receive)
    finally:
        release(answer, metrics)
    if fields is None:
        return Response(status_code=GONE)
    return JSONResponse({**answer.body(fields), "usage": answer.usage()})


async def _all_fields(
    answer: Answer, metrics: Metrics, settings: ServerSettings
) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = [{}] * len(answer.choices)
    async for choice, progress in updates(answer, metrics, settings):
        fields[choice.index] = choice.fields(progress, answer.model.tokenizer)
    return fields


async def updates(
    answer: Answer, metrics: Metrics, settings: ServerSettings
) -> AsyncIterator[tuple[Choice, Progress]]:
    """What is new of the texts, until all are done.

    Raises ApiError where one is out of time, or failed.
    """
    left = len(answer.choices)
    while left:
        choice, progress = await answer.progress.get()
        if progress.end:
            metrics.finished.labels(answer.model.name, progress.end).inc()
            choice.end = progress.end
            left -= 1
        if progress.end == "timeout":
            raise timed_out(settings.timeout)
        if progress.end == "error":
            raise failed()
        yield choice, progress


async def _unless_gone(
    work: Awaitable[list[dict[str, Any]]], receive: Receive
) -> list[dict[str, Any]] | None:
    """The result of some work, which is dropped where the client leaves; None then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def release(answer: Answer, metrics: Metrics) -> None:
    """Give back the places of texts that nobody waits for any more."""
    left = [t for t, choice in zip(answer.tickets, answer.choices, strict=True) if not choice.end]
    if left:
        metrics.finished.labels(answer.model.name, "gone").inc(len(left))
        answer.model.engine.cancel(left)


class EventStream(Response):
    """An answer as server-sent events, one or more per token.

    A client that reads slowly delays nobody: what is new meanwhile is sent together.
    """

    def __init__(self, answer: Answer, settings: ServerSettings, metrics: Metrics) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.answer, self.settings, self.metrics = answer, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(wait_until_gone(receive))
        try:
            # A client that reads nothing may not keep its connection for ever.
            await asyncio.wait(
                {task, gone},
                timeout=self.settings.timeout + 30,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                task.result()
        finally:
            release(self.answer, self.metrics)
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        started = time.monotonic()
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        pending: list[bytes] = []
        try:
            async for choice, progress in updates(self.answer, self.metrics, self.settings):
                if not choice.begun:
                    self.metrics.first_token_seconds.observe(time.monotonic() - started)
                fields = choice.fields(progress, self.answer.model.tokenizer)
                pending.append(self._event([fields]))
                if self.answer.progress.empty():
                    await _send_part(send, b"".join(pending))
                    pending = []
            if self._reports_usage:
                pending.append(self._event([], self.answer.usage()))
        except ApiError as error:  # the status is sent already
            pending.append(_data(error.body()))
        pending.append(b"data: [DONE]\n\n")
        await _send_part(send, b"".join(pending), more=False)

    @property
    def _reports_usage(self) -> bool:
        options = self.answer.request.stream_options
        return options is not None and options.include_usage

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        body = self.answer.body(choices)
        return _data({**body, "usage": usage} if self._reports_usage else body)


def _data(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


async def _send_part(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


# ---- around every request ---------------------------------------------------------------------


def _report_errors(app: FastAPI) -> None:
    """Report every error in OpenAI's form."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def others(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        return ApiError(error.status_code, message, code="not_found", headers=headers).response()

    async def invalid(request: Request, error: Exception) -> Response:
        return ApiError(400, str(error), code="invalid_value").response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def unexpected(request: Request, error: Exception) -> Response:
        return failed().response()

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        ApiError: ours,
        HTTPException: others,
        RequestValidationError: invalid,
        ClientDisconnect: gone,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


class Measured:
    """Counts requests by route and status, and the seconds that they take."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            self.metrics.cut += 1
            raise
        finally:
            # Paths that are no routes are one line, or anybody could make any number of lines.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)
