"""The pipeline run from here: on the server that PREFECT_API_URL names, else on a temporary one."""

import atexit
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from flows.display import current
from slm.config import data_root
from slm.errors import SlmError
from slm.storage import make_folder

START_SECONDS = 60.0
STOP_SECONDS = 10.0


def run_pipeline(recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Runs the flow in this process and returns what it returns.

    Prefect's own lines stay in its database: this process shows the stages itself.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if "PREFECT_API_URL" in os.environ:
        from flows.pipeline import pipeline

        return pipeline(recipe, overrides)

    current().write("prefect   starting a temporary server")
    server, api = start_server()  # it starts while we import
    atexit.register(stop_server, server)  # before prefect registers what it says at exit
    os.environ["PREFECT_API_URL"] = api
    from flows.pipeline import pipeline

    wait_until_healthy(api)
    return pipeline(recipe, overrides)


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """Starts a temporary Prefect server that ends with this process; returns its address too."""
    log = make_folder(data_root() / "prefect") / "server.log"
    settings = {
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # seconds, for what we do not use
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **settings},
            start_new_session=True,  # the terminal's Ctrl-C is for us; the server outlives it
        )
    assert server.stdout is not None
    with server.stdout as stdout:
        line = stdout.readline()
    if not line:
        raise SlmError(f"the temporary Prefect server did not start; it says why in {log}")
    return server, f"http://127.0.0.1:{int(line)}/api"


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Asks the server to end. It is never killed: it may be making its database."""
    assert server.stdin is not None
    server.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_SECONDS)


def wait_until_healthy(api: str) -> None:
    """Returns when the server answers; its socket holds the question until it can."""
    try:
        urllib.request.urlopen(f"{api}/health", timeout=START_SECONDS).close()
    except (urllib.error.URLError, TimeoutError) as error:
        log = data_root() / "prefect" / "server.log"
        raise SlmError(f"the temporary Prefect server failed ({error}): see {log}") from error
