"""Random tiny models behind the HTTP API: in this process, or on a port of 127.0.0.1."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from tiny_model import BYTES, tiny_model

from slm.model.saved import LoadedModel
from slm.server.api import create_app
from slm.server.settings import ServerSettings
from slm.server.versions import ServedModel, ServedModels, engine_of

GOOD = {"prompt": "Once", "max_tokens": 12, "temperature": 0.9, "seed": 3}
ENDLESS = {"prompt": "Once", "max_tokens": 100_000, "temperature": 0}  # it repeats itself


def served_model(name: str, seed: int = 0, **limits: int) -> ServedModel:
    loaded = LoadedModel(tiny_model("qwen3", seed), BYTES)
    settings = {"max_batch": 4, "queue": 64, **limits}
    return ServedModel(name, name, engine_of(loaded, weights="float32", **settings), BYTES)


@contextmanager
def tiny_app(*names: str, **limits: Any) -> Iterator[FastAPI]:
    """The application with random models of these names, which is that of its first seeds."""
    settings = ServerSettings(**{"max_batch": 4, "queue": 64, **limits})
    of_engine = {"max_batch": settings.max_batch, "queue": settings.queue}
    models = ServedModels(
        [served_model(name, seed, **of_engine) for seed, name in enumerate(names or ("tiny",))]
    )
    try:
        yield create_app(models, settings)
    finally:
        models.close(timeout=0)


def in_process(app: FastAPI) -> httpx.AsyncClient:
    """A client without a socket. A fault of the server is raised where it happens."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application on a port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    # The system would keep megabytes for a client that reads nothing, and hide what we do then.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def streamed(text: str) -> list[dict[str, Any]]:
    """The objects of a stream, which must end as one does."""
    *events, done = text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Wait until a condition is true; fails where it is not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)
