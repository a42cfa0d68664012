"""An alias that moves: the version that it names is opened next to the one that is served, takes
its place, and the old one is freed once its last text is done.

A version that cannot be opened changes nothing: the old one keeps serving, and the reason is
reported.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from slm.errors import SlmError
from slm.records import names_version
from slm.registry.following import FollowedVersion
from slm.server.versions import ServedModel, ServedModels, open_model

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0  # until a version that could not be opened is tried again

Open = Callable[[str, Path], ServedModel]  # (address of the version, folder of its files)


def follow_aliases(
    models: ServedModels,
    *,
    root: Path | None = None,
    seconds: float = POLL_SECONDS,
    **settings: Any,
) -> "AliasWatch":
    """Keep every model that is served by an alias at the version that the alias names.

    `settings`: of `slm.server.versions.open_model`, as the models were opened with.
    """
    followers = []
    for name in filter(names_version, models.names()):
        followed = FollowedVersion(name, root)
        if followed.may_move:
            open_version = partial(open_model, name, root=root, **settings)
            followers.append(AliasFollower(models, name, followed, open_version))
    return AliasWatch(followers, seconds)


class AliasFollower:
    """Keeps one of the served models at the version that its alias names."""

    def __init__(
        self, models: ServedModels, name: str, followed: FollowedVersion, open_version: Open
    ) -> None:
        self.models, self.name, self.followed = models, name, followed
        self._open_version = open_version
        self._failed, self._retry = "", 0.0  # the version that could not be opened; when again

    def check(self) -> bool:
        """Look once where the alias is, and serve that version; whether it is another one."""
        served = self.models.get(self.name)
        try:
            version = self.followed.version()
            if version.uri == served.version:
                self.models.stale.pop(self.name, None)
                return False
            if version.uri == self._failed and time.monotonic() < self._retry:
                return False
            self._failed, self._retry = version.uri, time.monotonic() + RETRY_SECONDS
            opened = self._open_version(version.uri, self.followed.folder(version))
        except Exception as error:  # whatever it is, requests are answered by the old version
            self._report(served, error)
            return False
        self._failed = ""
        self.models.replace(opened)
        logger.warning("%s is now %s, no longer %s", self.name, opened.version, served.version)
        return True

    def _report(self, served: ServedModel, error: Exception) -> None:
        reason = str(error) if isinstance(error, SlmError) else f"{type(error).__name__}: {error}"
        if self.models.stale.get(self.name) != reason:  # once, not at every look
            logger.error("%s is still answered by %s: %s", self.name, served.version, reason)
        self.models.stale[self.name] = reason


class AliasWatch:
    """Followers in a thread of their own, until it is closed."""

    def __init__(self, followers: list[AliasFollower], seconds: float = POLL_SECONDS) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slm-aliases", daemon=True)
        self.followers, self.seconds = followers, seconds
        if followers:
            self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds):
            for follower in self.followers:
                follower.check()

    def close(self) -> None:
        """End, after the version that is being opened."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
