"""Asking the Hugging Face hub: patience with what passes, one message for what does not.

Every request has a limit in time. The token comes from HF_TOKEN and from nowhere else, and goes
nowhere but to the hub.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from slm.config import DataConfig
from slm.errors import SlmError, UserError

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds to connect, and between any two pieces of an answer
WAITS = (1.0, 2.0, 4.0)  # seconds before each further attempt, unless the hub says how many
LONGEST_WAIT = 600.0  # a hub that asks for more is given up

T = TypeVar("T")


def keep_cache_in(root: Path) -> None:
    """Has the hub's libraries keep their files under `root`, unless HF_HOME says another place.

    Works before their first import only: they read the variable once.
    """
    os.environ.setdefault("HF_HOME", str(root / "cache" / "huggingface"))


def cache_home() -> Path:
    """The folder in which the hub's libraries keep their files."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def token() -> str | bool:
    """HF_TOKEN, or False: then nothing is sent, not even a token stored by another tool."""
    given = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", given):
        raise UserError("HF_TOKEN holds characters that no token has: set it again")
    return given or False


def patiently(data: DataConfig, ask: Callable[[Any], T]) -> T:
    """`ask(HfApi)`, again after a while where the failure may pass.

    A hub that is too busy (429) says itself how long to wait. Other failures become an error that
    names the dataset and the remedy.
    """
    from huggingface_hub import HfApi

    _refuse_user_info()
    _never_wait_forever()
    api = HfApi(token=token())
    for wait in (*WAITS, None):
        try:
            return ask(api)
        except SlmError:
            raise
        except Exception as error:
            passing = _may_pass(error)
            asked = _retry_after(error)
            if not passing or wait is None or (asked or 0) > LONGEST_WAIT:
                explained = _explained(data, error)
                if explained is None:
                    raise
                raise explained from error
            seconds = max(wait, asked or 0)
            logger.warning("%s: %s; again in %.0f s", data.path, _summary(error), seconds)
            time.sleep(seconds)
    raise AssertionError("the last wait is None")


def _refuse_user_info() -> None:
    """The address of the hub appears in messages and logs: it must hold no password."""
    from huggingface_hub import constants

    if "@" in urlsplit(constants.ENDPOINT).netloc:
        raise UserError("HF_ENDPOINT holds a user or password: leave it out, and set HF_TOKEN")


def _never_wait_forever() -> None:
    """Gives a limit to the library's requests that have none."""
    import httpx2  # the transport of huggingface_hub
    from huggingface_hub import get_session, set_client_factory

    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        set_client_factory(
            lambda: httpx2.Client(
                event_hooks={"request": [*hooks, _limit]}, follow_redirects=True, timeout=TIMEOUT
            )
        )


def _limit(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    limits = {name: TIMEOUT if limits.get(name) is None else limits[name] for name in names}
    request.extensions = {**request.extensions, "timeout": limits}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for cause in _causes(error):
        if (response := getattr(cause, "response", None)) is not None:
            return int(response.status_code)
    return None


def _retry_after(error: BaseException) -> float | None:
    """The seconds that a hub which is too busy asks for, by either of its headers."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    for cause in _causes(error):
        headers: Mapping[str, str] = getattr(getattr(cause, "response", None), "headers", {})
        if (text := headers.get("Retry-After", "")).isdigit():
            return float(text)
        if (limit := parse_ratelimit_headers(headers)) and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    return None


def _unreachable(error: BaseException) -> bool:
    import httpx2

    return any(
        isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError)
        for cause in _causes(error)
    )


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error)):
        return False
    status = _status(error)
    return status in (408, 429) or (status or 0) >= 500 or (status is None and _unreachable(error))


def _summary(error: BaseException) -> str:
    status = _status(error)
    return f"the hub answers {status}" if status else f"no answer ({type(error).__name__})"


def _explained(data: DataConfig, error: Exception) -> SlmError | None:
    """The error for the user; None where it has nothing to do with the hub."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetNotFoundError, FileNotFoundDatasetsError
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    kinds = tuple(type(cause) for cause in _causes(error))

    def behind(*wanted: type) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    at = f"data.path={data.path}"
    if behind(hub.HFValidationError):
        return UserError(f"{at} is no dataset id: write OWNER/NAME, as on {constants.ENDPOINT}")
    if behind(hub.GatedRepoError) or "gated dataset" in str(error):
        return UserError(
            f"{at} is gated: ask for access at {constants.ENDPOINT}/datasets/{data.path}, then "
            "set HF_TOKEN to a token of that account"
        )
    if behind(hub.RevisionNotFoundError):
        return UserError(f"{at} has no revision {data.revision!r}: give a branch, tag or commit")
    if behind(hub.RepositoryNotFoundError, DatasetNotFoundError):
        return UserError(
            f"{at}: {constants.ENDPOINT} has no such dataset, or shows it only to its members: "
            "check the id, or set HF_TOKEN"
        )
    if behind(FileNotFoundDatasetsError, EmptyDatasetError):
        return UserError(f"{at} holds no data files that can be read ({error})")
    if behind(hub.OfflineModeIsEnabled):
        return SlmError(f"{at} is needed from the hub, but HF_HUB_OFFLINE is set: unset it")
    if _status(error) is not None:
        return SlmError(f"{at}: {constants.ENDPOINT} answers {_status(error)}; try again later")
    if _unreachable(error):
        return SlmError(
            f"{at}: cannot reach {constants.ENDPOINT} ({type(error).__name__}): check the network, "
            "or use data.source=files with a local copy"
        )
    return None
