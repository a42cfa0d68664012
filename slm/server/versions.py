"""The version that answers: opened once, or, of an alias, replaced whenever the alias moves.

A request keeps the version that it began with. The old version is closed when its last request has
ended, and then nothing refers to it any more. A version that cannot be opened changes nothing: the
old one goes on serving, and the reason is in `state`, for /health and /metrics.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from slm.errors import SlmError
from slm.records import names_version
from slm.registry.following import FollowedVersion
from slm.registry.opening import model_folder

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0  # until a version that could not be opened is tried again


class Engine(Protocol):
    """What answers requests with one model."""

    def close(self) -> None:
        """Free it; no request is in flight."""


E = TypeVar("E", bound=Engine)
Open = Callable[[str, Path], E]  # (name of the version, folder of its files) → its engine


@dataclass(eq=False)
class OpenVersion(Generic[E]):
    """A version and its engine while it is served."""

    version: str  # models:/NAME/VERSION, or the name of a run
    engine: E
    opened: float = field(default_factory=time.time)  # unix seconds
    in_flight: int = 0
    replaced: bool = False


class Served(Generic[E]):
    """A model that is served by the name it was asked for: a run, a folder, a version, an alias."""

    def __init__(self, reference: str, open_engine: Open[E], root: Path | None = None) -> None:
        """Open the version that the reference names now. Raises UserError where there is none."""
        self.reference = reference
        self.swaps = 0
        self.error: str | None = None  # why the alias is not followed at the moment
        self._open_engine = open_engine
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: tuple[str, float] = ("", 0.0)  # version that could not be opened, and when
        self._followed = FollowedVersion(reference, root) if names_version(reference) else None
        if self._followed is None:
            folder = model_folder(reference, root)
            self._current = OpenVersion(Path(reference).name, open_engine(reference, folder))
        else:
            version = self._followed.version()
            engine = open_engine(version.uri, self._followed.folder(version))
            self._current = OpenVersion(version.uri, engine)

    @property
    def version(self) -> str:
        """The version that a new request is answered by."""
        return self._current.version

    @property
    def state(self) -> dict[str, Any]:
        """For /health: which version, since when, and why it is not a newer one."""
        current = self._current
        return {
            "id": self.reference,
            "version": current.version,
            "since": current.opened,
            "follows": self._thread is not None,
            "swaps": self.swaps,
            "error": self.error,
        }

    @contextmanager
    def use(self) -> Iterator[OpenVersion[E]]:
        """The version for one request, which stays open until the request has ended."""
        with self._lock:
            opened = self._current
            opened.in_flight += 1
        try:
            yield opened
        finally:
            with self._lock:
                opened.in_flight -= 1
                unused = opened.replaced and not opened.in_flight
            if unused:
                self._free(opened)

    def check(self) -> bool:
        """Look once where the alias is now, and serve that version; whether it is another one."""
        if self._followed is None:
            return False
        try:
            version = self._followed.version()
            if version.uri == self.version:
                self.error = None
                return False
            if self._failed[0] == version.uri and time.monotonic() < self._failed[1]:
                return False
            self._failed = (version.uri, time.monotonic() + RETRY_SECONDS)
            engine = self._open_engine(version.uri, self._followed.folder(version))
        except Exception as error:  # whatever it is, the old version goes on serving
            self._report(error)
            return False
        self._replace(OpenVersion(version.uri, engine))
        return True

    def follow(self, seconds: float = POLL_SECONDS) -> None:
        """Check in a thread of its own until `close`; nothing where no alias is served."""
        if self._followed is None or not self._followed.may_move or self._thread is not None:
            return

        def watch() -> None:
            while not self._ended.wait(seconds):
                self.check()

        self._thread = threading.Thread(target=watch, name="follow-alias", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no longer, and free the engine; requests in flight are the caller's to end."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._current.engine.close()

    def _replace(self, opened: OpenVersion[E]) -> None:
        with self._lock:
            old, self._current = self._current, opened
            old.replaced = True
            unused = not old.in_flight
            self.swaps += 1
            self.error, self._failed = None, ("", 0.0)
        logger.info("%s is now %s, no longer %s", self.reference, opened.version, old.version)
        if unused:
            self._free(old)

    def _free(self, opened: OpenVersion[E]) -> None:
        logger.info("%s: its last request has ended", opened.version)
        opened.engine.close()

    def _report(self, error: Exception) -> None:
        message = str(error) if isinstance(error, SlmError) else f"{type(error).__name__}: {error}"
        if message != self.error:  # once, not at every look
            logger.error("%s still answers as %s: %s", self.reference, self.version, message)
        self.error = message
