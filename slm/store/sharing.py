"""The store of a project: its stages ask it before they compute, and fill it when they are done.

`store:` in `pipelines.yaml` names it, and SLM_STORE instead. A store that is down costs a warning:
the stage is computed here, and a later run of the same recipe sends what is missing.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, InUse, NewerFormat
from slm.progress import Progress, silent
from slm.recipes import store_address
from slm.records import (
    Benchmarks,
    Evaluation,
    Parent,
    Record,
    Report,
    Run,
    Selection,
    Shards,
    Source,
    Vocabulary,
)
from slm.run_folder import DataRoot, RunFolder
from slm.source.download import hub_keys
from slm.source.hub import is_commit
from slm.store.entries import INSIDE, KINDS, Entry, Kind
from slm.store.receive import Receiver, fetch_entry, is_whole, record_of
from slm.store.remote import Store, StoreError, open_store
from slm.store.send import Sender, results_of_run, send_data, send_of_run, send_run
from slm.training.identity import find_run, run_inputs, run_keys

logger = logging.getLogger("slm.store")

RETRY_SECONDS = 120.0  # for which a store that failed is left alone
T = TypeVar("T")


class SharedStore:
    """A store as a pipeline uses it: what fails is a warning, and the stage is computed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._down_until = {"asked": 0.0, "filled": 0.0}  # it may be readable alone

    def _tried(self, work: Callable[[], T], otherwise: str, done: str = "asked") -> T | None:
        """What `work` returns; None, with a warning, where the store fails."""
        if time.monotonic() < self._down_until[done]:
            return None
        try:
            return work()
        except StoreError as error:
            self._down_until[done] = time.monotonic() + RETRY_SECONDS
            logger.warning("%s; %s", error, otherwise)
        except (CorruptionError, NewerFormat) as error:
            logger.warning("%s; %s", error, otherwise)
        return None

    # ---- asking ----

    def entry(self, kind: Kind, key: str, run: str | None = None) -> Entry | None:
        """The entry of a result; None where there is none, or the store is down."""
        return self._tried(
            lambda: self.store.entry(kind, key, run=run), "results are computed here"
        )

    def record_of(self, entry: Entry) -> Record | None:
        """The record of an entry, whose other files are not read; None where it cannot be read."""
        return self._tried(lambda: record_of(self.store, entry), "it is not pulled")

    @contextmanager
    def asked(self, progress: Progress = silent) -> Iterator[None]:
        """Within the block, stages ask the store before they compute."""

        def fetch(staging: Path, folder: Path, of: type[Record], key: str) -> Record | None:
            kind = KINDS.get(of)
            if kind is None or kind == "run":
                return None
            run = RunFolder(folder.parent) if kind in INSIDE else None
            entry = self.entry(kind, key, run.settings.key if run else None)
            if entry is None:
                return None

            def work() -> Record | None:
                if run and not _fits(record_of(self.store, entry), run):
                    return None
                return fetch_entry(self.store, entry, staging, progress)

            return self._tried(work, "it is computed here")

        with storage.fetching(fetch):
            yield

    def pull_run(
        self, config: PipelineConfig, shards: Shards, parent: Parent | None, progress: Progress
    ) -> bool:
        """Get the finished run of a config, where it is not finished here; whether it did."""
        parent_key = parent.key if parent else None
        run = find_run(config, shards, parent_key, DataRoot())
        keys = run_keys(config, run_inputs(shards, parent_key))
        return self._pull_unfinished(run, keys, progress)

    def finish_run(self, run: RunFolder, progress: Progress) -> bool:
        """Get a run's end, where it is not finished here; whether it did."""
        return self._pull_unfinished(run, [run.settings.key], progress)

    def _pull_unfinished(self, run: RunFolder, keys: Sequence[str], progress: Progress) -> bool:
        if is_whole(run):
            return False
        entry = next((entry for key in keys if (entry := self.entry("run", key))), None)
        return entry is not None and self._pull(entry, progress) is not None

    def pull(self, kind: Kind, key: str, progress: Progress = silent) -> Record | None:
        """Get a source or shards by their key; None where they cannot be had."""
        entry = self.entry(kind, key)
        return self._pull(entry, progress) if entry else None

    def pull_hub_source(self, config: PipelineConfig, progress: Progress) -> bool:
        """Get the source of a dataset at a fixed commit, so that the hub need not be asked.

        Returns whether it did.
        """
        data, home = config.data, DataRoot()
        if data.source != "hub" or not is_commit(data.revision):
            return False
        keys = hub_keys(config, str(data.revision))
        if any(home.source(key) for key in keys):
            return False
        return any(self.pull("source", key, progress) for key in reversed(keys))

    def _pull(self, entry: Entry, progress: Progress) -> Record | None:
        def work() -> Record | None:
            try:
                return Receiver(self.store, DataRoot(), progress).receive(entry)
            except InUse:  # it is being trained here
                return None

        return self._tried(work, "it is computed here")

    # ---- filling ----

    def fill(self, record: object, progress: Progress = silent) -> None:
        """Send a stage's result, where the store lacks it."""
        sender = Sender(self.store, progress)

        def work() -> None:
            match record:
                case Shards() if self._lacks(record):
                    send_data(sender, record, DataRoot().vocabulary_of(record))
                case Source() | Vocabulary() if self._lacks(record):
                    send_data(sender, record)
                case Run():
                    run = RunFolder.of(record)
                    own = run.record
                    if own and self._lacks(own):
                        send_run(sender, run, own)
                    for inner in results_of_run(run):
                        if isinstance(inner, Selection) and self._lacks(inner):
                            send_of_run(sender, run, inner)
                case Evaluation() | Benchmarks() | Report() if self._lacks(record):
                    send_of_run(sender, RunFolder(record.path.parent), record)

        name = record.path.name if isinstance(record, Record) else ""
        if time.monotonic() >= self._down_until["asked"]:
            self._tried(work, f"{name} is here alone; the same command sends it later", "filled")

    def _lacks(self, record: Record) -> bool:
        kind = KINDS[type(record)]
        run = RunFolder(record.path.parent).settings.key if kind in INSIDE else None
        return self.store.entry(kind, record.key, run=run) is None


def _fits(record: Record, run: RunFolder) -> bool:
    """Whether a result is of a run's folder here: of its name, and of a checkpoint that it has."""
    if getattr(record, "run", None) != run.name:
        return False
    return not isinstance(record, Selection) or run.checkpoint(record.best) is not None


@cache
def _shared(address: str) -> SharedStore:
    store = open_store(address)
    store.check_installed()
    return SharedStore(store)


def shared_store() -> SharedStore | None:
    """The store of the project; None where it has none.

    Raises UserError for a wrong address, or where a package that it needs is not installed.
    """
    address = store_address()
    return _shared(address) if address else None
