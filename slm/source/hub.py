"""The Hugging Face hub: what a repository holds at one commit, and those bytes, verified.

`datasets` lists the files of each configuration and split, `huggingface_hub` downloads them. A
revision is resolved to a commit first and everything else is requested by that commit, so a branch
that moves meanwhile mixes nothing. Each file is checked against the hub's own hash before it is
read; an interrupted download resumes where it stopped.

`hf_hub_download` is not used: as of huggingface_hub 2.4 it starts anew after an interruption and
compares neither what arrives nor what is in its cache with the hub's hash.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, TypeVar

import yaml

from slm import storage
from slm.config import DataConfig
from slm.errors import CorruptionError, SlmError, UserError, unknown
from slm.progress import Progress
from slm.source.documents import check_kept, check_name, format_of, unsupported
from slm.source.formats.kept import Kept
from slm.source.formats.template import Template
from slm.source.hub_client import ModelRepo, Repo, kind_of, token, with_retries
from slm.source.splits import (
    Layout,
    check_settings,
    counted,
    explicit,
    misnamed,
    missing_shards,
    split_of,
)

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATHS_PER_REQUEST = 500
RANGE_BYTES = 1 << 20  # that are read ahead

T = TypeVar("T")


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at a commit, with the hash that the hub records."""

    path: str
    size: int
    digest: str  # sha256 of the bytes (64 digits), or git's sha1 of the blob (40 digits)

    @property
    def sha256(self) -> str | None:
        return self.digest if len(self.digest) == 64 else None


# ---- the files of a dataset ---------------------------------------------------------------------


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit, which never moves as a branch or a tag does."""
    return bool(revision and _COMMIT.fullmatch(revision))


def resolve_commit(data: Repo) -> str:
    """The commit that a revision (default: the main branch) names.

    A full commit is returned as it is, without the network. Raises UserError where the repository
    or the revision does not exist.
    """
    if is_commit(data.revision):
        return str(data.revision)
    kind = kind_of(data)
    info = with_retries(
        data, lambda api: api.repo_info(data.path, revision=data.revision, repo_type=kind)
    )
    if not _COMMIT.fullmatch(str(info.sha)):
        raise SlmError(f"the hub gave no commit for {data.path}, but {info.sha!r}")
    return str(info.sha)


@dataclass(frozen=True)
class HubLayout(Layout[HubFile]):
    """The files of each split of a dataset on the hub."""

    val_alike: bool = False  # val is not the split of exactly that name, but `valid` or `dev`


def find_files(data: DataConfig, commit: str, *, check_columns: bool = True) -> HubLayout:
    """The files of `train`, and of `val` where the dataset has that split, in order.

    Raises UserError where the configuration, a split that is named or, unless `check_columns` is
    false, a column does not exist.
    """
    check_settings(data)
    builder = with_retries(data, lambda api: _builder(data, commit))
    at, prefix = f"data.path={data.path}", f"hf://datasets/{data.path}@{commit}/"
    names = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    splits = _choose(data, list(names))
    chosen = {split: [f for name in each for f in names[name]] for split, each in splits.items()}
    if builder.info.features and check_columns:  # else the columns are checked in the first file
        Template(data).check(at, builder.info.features)
        Kept(data).check(at, builder.info.features)
    outside = [name for files in chosen.values() for name in files if not name.startswith(prefix)]
    if outside:
        raise UserError(f"{at} points outside its repository: {outside[0]}")
    paths = {split: [f.removeprefix(prefix) for f in files] for split, files in chosen.items()}
    every = [path for each in paths.values() for path in each]
    for path in every:
        check_name(path, f"{at}: ")
        if format_of(PurePosixPath(path), data.format) is None:
            raise unsupported(f"{at}: {path}")
        check_kept(f"{at}: {path}", PurePosixPath(path), data)
    described = _describe(data, commit, every)
    inputs = {
        split: f"{counted(len(paths[split]))}: split {', '.join(each)}"
        for split, each in splits.items()
    }
    used = {name for each in splits.values() for name in each}
    left_out = {name: len(files) for name, files in sorted(names.items()) if name not in used}
    notes = missing_shards(every)
    if not any(split_of(name) in ("val", "test") for name in splits["train"]):
        notes += misnamed([PurePosixPath(path) for path in paths["train"]])
    if left_out:
        listed = ", ".join(f"{name} ({counted(number)})" for name, number in left_out.items())
        notes.insert(0, f"{counted(len(left_out), 'split')} left out: {listed}")
    return HubLayout(
        {split: [described[path] for path in each] for split, each in paths.items()},
        inputs,
        notes,
        val_alike=splits.get("val", []) != [name for name in names if name == data.val_split],
    )


def _choose(data: DataConfig, names: list[str]) -> dict[str, list[str]]:
    """The dataset's splits that are train, and those that are val.

    A split that the config names is taken exactly. Where the dataset lacks the default `validation`
    (`train`), those with a word for it are taken (the only one with a word for it).

    Raises UserError where a split that the config names does not exist.
    """
    if data.train_split is None:
        train = [name for name in names if name != data.val_split]
    elif data.train_split in names:
        train = [data.train_split]
    else:
        train = [name for name in names if split_of(name) == "train"]
        if explicit(data, "train_split") or len(train) != 1:
            raise _unknown_split(data, "train_split", names)
    if data.val_split is None:
        val = []
    elif data.val_split in names:
        val = [data.val_split]
    elif explicit(data, "val_split"):
        raise _unknown_split(data, "val_split", names)
    else:
        val = [name for name in names if split_of(name) == "val"]
    if data.train_split is None:
        train = [name for name in train if name not in val]
    val = [name for name in val if name not in train]
    return {split: each for split, each in (("train", train), ("val", val)) if each}


def _unknown_split(data: DataConfig, setting: str, names: list[str]) -> UserError:
    name = getattr(data, setting)
    return UserError(
        f"data.path={data.path}, data.{setting}={name}: {unknown('split', name, names)}"
    )


def _builder(data: DataConfig, commit: str) -> Any:
    """The dataset's builder in `datasets`; only metadata is downloaded."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # With the scheme, a local folder of that name is not taken for the dataset.
    address = f"hf://datasets/{data.path}"
    try:
        return datasets.load_dataset_builder(
            address, data.config_name, revision=commit, token=token()
        )
    except (HfHubHTTPError, HFValidationError):
        raise
    except (ValueError, RuntimeError, TypeError, KeyError, yaml.YAMLError) as error:
        if not re.search("BuilderConfig .* not found|Config name is missing", str(error)):
            raise UserError(
                f"data.path={data.path}: the library datasets cannot read it: {error}"
            ) from error
        names = datasets.get_dataset_config_names(address, revision=commit, token=token())
        if data.config_name is not None:
            raise unknown("data.config_name", data.config_name, names) from error
        raise UserError(
            f"data.path={data.path} has several configurations: choose one with "
            f"--set data.config_name=… of {', '.join(names)}"
        ) from error


