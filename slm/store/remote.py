"""A store: blobs by their hash, and entries that are written once.

A blob is there before any entry names it, and an entry is written whole or not at all. So a push
that is killed at any moment leaves blobs that nothing names, which the next push finds. On a file
system `storage.write_file` writes; an object store makes an object visible when it is whole.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from slm import storage
from slm.errors import CorruptionError, SlmError
from slm.records import FileEntry
from slm.store.address import Address, parse_address, redacted
from slm.store.entries import INSIDE, Entry, Kind, alias_place, blob_place, place

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20


class StoreError(SlmError):
    """A store cannot be reached, read or written."""


class Store:
    """The store at an address. Raises StoreError where it cannot be reached."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def __str__(self) -> str:
        return str(self.address)

    @cached_property
    def _filesystem(self) -> "AbstractFileSystem":
        with self._reached("opened"):
            return self.address.filesystem()

    def check_installed(self) -> None:
        """Raises UserError where the package of its file system is not installed."""
        _ = self._filesystem

    def _path(self, place: str) -> str:
        return f"{self.address}/{place}"

    @contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """Whatever a file system's library raises, as one message; what is missing aside."""
        try:
            yield
        except SlmError:
            raise
        except Exception as error:
            if done == "read" and isinstance(error, FileNotFoundError):
                raise
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            reason = redacted(" ".join(str(reason).split()))
            raise StoreError(f"the store {self} cannot be {done}: {reason}") from error

    # ---- entries ----

    def entry(
        self, kind: Kind, key: str, *, run: str | None = None, model: str = ""
    ) -> Entry | None:
        """The entry of a result; None where there is none. Raises CorruptionError."""
        return self._entry_at(place(kind, key, run=run, model=model))

    def _entry_at(self, place: str) -> Entry | None:
        text = self._read(place)
        return None if text is None else Entry.from_json(text, self._path(place))

    def add(self, entry: Entry) -> bool:
        """Write an entry where there is none; returns whether this call did.

        Its blobs are in the store. Of two that push the same result one is first, and its entry
        stays. It is read back.
        """
        with self._reached("written"):
            storage.fault_point("store.entry")
        written = self._write_once(entry.place, entry.to_json())
        stored = self._entry_at(entry.place)
        if stored is None or (stored.kind, stored.key) != (entry.kind, entry.key):
            raise StoreError(f"the store {self} does not return what was written to it")
        return written

    def inside(self, run_key: str) -> Iterator[Entry]:
        """The entries of what belongs to a run: evaluations, reports, selections."""
        for kind in INSIDE:
            for name in self._names(f"run/{run_key}/{kind}"):
                if entry := self._entry_at(f"run/{run_key}/{kind}/{name}"):
                    yield entry

    def keys(self, kind: Kind, beginning: str = "") -> list[str]:
        """The keys of a kind, `source`, `shards` or `run`, that begin so."""
        names = (name.removesuffix(".json") for name in self._names(kind, beginning))
        return sorted(name for name in names if name.startswith(beginning))

    def versions(self, model: str) -> list[Entry]:
        """What the store has of the versions of a model."""
        places = [f"version/{model}/{name}" for name in self._names(f"version/{model}")]
        return [entry for each in places if (entry := self._entry_at(each))]

    def models(self) -> list[str]:
        """The models that the store has versions of."""
        return self._names("version", suffix="")

    def alias(self, model: str, alias: str) -> str | None:
        """The key of the version that has an alias; None where none has it."""
        text = self._read(alias_place(model, alias))
        return None if text is None else text.decode("utf-8", "replace").strip()

    def set_alias(self, model: str, alias: str, key: str) -> None:
        self._write(alias_place(model, alias), f"{key}\n".encode())

    # ---- blobs ----

    def has_blob(self, blob: FileEntry, *, verify: bool = False) -> bool:
        """Whether a blob is there, of this size; with `verify` its bytes are hashed too."""
        with self._reached("read"):
            try:
                size = self._filesystem.info(self._path(blob_place(blob.sha256)))["size"]
            except FileNotFoundError:
                return False
        if size != blob.bytes:
            return False
        return not verify or self._digest(blob) == blob.sha256

    def _digest(self, blob: FileEntry) -> str:
        digest = hashlib.sha256()
        for chunk in self._chunks(blob_place(blob.sha256)):
            digest.update(chunk)
        return digest.hexdigest()

    def send(self, path: Path, blob: FileEntry) -> None:
        """Write a file as a blob."""
        with self._reached("written"):
            storage.fault_point("store.blob")
        target = blob_place(blob.sha256)
        if folder := self.address.folder:
            self._write_local(folder / target, _file_chunks(path))
        else:
            with path.open("rb"):  # what is wrong with the file is no fault of the store
                pass
            with self._reached("written"):
                self._filesystem.put_file(str(path), self._path(target))
        if not self.has_blob(blob):
            raise StoreError(f"the store {self} has not taken {path.name} ({blob.bytes:,} bytes)")

    def fetch(self, blob: FileEntry, path: Path) -> None:
        """Write a blob to a file. Raises CorruptionError where its bytes are not those of its hash.

        `path` then holds no such file.
        """
        digest = hashlib.sha256()
        try:
            with path.open("xb") as file:
                for chunk in self._chunks(blob_place(blob.sha256)):
                    digest.update(chunk)
                    file.write(chunk)
        except FileNotFoundError as error:
            path.unlink(missing_ok=True)
            raise CorruptionError(f"{self._path(blob_place(blob.sha256))} is missing") from error
        if digest.hexdigest() != blob.sha256:
            path.unlink()
            raise CorruptionError(
                f"{self._path(blob_place(blob.sha256))} is damaged: its sha256 is "
                f"{digest.hexdigest()[:12]}…"
            )

    def read_blob(self, blob: FileEntry) -> bytes:
        """A small blob. Raises CorruptionError as `fetch` does."""
        content = self._read(blob_place(blob.sha256))
        if content is None or storage.sha256_bytes(content) != blob.sha256:
            state = "missing" if content is None else "damaged"
            raise CorruptionError(f"{self._path(blob_place(blob.sha256))} is {state}")
        return content

    # ---- files ----

    def _read(self, place: str) -> bytes | None:
        with self._reached("read"):
            try:
                return cast(bytes, self._filesystem.cat_file(self._path(place)))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def _chunks(self, place: str) -> Iterator[bytes]:
        with self._reached("read"):
            file = self._filesystem.open(self._path(place), "rb", block_size=CHUNK_BYTES)
        with file:
            while True:
                with self._reached("read"):
                    chunk = cast(bytes, file.read(CHUNK_BYTES))
                if not chunk:
                    return
                yield chunk

    def _names(self, folder: str, beginning: str = "", suffix: str = ".json") -> list[str]:
        """The names in a folder that begin and end so."""
        with self._reached("read"):
            try:
                paths = self._filesystem.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(n for n in names if n.startswith(beginning) and n.endswith(suffix))

    def _write(self, place: str, content: bytes) -> None:
        if folder := self.address.folder:
            self._write_local(folder / place, content)
            return
        with self._reached("written"):
            self._filesystem.pipe_file(self._path(place), content)

    def _write_once(self, place: str, content: bytes) -> bool:
        """Write what is not there yet; returns whether this call did."""
        if folder := self.address.folder:
            return self._write_local(folder / place, content, replace=False)
        with self._reached("written"):
            if self._filesystem.exists(self._path(place)):
                return False
            try:
                self._filesystem.pipe_file(self._path(place), content, mode="create")
            except FileExistsError:
                return False
            except NotImplementedError:  # a server that has no conditional write
                self._filesystem.pipe_file(self._path(place), content)
        return True

    def _write_local(self, path: Path, content: Any, **options: bool) -> bool:
        with self._reached("written"):
            missing = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                storage.fsync_path(folder.parent)
            return storage.write_file(path, content, **options)


def open_store(address: str | Store) -> Store:
    """The store at an address. Raises UserError where that is none."""
    return address if isinstance(address, Store) else Store(parse_address(address))


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _chunks_of(file)


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
