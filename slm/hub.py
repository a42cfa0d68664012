"""The Hugging Face hub: what a dataset holds at one commit, and those bytes, verified.

`datasets` says which files belong to which configuration and split, `huggingface_hub` carries
them. A revision becomes a commit first and everything else is asked for by that commit, so a
branch that moves meanwhile mixes nothing. Each file is checked against the hub's own hash before
anybody reads it; a download that was cut goes on from where it stopped.

The token comes from HF_TOKEN and from nowhere else, and goes nowhere but to the hub.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from slm import storage
from slm.config import DataConfig
from slm.documents import check_columns
from slm.errors import CorruptionError, SlmError, UserError, unknown
from slm.records import Progress

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds to connect, and between any two pieces of an answer
WAITS = (1.0, 2.0, 4.0)  # seconds before each further attempt, unless the hub says how many
LONGEST_WAIT = 600.0  # a hub that asks for more is given up
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATHS_A_REQUEST = 500

T = TypeVar("T")


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at a commit, with the hash that the hub promises."""

    path: str
    size: int
    digest: str  # sha256 of the bytes (64 digits), or git's sha1 of the blob (40 digits)

    @property
    def sha256(self) -> str | None:
        return self.digest if len(self.digest) == 64 else None


# ---- what there is ----------------------------------------------------------------------------


def resolve_commit(data: DataConfig) -> str:
    """The commit that `data.revision` (default: the main branch) stands for.

    A full commit is returned as it is, without the network. Raises UserError where the dataset or
    the revision does not exist.
    """
    if data.revision and _COMMIT.fullmatch(data.revision):
        return data.revision
    info = _patiently(
        data, lambda api: api.dataset_info(data.path, revision=data.revision, timeout=TIMEOUT)
    )
    if not _COMMIT.fullmatch(str(info.sha)):
        raise SlmError(f"the hub gave no commit for {data.path}, but {info.sha!r}")
    return str(info.sha)


def find_files(data: DataConfig, commit: str) -> dict[str, list[HubFile]]:
    """The files of `train`, and of `val` where the dataset has that split, in order.

    Raises UserError where the configuration, the split or a column does not exist.
    """
    builder = _patiently(data, lambda api: _builder(data, commit))
    prefix = f"hf://datasets/{data.path}@{commit}/"
    names = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    if data.train_split not in names:
        raise UserError(f"data.path={data.path}: {unknown('split', data.train_split, names)}")
    chosen = {"train": names[data.train_split]}
    if data.val_split is not None and data.val_split in names:
        chosen["val"] = names[data.val_split]
    if builder.info.features:  # not every dataset says; then the first file tells
        check_columns(data, f"data.path={data.path}", builder.info.features)
    left_out = sorted(set(names) - {data.train_split, data.val_split})
    if left_out:
        logger.info("%s: the split(s) %s are left out", data.path, ", ".join(left_out))
    outside = [name for files in chosen.values() for name in files if not name.startswith(prefix)]
    if outside:
        raise UserError(f"data.path={data.path} points outside its repository: {outside[0]}")
    paths = {split: [f.removeprefix(prefix) for f in files] for split, files in chosen.items()}
    found = _describe(data, commit, [path for each in paths.values() for path in each])
    return {split: [found[path] for path in each] for split, each in paths.items()}