def configurations(data: DataConfig, commit: str) -> list[str]:
    """The names of a dataset's configurations; only metadata is downloaded."""
    import datasets

    return with_retries(
        data,
        lambda api: datasets.get_dataset_config_names(
            f"hf://datasets/{data.path}", revision=commit, token=token()
        ),
    )


def read_ranges(data: DataConfig, commit: str, path: str, read: Callable[[BinaryIO], T]) -> T:
    """What `read` returns of a file of the dataset, of which it downloads only what it reads.

    No hash can check such a part.
    """

    def request(api: Any) -> T:
        from huggingface_hub import HfFileSystem

        system = HfFileSystem(endpoint=api.endpoint, token=token())
        place = f"datasets/{data.path}@{commit}/{path}"
        with system.open(place, "rb", block_size=RANGE_BYTES) as stream:
            return read(stream)

    return with_retries(data, request)


def model_files(repo: ModelRepo, commit: str, names: list[str]) -> dict[str, HubFile]:
    """Those of some files that a model's repository has at a commit, with size and hash."""
    return _present(repo, commit, names)


def _describe(data: DataConfig, commit: str, paths: list[str]) -> dict[str, HubFile]:
    """Size and hash of files, as the hub records them. Raises SlmError where it lacks one."""
    described = _present(data, commit, paths)
    if missing := set(paths) - set(described):
        raise SlmError(f"{data.path}: the hub has no record of {', '.join(sorted(missing)[:3])}")
    return described


def _present(data: Repo, commit: str, paths: list[str]) -> dict[str, HubFile]:
    """Size and hash of the files that a repository has, as the hub records them."""
    described: dict[str, HubFile] = {}
    for start in range(0, len(paths), _PATHS_PER_REQUEST):
        some = paths[start : start + _PATHS_PER_REQUEST]
        request = methodcaller(
            "get_paths_info", data.path, some, revision=commit, repo_type=kind_of(data)
        )
        for info in with_retries(data, request):
            digest = info.lfs.sha256 if info.lfs else info.blob_id
            if not _DIGEST.fullmatch(digest):
                raise SlmError(f"{data.path}: the hub gives no usable hash for {info.path}")
            described[info.path] = HubFile(info.path, info.size, digest)
    return described


