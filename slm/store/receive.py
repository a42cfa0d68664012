"""A result of a store → the data folder, complete as if it was made here.

Every blob is hashed while it arrives in the staging folder of `storage.run_stage`, which puts the
result in place when it is whole. So a damaged blob, a full disk or a kill leave what was here.
"""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from slm import storage
from slm.errors import CorruptionError
from slm.progress import Progress, silent
from slm.records import Frozen, Record
from slm.run_folder import KEY_DIGITS, LOCK, LOCK_PATIENCE_SECONDS, DataRoot, RunFolder
from slm.storage import R
from slm.store.entries import FOLDERS, KINDS, Entry
from slm.store.remote import Store

logger = logging.getLogger(__name__)

RECEIVERS = 8  # threads: blobs on their way together
TYPES = {kind: record for record, kind in KINDS.items()}


class Pulled(Frozen):
    """What a pull did."""

    store: str
    results: tuple[str, ...]  # that are here now, `runs/quickstart-3693316e0b15`
    pulled: tuple[str, ...]  # of them, those that were not here before
    bytes: int  # of these
    path: str | None = None  # of the result itself
    version: str | None = None  # that was registered


class Receiver:
    """Gets results from a store into a data folder, and counts."""

    def __init__(self, store: Store, home: DataRoot, progress: Progress = silent) -> None:
        self.store, self.home, self.progress = store, home, progress
        self.results: list[str] = []
        self.new: list[str] = []
        self.bytes = 0

    def pulled(self, path: Path, version: str | None = None) -> Pulled:
        return Pulled(
            store=str(self.store), results=tuple(self.results), pulled=tuple(self.new),
            bytes=self.bytes, path=str(path), version=version,
        )  # fmt: skip

    def with_needs(self, entry: Entry) -> Record:
        """A source; or a vocabulary or shards, after what they were made from."""
        if key := entry.needs.get("source"):
            source = self.store.entry("source", key)
            if source:
                self.receive(source)
            else:
                logger.warning("the store %s lacks the source of %s", self.store, entry.name)
        if key := entry.needs.get("tokenizer"):
            if vocabulary := self.store.entry("tokenizer", key):
                self.receive(vocabulary)
            else:
                logger.warning("the store %s lacks the vocabulary of %s", self.store, entry.name)
        return self.receive(entry)

    def with_run(self, entry: Entry, *, data: bool) -> RunFolder:
        """A run, after its data; then what belongs to it."""
        shards = self.store.entry("shards", entry.needs["shards"]) if data else None
        if shards:
            self.with_needs(shards)
        elif data:
            logger.warning("the store %s lacks the shards of %s", self.store, entry.name)
        run = RunFolder(self.receive(entry).path)
        for inner in self.store.inside(entry.key):
            if not belongs(self.store, inner, run):
                logger.warning("%s of %s is of another name's run: left out", inner.kind, run.name)
                continue
            self.receive(inner, run)
        return run

    def receive(self, entry: Entry, run: RunFolder | None = None) -> Record:
        """The result of an entry: the one that is here, or what the store has."""
        kind, folder = TYPES[entry.kind], self.folder(entry, run)
        record = self._receive(entry, kind, folder)
        name = str(record.path.relative_to(self.home.path))
        self.results.append(name)
        if record.pulled:
            self.new.append(name)
            self.bytes += entry.size
        return record

    def _receive(self, entry: Entry, kind: type[R], folder: Path) -> R:
        def fetch(staging: Path, place: Path, of: type[Record], key: str) -> Record:
            return fetch_entry(self.store, entry, staging, self.progress)

        def build(staging: Path) -> R:
            raise AssertionError("fetched")

        with storage.fetching(fetch), ExitStack() as held:
            if entry.kind == "run" and folder.is_dir() and not is_whole(RunFolder(folder)):
                lock = folder / LOCK
                held.enter_context(storage.lock(lock, wait=False, patience=LOCK_PATIENCE_SECONDS))
            return storage.run_stage(folder, kind, entry.key, build)

    def folder(self, entry: Entry, run: RunFolder | None) -> Path:
        """Where a result belongs here; one of the same key under another name stays there."""
        if run:
            if not re.fullmatch(rf"{entry.kind}(-[0-9a-f]+)?", entry.name):
                raise CorruptionError(f"{self.store}/{entry.place} is of a folder {entry.name!r}")
            return run.path / entry.name
        return self.home.folder(FOLDERS[entry.kind], stem(entry), entry.key)


def is_whole(run: RunFolder) -> bool:
    """Whether a run is finished and undamaged. Every file is hashed."""
    try:
        return run.exists and run.verified_record is not None
    except CorruptionError:
        return False


def stem(entry: Entry) -> str:
    """The name of a result without its key: `quickstart-3693316e0b15` → quickstart."""
    return entry.name.removesuffix(f"-{entry.key[:KEY_DIGITS]}")


# ---- files ------------------------------------------------------------------------------------


def fetch_entry(store: Store, entry: Entry, staging: Path, progress: Progress = silent) -> Record:
    """The files of an entry, hashed as they arrive, and the record that they are of.

    Raises CorruptionError where a blob is damaged, or the record is not of these files.
    """
    total, done = entry.size, 0
    with ThreadPoolExecutor(RECEIVERS) as pool:
        work = []
        for name, blob in entry.files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            work.append((pool.submit(store.fetch, blob, path), blob))
        try:
            for future, blob in work:
                future.result()
                done += blob.bytes
                progress(f"pulling {entry.name}", done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    record = storage.read_record(staging, TYPES[entry.kind], verify=False)
    if record is None or record.key != entry.key:
        raise CorruptionError(f"{store}/{entry.place} does not have the record of its key")
    for name, recorded in record.files.items():
        blob_of = entry.files.get(name)
        if blob_of is None or (blob_of.bytes, blob_of.sha256) != (recorded.bytes, recorded.sha256):
            raise CorruptionError(
                f"{store}/{entry.place} is not of the files that its record lists"
            )
    return record


def record_of(store: Store, entry: Entry) -> Record:
    """The record of an entry alone; no other file is read. Raises CorruptionError."""
    blob = entry.files.get(storage.RECORD)
    if blob is None:
        raise CorruptionError(f"{store}/{entry.place} has no {storage.RECORD}")
    with TemporaryDirectory() as temporary:
        (Path(temporary) / storage.RECORD).write_bytes(store.read_blob(blob))
        record = storage.read_record(Path(temporary), TYPES[entry.kind], verify=False)
    assert record is not None, "it was written just now"
    return record


def belongs(store: Store, entry: Entry, run: RunFolder) -> bool:
    """Whether an evaluation, a report or a selection is of a run's folder, by the run's name."""
    return getattr(record_of(store, entry), "run", None) == run.name
