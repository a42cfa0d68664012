"""`slm.serve`: models behind HTTP, until the process is asked to end."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from slm.config import Weights
from slm.errors import Interrupted, UserError, unknown
from slm.server.settings import ServerSettings

if TYPE_CHECKING:
    from slm.server.versions import ServedModels

API_KEY = "SLM_API_KEY"  # environment variable
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SWITCH_SECONDS = 0.0005  # after which a thread that waits for Python's lock gets it


def serve(
    *models: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    weights: Weights = "float32",
    device: str | None = None,
    root: Path | None = None,
    shutdown_timeout: float = 30.0,
    on_ready: Callable[[str, list[str]], None] = lambda url, names: print(f"{url} {names}"),
    **limits: Any,
) -> None:
    """Serve models over HTTP in OpenAI's form, until SIGTERM or Ctrl-C.

    >>> slm.serve("slm@champion", port=8000, max_batch=16)

    Requests that are being answered then finish, within `shutdown_timeout` seconds.

    Args:
        models: runs or model versions, as of `slm.load_model`; requests call them by these names.
        host: other than loopback it needs an API key.
        port: 0 for one that is free.
        api_key: that requests must bring; None: that of SLM_API_KEY, or none is needed.
        weights: "int8" rounds them to eight bits, on a CPU: for a few texts at once.
        device: "cpu", "cuda" or "mps"; None: what the run's `train.device` allows.
        root: the data folder; None: as of `DataRoot`.
        on_ready: receives the address and the names once requests are answered.
        limits: those of `slm.server.settings.ServerSettings`.

    Raises:
        UserError: there is no such model, the port is in use, or a key is missing.
        Interrupted: requests were cut off at the end.
    """
    from slm.server.following import follow_aliases
    from slm.server.versions import open_models

    settings = _settings(host, api_key, limits)
    if not models:
        raise UserError("name a run or a model version to serve")
    listener = bind(host, port)
    with listener:
        how: dict[str, Any] = {
            "weights": weights,
            "device": "cpu" if weights == "int8" else device,
            "max_batch": settings.max_batch,
            "queue": settings.queue,
            "root": root,
        }
        served = open_models(models, **how)
        try:
            with closing(follow_aliases(served, **how)):
                _run(listener, served, settings, shutdown_timeout, on_ready)
        finally:
            served.close(timeout=0)


def _settings(host: str, api_key: str | None, limits: dict[str, Any]) -> ServerSettings:
    key = api_key if api_key is not None else os.environ.get(API_KEY) or None
    if key is not None and (not key.strip() or not key.isascii()):
        raise UserError("the API key must be ASCII characters, and not empty")
    if key is None and host not in LOOPBACK:
        raise UserError(
            f"host={host!r} is reached from other machines: give --api-key or {API_KEY}, or serve "
            "127.0.0.1"
        )
    for name, value in limits.items():
        if name not in ServerSettings.__dataclass_fields__:
            raise unknown("limit", name, ServerSettings.__dataclass_fields__)
        if not value > 0:
            raise UserError(f"{name}={value}: give more than 0")
    return ServerSettings(api_key=key, **limits)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises UserError where it is in use, or there is no such host."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: {error}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror}): end what listens there, or "
            "choose another port (--port)"
        ) from error
    return listener


def _run(
    listener: socket.socket,
    models: "ServedModels",
    settings: ServerSettings,
    shutdown_timeout: float,
    on_ready: Callable[[str, list[str]], None],
) -> None:
    import uvicorn

    from slm.server.api import create_app

    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(url, models.names())

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End after the requests that are there; a second signal cuts them off."""
            self.force_exit = self.should_exit
            self.should_exit = True

    app = create_app(models, settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
    )
    switch = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)  # the engine and the answers are threads of one process
    try:
        asyncio.run(Server(config).serve([listener]))
    finally:
        sys.setswitchinterval(switch)
    if app.state.metrics.cut:
        raise Interrupted(f"{app.state.metrics.cut} requests were cut off")
