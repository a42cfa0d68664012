"""Requests to the Hugging Face hub: retries of what is transient, one message for what is not.

Every request has a timeout. The token comes from HF_TOKEN alone and is sent to the hub alone.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from slm.config import DataConfig
from slm.errors import SlmError, UserError

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds to connect, and between any two chunks of a response
WAITS = (1.0, 2.0, 4.0)  # seconds before each retry, unless the hub asks for more
MAX_WAIT = 600.0  # seconds; a hub that asks for more is given up

T = TypeVar("T")


@dataclass(frozen=True)
class ModelRepo:
    """A model on the hub, as `train.init_from` names it."""

    path: str  # OWNER/NAME
    revision: str | None = None


Repo: TypeAlias = DataConfig | ModelRepo


def kind_of(repo: Repo) -> Literal["dataset", "model"]:
    """What the hub calls it."""
    return "model" if isinstance(repo, ModelRepo) else "dataset"


def setting_of(repo: Repo) -> str:
    """The setting that names a repository, as messages begin."""
    return f"{'train.init_from=hf:' if kind_of(repo) == 'model' else 'data.path='}{repo.path}"


def keep_cache_in(root: Path) -> None:
    """Make the hub's libraries keep their files under `root`, unless HF_HOME is set.

    Only before their first import: they read the variable once.
    """
    os.environ.setdefault("HF_HOME", str(root / "cache" / "huggingface"))


def token() -> str | bool:
    """HF_TOKEN, or False: then nothing is sent, not even a token stored by another tool."""
    value = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise UserError("HF_TOKEN holds characters that no token has: set it again")
    return value or False


def with_retries(data: Repo, request: Callable[[Any], T]) -> T:
    """`request(HfApi)`, repeated after a while where the failure is transient.

    A rate limit (429) comes with the seconds to wait. Other failures become an error that names
    the repository and the remedy.
    """
    return retried(data.path, request, lambda error: _explained(data, error))


def retried(
    name: str, request: Callable[[Any], T], explain: Callable[[Exception], SlmError | None]
) -> T:
    """`request(HfApi)` of the repository of a name, repeated where the failure is transient.

    `explain`: the error for the user; None for one that is not about the hub, which is raised.
    """
    from huggingface_hub import HfApi

    _refuse_user_info()
    _set_timeouts()
    api = HfApi(token=token())
    for wait in (*WAITS, None):
        try:
            return request(api)
        except SlmError:
            raise
        except Exception as error:
            asked = _retry_after(error)
            if wait is None or asked > MAX_WAIT or not _is_transient(error):
                explained = explain(error)
                if explained is None:
                    raise
                raise explained from error
            seconds = max(wait, asked)
            logger.warning("%s: %s; retrying in %.0f s", name, _summary(error), seconds)
            time.sleep(seconds)
    raise AssertionError("the last wait is None")


def _refuse_user_info() -> None:
    """The address of the hub appears in messages and logs: it must hold no password."""
    from huggingface_hub import constants

    if "@" in urlsplit(constants.ENDPOINT).netloc:
        raise UserError("HF_ENDPOINT holds a user or password: remove it, and set HF_TOKEN")


def _set_timeouts() -> None:
    """Add a timeout to the library's requests that have none."""
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


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for cause in _causes(error):
        if (response := getattr(cause, "response", None)) is not None:
            return int(response.status_code)
    return None


def _retry_after(error: BaseException) -> float:
    """The seconds that a hub which limits the rate asks for, by either of its headers; else 0."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    for cause in _causes(error):
        headers: Mapping[str, str] = getattr(getattr(cause, "response", None), "headers", {})
        if (text := headers.get("Retry-After", "")).isdigit():
            return float(text)
        if (limit := parse_ratelimit_headers(headers)) and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    return 0.0


def _unreachable(error: BaseException) -> bool:
    import httpx2

    return any(
        isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError)
        for cause in _causes(error)
    )


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error)):
        return False
    status = status_of(error)
    return status in (408, 429) or (status or 0) >= 500 or (status is None and _unreachable(error))


def _summary(error: BaseException) -> str:
    status = status_of(error)
    return f"the hub answered {status}" if status else f"no answer ({type(error).__name__})"


def _explained(data: Repo, error: Exception) -> SlmError | None:
    """The error for the user; None for one that is not about the hub."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetNotFoundError, FileNotFoundDatasetsError
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    kinds = tuple(type(cause) for cause in _causes(error))

    def caused_by(*errors: type) -> bool:
        return any(issubclass(kind, errors) for kind in kinds)

    at, kind = setting_of(data), kind_of(data)
    if caused_by(hub.HFValidationError):
        return UserError(f"{at} is not a {kind} id: write OWNER/NAME, as on {constants.ENDPOINT}")
    if caused_by(hub.GatedRepoError) or "gated dataset" in str(error):
        page = f"datasets/{data.path}" if kind == "dataset" else data.path
        return UserError(
            f"{at} is gated: ask for access at {constants.ENDPOINT}/{page}, then "
            "set HF_TOKEN to a token of that account"
        )
    if caused_by(hub.RevisionNotFoundError):
        return UserError(f"{at} has no revision {data.revision!r}: give a branch, tag or commit")
    if caused_by(hub.RepositoryNotFoundError, DatasetNotFoundError):
        return UserError(
            f"{at}: {constants.ENDPOINT} has no such {kind}, or shows it only to its members: "
            "check the id, or set HF_TOKEN"
        )
    if caused_by(FileNotFoundDatasetsError, EmptyDatasetError):
        return UserError(f"{at} has no data files that can be read ({error})")
    if caused_by(hub.OfflineModeIsEnabled):
        return SlmError(f"{at} is needed from the hub, but HF_HUB_OFFLINE is set: unset it")
    local = {"dataset": "data.source=files with a local copy", "model": "hf:FOLDER of a copy"}
    return failure(at, error, f", or use {local[kind]}")


def failure(at: str, error: Exception, remedy: str = "") -> SlmError | None:
    """The error for a hub that answers with a failure or not at all; None for any other."""
    from huggingface_hub import constants

    if status_of(error) is not None:
        return SlmError(f"{at}: {constants.ENDPOINT} answered {status_of(error)}; try again later")
    if _unreachable(error):
        return SlmError(
            f"{at}: cannot reach {constants.ENDPOINT} ({type(error).__name__}): check the network"
            f"{remedy}"
        )
    return None