def files_at(data: DataConfig, commit: str) -> list[HubFile]:
    """Every file of a dataset at a commit, in the order of their paths.

    The hub is asked once: the cache keeps the list, since a commit never changes.
    """
    if (kept := kept_files(data, commit)) is not None:
        return kept
    info = with_retries(data, lambda api: api.dataset_info(data.path, revision=commit))
    described = _describe(data, commit, sorted(file.rfilename for file in info.siblings or ()))
    files = [described[path] for path in sorted(described)]
    place = _kept_list(data, commit)
    storage.make_folder(place.parent)
    storage.write_json(place, [[file.path, file.size, file.digest] for file in files])
    return files


def kept_files(data: DataConfig, commit: str) -> list[HubFile] | None:
    """What the cache knows of the files of a dataset at a commit; None where it knows nothing."""
    try:
        return [HubFile(*entry) for entry in json.loads(_kept_list(data, commit).read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def is_kept(file: HubFile) -> bool:
    """Whether the cache has a file of this name and size under its hash; it is not read."""
    from huggingface_hub import constants

    path = Path(constants.HF_HOME) / "files" / file.digest / PurePosixPath(file.path).name
    return path.is_file() and path.stat().st_size == file.size


def _kept_list(data: DataConfig, commit: str) -> Path:
    from huggingface_hub import constants

    name = storage.sha256_json([data.path, commit])
    return Path(constants.HF_HOME) / "trees" / f"{name}.json"


# ---- downloading --------------------------------------------------------------------------------


def fetch(data: Repo, commit: str, file: HubFile, progress: Progress) -> Path:
    """Download a file of a repository and return its verified local path.

    The cache keeps files by their hash: what another revision or an interrupted call has left
    there is checked and used. A file with other bytes is quarantined and downloaded once more.
    Raises CorruptionError naming the file if its bytes are wrong again.
    """
    from huggingface_hub import constants

    cache = storage.make_folder(Path(constants.HF_HOME) / "files")
    folder = cache / file.digest
    path = folder / PurePosixPath(file.path).name
    with storage.lock(cache / f".{file.digest}.lock"):
        for next_step in ("downloading it once more", "giving up"):
            storage.make_folder(folder)
            whole = with_retries(data, partial(_complete, data, commit, file, path, progress))
            if whole and digest_of(path, file) == file.digest:
                return path
            quarantined = storage.quarantine(folder)
            logger.warning(
                "%s of %s does not have the size and hash that the hub records; moved to %s, %s",
                file.path,
                data.path,
                quarantined,
                next_step,
            )
    raise CorruptionError(
        f"{data.path}: {file.path} at {commit[:12]} arrived twice with other bytes than the hub "
        f"records (hash {file.digest[:12]}…, {file.size} bytes); the last copy is kept in {cache}; "
        "try again later"
    )


def digest_of(path: Path, file: HubFile) -> str:
    """The hash of a local file, of the kind that the hub records for it."""
    if file.sha256:
        return storage.sha256_file(path)
    header = f"blob {path.stat().st_size}\0".encode()  # git hashes this with the content
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(header)).hexdigest()


def _complete(
    data: Repo, commit: str, file: HubFile, path: Path, progress: Progress, api: Any
) -> bool:
    """Download what is missing of a file; False if the bytes cannot be that file's."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(
        data.path, file.path, repo_type=kind_of(data), revision=commit, endpoint=api.endpoint
    )
    headers = {**build_hf_headers(token=token()), "Accept-Encoding": "identity"}
    with path.open("ab") as stream:
        present = stream.tell()
        if present >= file.size:
            return present == file.size
        try:
            http_get(
                url,
                stream,
                resume_size=present,
                headers=headers,
                expected_size=file.size,
                tqdm_class=partial(_Bar, progress, f"downloading {path.name}"),  # type: ignore[arg-type]
            )
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # no such range: the file is shorter
                return False
            raise
        except OSError as error:
            if error.errno is None:  # the library's check of the size failed
                return False
            raise
    return True


class _Bar:
    """A progress bar as `http_get` uses it, which calls our progress callback."""

    def __init__(
        self, progress: Progress, task: str, *, total: int | None, initial: int, **_: Any
    ) -> None:
        self.report = partial(progress, task)
        self.done, self.total = initial, total

    def update(self, count: int) -> None:
        self.done += count
        self.report(self.done, self.total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass
