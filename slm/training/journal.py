"""The journal of a run, `metrics.jsonl`: one JSON object a line, appended and flushed.

After a kill, training resumes from a checkpoint and repeats steps that the journal already has.
Their lines stay, with their times: the same step gives the same loss, bit for bit, and the journal
checks that it does. So no step is missing or doubled, however often a run was killed.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, cast

from slm.records import JournalEntry
from slm.run_folder import JOURNAL, RunFolder, parse_entry
from slm.storage import fsync_path, to_json, write_file

logger = logging.getLogger(__name__)

_CHECKED = {"step": "train_loss", "evaluate": "val_loss"}  # event → what must repeat exactly


class Journal:
    """Appends events to a run's journal, from any thread. Use as a context manager.

    Of several processes only the one with `enabled` writes.
    """

    def __init__(self, run: RunFolder, *, enabled: bool = True) -> None:
        self._run = run
        self._enabled = enabled
        self.path = run.path / JOURNAL if enabled else Path(os.devnull)
        self._lock = threading.RLock()
        self._cut_torn_line()
        known = run.journal if enabled else ()
        self._known = {(e["event"], e.get("step")): e for e in known}
        self._file = self.path.open("ab")

    def _cut_torn_line(self) -> None:
        """End the file at the first line that a kill, or a power cut, left unwritten."""
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = sum(map(len, takewhile(parse_entry, data.splitlines(keepends=True))))
        if whole < len(data):
            logger.warning("%s: %d bytes at its end are torn, cut", self.path, len(data) - whole)
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, event: str, **fields: Any) -> JournalEntry:
        """Append an event, unless it was written before an interruption; return the journal's.

        A known event that now has another loss means that this machine does not give the same bits
        as the one before: that is logged once, and the new figures replace the old.
        """
        with self._lock:
            known = self._known.get((event, fields.get("step"))) if event != "resume" else None
            if known is not None:
                checked = _CHECKED.get(event)
                before = dict(known).get(checked or "")
                if checked is None or before == fields[checked]:
                    return known
                logger.warning(
                    "step %s, repeated, has %s %r, it was %r: another machine, thread count or "
                    "torch?", fields["step"], checked, fields[checked], before,
                )  # fmt: skip
                self._forget(event, fields["step"])
            entry = {"event": event, "time": time.time(), **fields}
            self._file.write(_line(entry))
            self._file.flush()
        return cast(JournalEntry, entry)

    def _forget(self, event: str, step: int) -> None:
        """Drop the journal's entries from an event of a step on."""
        kept = [
            e
            for e in self._run.journal
            if (e.get("step") or 0) < step
            # The line of the step itself comes before its evaluation, and repeated exactly.
            or (event != "step" and e["event"] == "step" and e["step"] == step)
        ]
        self._file.close()
        write_file(self.path, b"".join(_line(e) for e in kept))
        self._known = {(e["event"], e.get("step")): e for e in kept}
        self._file = self.path.open("ab")
        self.write("diverged", step=step)

    def sync(self) -> None:
        """Make what was written durable: called before a checkpoint that relies on it."""
        if not self._enabled:
            return
        with self._lock:
            self._file.flush()
            fsync_path(self.path)


def _line(entry: Mapping[str, Any]) -> bytes:
    return to_json(entry).encode() + b"\n"


def process_counts(run: RunFolder) -> set[int]:
    """The numbers of processes that have trained a run. A journal of before that was noted: 1."""
    begun = ("start", "resume")
    return {e.get("processes", 1) for e in run.journal if e["event"] in begun} or {1}
