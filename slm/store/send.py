"""Finished results of the data folder → a store: the blobs that it lacks, then the entry."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from slm import storage
from slm.errors import CorruptionError
from slm.progress import Progress, silent
from slm.records import (
    Benchmarks,
    Checkpoint,
    Evaluation,
    FileEntry,
    Frozen,
    Parent,
    Report,
    Run,
    Selection,
    Shards,
    Source,
    Vocabulary,
)
from slm.run_folder import BENCHMARKS, EVALUATION, LOCK, PARENT, REPORT, SELECTION, RunFolder
from slm.storage import R
from slm.store.entries import KINDS, Blob, Entry, Kind, blob_place, describe
from slm.store.remote import Store

logger = logging.getLogger(__name__)

SENDERS = 8  # threads: blobs on their way together
OfRun: TypeAlias = Evaluation | Benchmarks | Report | Selection
OF_RUN: dict[str, type[OfRun]] = {
    EVALUATION: Evaluation,
    BENCHMARKS: Benchmarks,
    REPORT: Report,
    SELECTION: Selection,
}


class Pushed(Frozen):
    """What a push did."""

    store: str
    results: tuple[str, ...]  # that are in the store now, `run/quickstart-3693316e0b15`
    sent: int  # blobs that the store lacked
    sent_bytes: int
    kept: int  # blobs that were there
    bytes: int  # of all


class Sender:
    """Sends results to a store, and counts.

    `verify`: hash the blobs that the store has, and replace what is damaged.
    """

    def __init__(self, store: Store, progress: Progress = silent, *, verify: bool = False) -> None:
        self.store, self.progress, self.verify = store, progress, verify
        self.results: list[str] = []
        self.sent = self.sent_bytes = self.kept = self.bytes = 0

    def pushed(self) -> Pushed:
        return Pushed(
            store=str(self.store), results=tuple(self.results), sent=self.sent,
            sent_bytes=self.sent_bytes, kept=self.kept, bytes=self.bytes,
        )  # fmt: skip

    def send(self, entry: Entry, folder: Path) -> None:
        """Send the blobs of an entry that the store lacks, then the entry.

        One that is there stays, with the blobs that it names: another machine may have made the
        result in another time. With `verify` its blobs are checked, and repaired from here.
        """
        stored = self.store.entry(entry.kind, entry.key, run=entry.run, model=entry.name)
        self.results.append(f"{entry.kind}/{entry.name}")
        if stored and not self.verify:
            self.kept += len({blob.sha256 for blob in stored.files.values()})
            self.bytes += stored.size
            return
        paths = {blob.sha256: folder / name for name, blob in entry.files.items()}
        self._send_blobs(stored or entry, paths)
        if stored is None:
            self.store.add(entry)

    def _send_blobs(self, entry: Entry, paths: Mapping[str, Path]) -> None:
        """`paths`: of the files that are here, by their hashes."""
        blobs = {blob.sha256: blob for blob in entry.files.values()}
        total, done = sum(blob.bytes for blob in blobs.values()), 0

        def send(blob: Blob) -> bool:
            if self.store.has_blob(blob, verify=self.verify):
                return False
            if blob.sha256 not in paths:
                raise CorruptionError(
                    f"{self.store}/{blob_place(blob.sha256)} of {entry.name} is damaged, and this "
                    "machine has no such file: push it from the one that made it"
                )
            self.store.send(paths[blob.sha256], blob)
            return True

        with ThreadPoolExecutor(SENDERS) as pool:
            work = [(pool.submit(send, blob), blob) for blob in blobs.values()]
            try:
                for future, blob in work:
                    was_sent = future.result()
                    done += blob.bytes
                    self.sent += was_sent
                    self.sent_bytes += blob.bytes if was_sent else 0
                    self.kept += not was_sent
                    self.progress(f"sending {entry.name}", done, total)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self.bytes += total


# ---- results ----------------------------------------------------------------------------------


def send_data(
    sender: Sender,
    record: Source | Vocabulary | Shards,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Send a source, a vocabulary, or shards. Raises CorruptionError where a file is damaged.

    `vocabulary`: of one's own, of shards that have it.
    """
    with storage.reading(record.path):
        verified = _verified(record.path, type(record))
        needs: dict[Kind, str] = {}
        if not isinstance(record, Source) and record.source_key:
            needs["source"] = record.source_key
        if vocabulary:
            needs["tokenizer"] = vocabulary.key
        files = {**verified.files, **_own_files(record.path)}
        sender.send(describe(KINDS[type(record)], verified, files, needs=needs), record.path)


def send_run(sender: Sender, run: RunFolder, record: Run) -> None:
    """Send a finished run: what its record lists, and every other checkpoint that it keeps."""
    with storage.lock_shared(run.path / LOCK):
        files = dict(record.files)
        for path in [run.path / PARENT, *(path for _, path in run.checkpoints)]:
            kind = Parent if path.name == PARENT else Checkpoint
            with _left_out_if_damaged():
                if inner := storage.read_record(path, kind):
                    own = {**inner.files, **_own_files(path)}
                    files |= {f"{path.relative_to(run.path)}/{n}": e for n, e in own.items()}
        files |= _own_files(run.path)
        needs: dict[Kind, str] = {"shards": record.shards_key}
        sender.send(describe("run", record, files, needs=needs), run.path)


def send_of_run(sender: Sender, run: RunFolder, record: OfRun) -> None:
    """Send what belongs to a run, such as its evaluation."""
    key = run.settings.key
    with storage.lock_shared(run.path / LOCK):
        files = {**_verified(record.path, type(record)).files, **_own_files(record.path)}
        entry = describe(KINDS[type(record)], record, files, run=key, needs={"run": key})
        sender.send(entry, record.path)


def results_of_run(run: RunFolder) -> Iterator[OfRun]:
    """What belongs to a run, such as its evaluations; what is damaged is left out."""
    for begin, kind in OF_RUN.items():
        for path in sorted(run.path.glob(f"{begin}*")):
            if path.is_dir() and not storage.LEFTOVER.fullmatch(path.name):
                with _left_out_if_damaged():
                    if record := storage.read_record(path, kind):
                        yield record


@contextmanager
def _left_out_if_damaged() -> Iterator[None]:
    try:
        yield
    except CorruptionError as error:
        logger.warning("%s; left out", error)


def _verified(folder: Path, kind: type[R]) -> R:
    record = storage.read_record(folder, kind)
    if record is None:
        raise CorruptionError(f"{folder} is not complete: it has no {storage.RECORD}")
    return record


def _own_files(folder: Path) -> dict[str, FileEntry]:
    """The record of a folder, and how it was made: what no record lists."""
    paths = [folder / name for name in (storage.RECORD, storage.MADE)]
    return storage.describe_files(folder, [path for path in paths if path.is_file()])
