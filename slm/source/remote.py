"""Datasets at an address of any file system that fsspec knows: `s3://BUCKET/FOLDER`, `gs://…`.

Their files are fetched into `cache/remote/` of the data folder, where those that have not changed
are not fetched again; from there on they are local files. What is there can be deleted.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from slm.config import DataConfig, data_root
from slm.errors import SlmError, UserError, excerpt
from slm.extras import require
from slm.progress import Progress
from slm.source.documents import check_name, format_of
from slm.source.formats.archives import archive_of
from slm.storage import lock, make_folder, sha256_bytes, write_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CACHE = Path("cache", "remote")
MANIFEST = "manifest.json"  # of a copy: each file → what the file system knew it by
STATE = "state.json"  # of `save_to_disk`, without which its caches would be read too
SAVED_EVERY = 1000  # files: an interrupted fetch loses so many at most
_FORM = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_MODULES = {"s3": "s3fs", "s3a": "s3fs"}  # that an extra brings
_CONNECT_SECONDS = 5
_OPTIONS: dict[str, dict[str, Any]] = {  # of file systems whose own patience is minutes
    "s3fs": {"config_kwargs": {"connect_timeout": _CONNECT_SECONDS, "retries": {"max_attempts": 2}}}
}


def filesystem(scheme: str, where: str, example: str) -> "AbstractFileSystem":
    """A file system, which asks others' changes at every call.

    Raises UserError, for `where`, if its package is not installed, or there is no such one.
    """
    import fsspec

    module = _MODULES.get(scheme)
    if module:
        require(module, where)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:  # fsspec names the package
        raise UserError(f"{where} cannot be opened: {error}") from error
    except ValueError as error:
        raise UserError(
            f"{where}: there is no file system {scheme!r}; such as {example}"
        ) from error
    options = _OPTIONS.get(module or "", {})
    opened = kind(use_listings_cache=False, skip_instance_cache=True, **options)
    if module == "s3fs":
        opened.retries = 2
    return opened


def is_remote(path: str) -> bool:
    """Whether `data.path` is an address and no path."""
    return _FORM.fullmatch(path) is not None


def local_path(data: DataConfig, root: Path | None = None) -> str:
    """Where the files of `data.path` are on this machine, fetched or not yet; of a path, itself.

    Raises UserError for an address that is none.
    """
    form = _FORM.fullmatch(data.path)
    if form is None:
        return data.path
    scheme, rest = form[1], form[2]
    if any(sign in rest for sign in "@?#") or "::" in rest:
        raise UserError(
            f"data.path={scheme}://…: an address may hold no credentials before '@', no options "
            "after '?' or '#', and no '::'; credentials come from the environment, such as "
            "AWS_ACCESS_KEY_ID"
        )
    if not rest.strip("/"):
        raise UserError(f"data.path={data.path} names no place: such as s3://BUCKET/FOLDER")
    if scheme in ("file", "local"):
        return rest
    _, pattern = _split(rest.rstrip("/"))
    copy = _copy_of(data.path, root)
    return str(copy / pattern) if pattern else str(copy)


def is_here(data: DataConfig, root: Path | None = None) -> bool:
    """Whether the files of `data.path` can be listed without asking another machine."""
    if not is_remote(data.path) or data.path.startswith(("file://", "local://")):
        return True
    return (_copy_of(data.path, root).parent / MANIFEST).is_file()


def with_local_path(data: DataConfig, root: Path | None = None) -> DataConfig:
    """The same, with `local_path`."""
    path = local_path(data, root)
    return data if path == data.path else data.model_copy(update={"path": path})


def _copy_of(address: str, root: Path | None) -> Path:
    digest = sha256_bytes(address.rstrip("/").encode())[:16]
    return (root or data_root()) / CACHE / digest / "files"


def _split(rest: str) -> tuple[str, str]:
    """The place that is copied, and what in it is read: `b/x/*.txt` is `b/x` and `*.txt`.

    Of a single file the place is its folder; an address without `*` may be of either, and is asked.
    """
    parts = rest.split("/")
    count = next((i for i, part in enumerate(parts) if "*" in part), len(parts))
    return "/".join(parts[:count]), "/".join(parts[count:])


# ---- fetching ---------------------------------------------------------------------------------


def fetch(data: DataConfig, root: Path, progress: Progress) -> DataConfig:
    """Bring the copy of a remote dataset up to date; return the config that reads it.

    Of a path, or of `file://`, nothing is copied.

    Raises UserError where nothing is there, SlmError where the file system cannot be reached.
    """
    local = with_local_path(data, root)
    form = _FORM.fullmatch(data.path)
    if form is None or form[1] in ("file", "local"):
        return local
    copy = _copy_of(data.path, root)
    make_folder(copy)
    system = filesystem(form[1], f"data.path={data.path}", "s3://BUCKET/FOLDER")
    with lock(copy.parent / "lock"):
        with _reached(data.path):
            listed = _listing(system, form[2].rstrip("/"))
        names = {name: info for name, info in listed.items() if _is_read(name, data)}
        if not names:
            raise UserError(
                f"data.path={data.path} holds no file of a supported format"
                + (f", but {len(listed):,} other(s)" if listed else "")
            )
        _update(system, data.path, copy, names, progress)
    return local


Info = Mapping[str, Any]  # of a file, as its file system gives it: name, size, type, times, etag


def _listing(system: "AbstractFileSystem", rest: str) -> dict[str, Info]:
    """Each file of a folder, or that matches, by its name relative to what is copied."""
    base, pattern = _split(rest)
    if pattern:
        listed = system.glob(rest, detail=True)
    elif system.isfile(rest):
        base = rest.rpartition("/")[0]
        listed = {rest: system.info(rest)}
    else:
        listed = system.find(rest, detail=True)
    start = str(system._strip_protocol(base)).rstrip("/") + "/"
    files = ((path, info) for path, info in sorted(listed.items()) if info.get("type") == "file")
    return {path.removeprefix(start): info for path, info in files if not path.endswith("/")}


def _is_read(name: str, data: DataConfig) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(
            f"data.path={data.path}: {excerpt(ascii(name))} is no name of a file in it: rename it"
        )
    check_name(path, f"data.path={data.path}: ")
    readable = format_of(path, data.format) is not None or archive_of(path) is not None
    return readable or path.name == STATE


def _update(
    system: "AbstractFileSystem",
    address: str,
    copy: Path,
    names: Mapping[str, Info],
    progress: Progress,
) -> None:
    """Fetch what is new or has changed, and remove what is gone."""
    manifest = copy.parent / MANIFEST
    partial = manifest.with_suffix(".partial.json")
    known = _read(manifest) | _read(partial)
    for path in sorted(copy.rglob("*"), reverse=True):
        if not path.is_dir() and path.relative_to(copy).as_posix() not in names:
            path.unlink()
    marks: dict[str, str] = {}
    for number, (name, info) in enumerate(names.items(), 1):
        marks[name] = sha256_bytes(str(sorted(info.items(), key=lambda item: item[0])).encode())
        target = copy / name
        if known.get(name) != marks[name] or not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            with _reached(address):
                system.get_file(info["name"], str(part))
                size, came = info.get("size"), part.stat().st_size
                if size is not None and came != size:
                    raise OSError(f"{name}: {came} bytes came, not {size}")
            part.replace(target)
        progress("fetch files", number, len(names))
        if not number % SAVED_EVERY:
            write_json(partial, {**known, **marks})
    write_json(manifest, marks)
    partial.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str]:
    try:
        marks = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Whatever a file system's library raises, as one message."""
    try:
        yield
    except SlmError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"data.path={address} does not exist") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = excerpt(" ".join(str(reason).split()), 300)
        raise SlmError(f"data.path={address} cannot be read: {reason}") from error
