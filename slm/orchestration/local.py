"""Run a flow in this process, on the server of PREFECT_API_URL or else on a temporary one."""

import atexit
import os
import subprocess
import sys
import urllib.request
from importlib import import_module
from typing import Any

from slm.config import data_root
from slm.errors import SlmError
from slm.machine import ask_no_proxy
from slm.orchestration.addresses import check_prefect, check_registry
from slm.orchestration.display import current
from slm.recipes import load_recipe
from slm.storage import make_folder

START_SECONDS = 60.0


def run_flow(name: str, recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run the flow `pipeline` or `retrain` in this process; returns what it returns.

    Prefect's own lines stay in its database: this process shows the stages itself.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    make_folder(data_root())
    check_registry(load_recipe(recipe, overrides))
    api = os.environ.get("PREFECT_API_URL")
    server = None
    if api:
        check_prefect(api)
    else:
        current().write("prefect   starting a temporary server")
        server, api = start_server()  # it starts while we import
        assert server.stdin is not None
        atexit.register(server.stdin.close)  # before prefect registers what it prints at exit
        os.environ["PREFECT_API_URL"] = api
        ask_no_proxy("127.0.0.1")
    flow = getattr(import_module(f"slm.orchestration.{name}"), name)
    if server:
        wait_until_healthy(api)
    results: dict[str, Any] = flow(recipe, overrides, return_state=True).result()
    return results


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """Start a temporary Prefect server; returns its address too.

    It ends when its standard input is closed, as it is when this process ends. Nobody waits for
    that, and it is never killed: it may be making its database.
    """
    log = make_folder(data_root() / "prefect") / "server.log"
    settings = {
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # seconds, for what we do not use
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "slm.orchestration.stack.server"],
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
        raise SlmError(f"the temporary Prefect server did not start; its log {log} has the reason")
    return server, f"http://127.0.0.1:{int(line)}/api"


def wait_until_healthy(api: str) -> None:
    """Wait until a temporary server answers: it holds the request until it can."""
    try:
        urllib.request.urlopen(f"{api}/health", timeout=START_SECONDS).close()
    except OSError as error:  # refused, reset, or too late; what urllib raises is one as well
        raise SlmError(
            f"the temporary Prefect server does not answer ({error}); "
            f"{data_root() / 'prefect'}/server.log has the reason"
        ) from error
