"""The addresses of servers: those that the environment names, and those of `slm up`."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from slm.config import PipelineConfig, data_root
from slm.errors import UserError
from slm.storage import is_held, make_folder, write_file
from slm.tracking.entities import public_uri
from slm.tracking.server import tracking_uri

SECONDS = 10.0


def check_prefect(api: str, *, seconds: float = SECONDS) -> None:
    """Raises UserError where no Prefect API answers at an address."""
    address = api.rstrip("/")
    if _answer(f"{address}/health", "Prefect", "PREFECT_API_URL", api, seconds) in (b"true", b""):
        return
    advice = ""
    if not urlsplit(address).path:  # that of the pages, which answer to every path
        advice = f"; its API is at {public_uri(address)}/api"
    raise UserError(
        f"PREFECT_API_URL={public_uri(api)} is not the address of a Prefect API{advice}: "
        "set it to that, or unset it"
    )


def check_mlflow(uri: str, *, seconds: float = SECONDS) -> None:
    """Raises UserError where an address of a tracking server does not answer.

    Other addresses, such as those of databases, are left to MLflow.
    """
    if uri.startswith(("http://", "https://")):
        _answer(f"{uri.rstrip('/')}/health", "MLflow", "MLFLOW_TRACKING_URI", uri, seconds)


def check_registry(config: PipelineConfig, *, patience: float = 0.0) -> None:
    """Raises UserError where the server that a pipeline registers its model with is down.

    `patience`: seconds to wait for one that is being restarted.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return check_mlflow(tracking_uri(config, data_root()))
        except UserError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)


def _answer(url: str, server: str, variable: str, address: str, seconds: float) -> bytes:
    """What an address answers; nothing where it answers with an error, such as one of access."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            content: bytes = response.read(100)
            return content.strip()
    except urllib.error.HTTPError:
        return b""
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        where = f"{variable}={address}" if os.environ.get(variable) == address else address
        raise UserError(
            f"the {server} server at {public_uri(where)} does not answer ({reason}): start it, "
            f"or unset {variable}"
        ) from None


# ---- the stack of `slm up` --------------------------------------------------------------------


def stack_lock() -> Path:
    """The lock that the stack of this data folder holds while it is up."""
    return make_folder(data_root() / "logs") / "up.lock"


def note_stack(environment: Mapping[str, str]) -> None:
    """Note where the stack's servers are, for other commands on this data folder."""
    addresses = {name: environment[name] for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    write_file(_note(), json.dumps(addresses))


def prefect_environment() -> dict[str, str]:
    """The environment for Prefect's own command: PREFECT_API_URL, else the stack that is up.

    Raises UserError where there is neither.
    """
    if api := os.environ.get("PREFECT_API_URL"):
        check_prefect(api)
        return dict(os.environ)
    if not (is_held(stack_lock()) and _note().is_file()):
        raise UserError(
            f"no stack is up on {data_root()}: start it with `slm up`, or set PREFECT_API_URL"
        )
    return {**os.environ, "PREFECT_API_URL": json.loads(_note().read_bytes())["PREFECT_API_URL"]}


def _note() -> Path:
    return data_root() / "logs" / "up.json"