def _builder(data: DataConfig, commit: str) -> Any:
    """What `datasets` makes of the repository: nothing is downloaded but its metadata."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # With the scheme, a local folder of that name is not taken for the dataset.
    address = f"hf://datasets/{data.path}"
    try:
        return datasets.load_dataset_builder(
            address, data.config_name, revision=commit, token=_token()
        )
    except (HfHubHTTPError, HFValidationError):
        raise
    except (ValueError, RuntimeError, TypeError, KeyError, yaml.YAMLError) as error:
        if not re.search("BuilderConfig .* not found|Config name is missing", str(error)):
            raise UserError(
                f"data.path={data.path}: the library datasets cannot read it: {error}"
            ) from error
        names = datasets.get_dataset_config_names(address, revision=commit, token=_token())
        if data.config_name is not None:
            raise unknown("data.config_name", data.config_name, names) from error
        raise UserError(
            f"data.path={data.path} has several configurations: choose one with "
            f"--set data.config_name=… of {', '.join(names)}"
        ) from error


def _describe(data: DataConfig, commit: str, paths: list[str]) -> dict[str, HubFile]:
    """Size and hash of files, as the hub records them."""
    found: dict[str, HubFile] = {}
    for start in range(0, len(paths), _PATHS_A_REQUEST):
        some = paths[start : start + _PATHS_A_REQUEST]
        for info in _patiently(data, partial(_paths_info, data, commit, some)):
            digest = info.lfs.sha256 if info.lfs else info.blob_id
            if not _DIGEST.fullmatch(digest):
                raise SlmError(f"{data.path}: the hub gives no usable hash for {info.path}")
            found[info.path] = HubFile(info.path, info.size, digest)
    if missing := set(paths) - set(found):
        raise SlmError(f"{data.path}: the hub knows nothing of {', '.join(sorted(missing)[:3])}")
    return found


def _paths_info(data: DataConfig, commit: str, paths: list[str], api: Any) -> list[Any]:
    infos: list[Any] = api.get_paths_info(data.path, paths, revision=commit, repo_type="dataset")
    return infos


# ---- the bytes --------------------------------------------------------------------------------


def fetch(data: DataConfig, commit: str, file: HubFile, progress: Progress) -> Path:
    """A file of the dataset on the local disk, its bytes those that the hub promises.

    Files lie in the cache by their hash: what another revision or an interrupted call has left
    there is used, but only after it was checked. A file with other bytes is moved aside and
    fetched once more. Raises CorruptionError naming the file if it is then wrong again.
    """
    cache = storage.make_folder(_home() / "files")
    folder = cache / file.digest
    path = folder / PurePosixPath(file.path).name
    with storage.lock(cache / f".{file.digest}.lock"):
        for attempt in ("fetching it once more", "giving up"):
            storage.make_folder(folder)
            whole = _patiently(data, partial(_complete, data, commit, file, path, progress))
            if whole and digest_of(path, file) == file.digest:
                return path
            aside = storage.quarantine(folder)
            logger.warning(
                "%s of %s does not have the size and hash that the hub records; moved to %s, %s",
                file.path,
                data.path,
                aside,
                attempt,
            )
    raise CorruptionError(
        f"{data.path}: {file.path} at {commit[:12]} arrived twice with other bytes than the hub "
        f"records (hash {file.digest[:12]}…, {file.size} bytes); what came is kept in {cache}; "
        "try again later"
    )


def digest_of(path: Path, file: HubFile) -> str:
    """The hash of a local file, of the kind by which the hub knows it."""
    if file.sha256:
        return storage.sha256_file(path)
    header = f"blob {path.stat().st_size}\0".encode()  # git hashes this with the content
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(header)).hexdigest()


def _complete(
    data: DataConfig, commit: str, file: HubFile, path: Path, progress: Progress, api: Any
) -> bool:
    """Fetches what is missing of a file; False if what came cannot be that file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(
        data.path, file.path, repo_type="dataset", revision=commit, endpoint=api.endpoint
    )
    headers = {**build_hf_headers(token=_token()), "Accept-Encoding": "identity"}
    with path.open("ab") as stream:
        have = stream.tell()
        if have >= file.size:
            return have == file.size
        try:
            http_get(
                url,
                stream,
                resume_size=have,
                headers=headers,
                expected_size=file.size,
                tqdm_class=partial(_Bar, progress, f"downloading {path.name}"),  # type: ignore[arg-type]
            )
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # it has no such range: it is shorter
                return False
            raise
        except OSError as error:
            if error.errno is None:  # the library's own check of the size
                return False
            raise
    return True


class _Bar:
    """What `http_get` asks of a progress bar, for our progress callback."""

    def __init__(
        self, progress: Progress, what: str, *, total: int | None, initial: int, **_: Any
    ) -> None:
        self.tell = partial(progress, what)
        self.done, self.total = initial, total

    def update(self, count: int) -> None:
        self.done += count
        self.tell(self.done, self.total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


# ---- asking -----------------------------------------------------------------------------------


def keep_cache_in(root: Path) -> None:
    """Has the hub's libraries keep their files under `root`, unless HF_HOME says another place.

    Works before their first import only: they read the variable once.
    """
    os.environ.setdefault("HF_HOME", str(root / "cache" / "huggingface"))


def _home() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def _token() -> str | bool:
    """HF_TOKEN, or False: then nothing is sent, not even a token stored by another tool."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError("HF_TOKEN holds characters that no token has: set it again")
    return token or False


def _patiently(data: DataConfig, ask: Callable[[Any], T]) -> T:
    """`ask(HfApi)`, again after a while where the failure may pass.

    A hub that is too busy (429) says itself how long to wait. Other failures become an error that
    names the dataset and the remedy.
    """
    from huggingface_hub import HfApi

    _never_wait_forever()
    api = HfApi(token=_token())
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
