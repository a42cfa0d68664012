"""Which version a reference names now, asked again and again while the registry changes."""

import time
from pathlib import Path

from slm.config import data_root
from slm.records import parse_version
from slm.registry.version import CHAMPION, ModelVersion
from slm.registry.versions import fetch_version, find_alias, find_version
from slm.tracking.server import connect, default_uri, explained
from slm.tracking.store import file_of

MAX_UNASKED_SECONDS = 10.0  # two changes in one tick of a file's clock look like one


class FollowedVersion:
    """A reference to a model version whose answer may change: `NAME@champion`, `models:/NAME`.

    `models:/NAME` follows the champion, and is the newest version until there is one. A registry in
    a SQLite file is read only when the file has changed.
    """

    def __init__(self, reference: str, root: Path | None = None, *, uri: str | None = None) -> None:
        """Raises UserError where the reference is of no version."""
        self.reference = reference
        self.name, self.chosen = parse_version(reference)
        self.root = root or data_root()
        self.client = connect(uri or default_uri(self.root))
        self.last: ModelVersion | None = None
        self.asked = float("-inf")
        self.stamp: tuple[int, ...] = ()

    @property
    def may_move(self) -> bool:
        """Whether the reference is an alias: a number always names the same version."""
        return self.chosen is None or not self.chosen.isdigit()

    @explained()
    def version(self) -> ModelVersion:
        """The version that the reference names now.

        Raises UserError where there is none, SlmError where the registry cannot be reached.
        """
        stamp, now = self._stamp(), time.monotonic()
        fresh = stamp and stamp == self.stamp and now - self.asked < MAX_UNASKED_SECONDS
        if self.last is not None and (fresh or not self.may_move):
            return self.last
        self.stamp = ()  # of what could not be read, nothing is known
        if self.last is not None and self.chosen is None:
            self.last = find_alias(self.client, self.name, CHAMPION) or self.last
        else:
            self.last = find_version(self.client, self.reference)
        self.stamp, self.asked = stamp, now
        return self.last

    @explained()
    def folder(self, version: ModelVersion) -> Path:
        """The folder of a version's files, as of `fetch_version`."""
        return fetch_version(self.client, version, self.root)

    def _stamp(self) -> tuple[int, ...]:
        """What changes with the registry's file; empty for a server."""
        file = file_of(self.client.tracking_uri)
        if file is None or not file.exists():
            return ()
        paths = (file, file.with_name(f"{file.name}-wal"))
        stats = [path.stat() for path in paths if path.exists()]
        return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))
