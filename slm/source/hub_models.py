"""Model repositories on the Hugging Face hub: files sent there in one commit, and fetched."""

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from slm.config import data_root
from slm.errors import SlmError, UserError, excerpt
from slm.source.hub_client import failure, keep_cache_in, retried, status_of, token

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether a text is of the form ORG/NAME."""
    return _ID.fullmatch(name) is not None


def check_repository(name: str) -> None:
    """Raises UserError for a text that is not ORG/NAME."""
    if not is_repository(name):
        raise UserError(f"{excerpt(repr(name))} is not a repository of the hub: write ORG/NAME")


def upload(repository: str, files: Mapping[str, Path], message: str) -> str:
    """Send files, by their names there, in one commit; the repository is made if need be.

    Returns the commit's address. Raises UserError where HF_TOKEN is not set or may not write there.
    """
    from huggingface_hub import CommitOperationAdd

    check_repository(repository)
    if not token():
        raise UserError(
            f"{repository}: pushing to the hub needs HF_TOKEN, a token that may write there"
        )

    def request(api: Any) -> str:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
            for name, path in sorted(files.items())
        ]
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)

    keep_cache_in(data_root())
    return retried(repository, request, partial(_explained, repository))


def download(
    repository: str,
    folder: Path,
    revision: str | None = None,
    *,
    names: Collection[str] | None = None,
) -> str:
    """Fetch the files of a repository into a folder; return the commit that they are of.

    `names`: those to fetch, as far as it has them; None: all.

    Raises UserError where there is no such repository or revision.
    """
    check_repository(repository)
    keep_cache_in(data_root())
    explain = partial(_explained, repository)
    info = retried(repository, lambda api: api.model_info(repository, revision=revision), explain)
    for name in (sibling.rfilename for sibling in info.siblings):
        if names is not None and name not in names:
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{repository} has a file outside of itself: {excerpt(repr(name))}")
        fetch = partial(_fetch, repository, name, str(info.sha), folder)
        retried(repository, fetch, explain)
    return str(info.sha)


def _fetch(repository: str, name: str, commit: str, folder: Path, api: Any) -> None:
    api.hf_hub_download(repository, name, revision=commit, local_dir=str(folder))


def _explained(repository: str, error: Exception) -> SlmError | None:
    """The error for the user; None for one that is not about the hub."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.RevisionNotFoundError):
        return UserError(f"{repository} has no such revision on {constants.ENDPOINT}")
    if isinstance(error, hub.HFValidationError):
        return UserError(f"{repository} is not a repository of the hub: write ORG/NAME")
    if isinstance(error, hub.RepositoryNotFoundError | hub.GatedRepoError):
        return UserError(
            f"{repository}: {constants.ENDPOINT} has no such model, or shows it only to its "
            "members: check the id, or set HF_TOKEN"
        )
    if isinstance(error, hub.OfflineModeIsEnabled):
        return SlmError(f"{repository} is on the hub, but HF_HUB_OFFLINE is set: unset it")
    if status_of(error) in (401, 403):
        return UserError(f"{repository}: {constants.ENDPOINT} refuses HF_TOKEN: it may not do this")
    return failure(repository, error)
