"""What of the data folder may go: what no kept run needs, and what interruptions left behind.

Never a run that a version was made from, nor its shards and source; never anything of a run that
is in training or may go on; never what is younger than `GRACE`, since somebody may be about to use
it. All else that goes can be made again, except the runs themselves: of those without a version
the newest are kept.
"""

import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from slm import storage
from slm.errors import CorruptionError
from slm.records import Checkpoint, Run, Shards, Source
from slm.registry.register import registered_notes
from slm.reproduction.reproduce import FOLDER as REPRODUCED
from slm.run_folder import CHECKPOINTS, RunFolder, checkpoint_folders

logger = logging.getLogger(__name__)

KEPT_RUNS = 5  # finished ones that no version was made from
GRACE = 3600.0  # seconds


class Item(BaseModel):
    """Something that goes or stays, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    bytes: int
    reason: str


class Retention(BaseModel):
    """What `collect` would remove, and what it leaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    going: tuple[Item, ...]
    staying: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.going)


def survey(
    root: Path,
    registered: Collection[str],
    *,
    keep_runs: int = KEPT_RUNS,
    grace: float = GRACE,
) -> Retention:
    """What may go from a data folder. Removes nothing.

    Args:
        registered: names of the runs that the registry has versions of; runs that say so
            themselves (`registered*.json`) are kept as well.
        keep_runs: how many finished runs without a version stay, the newest ones.
        grace: seconds for which what is new stays.
    """
    return _Survey(root, set(registered), keep_runs, time.time() - grace).result()


def collect(found: Retention) -> int:
    """Removes what a survey says may go; returns the bytes. What was used meanwhile stays."""
    freed = 0
    for item in found.going:
        if _in_use(item.path) or registered_notes(item.path):
            logger.warning("%s is in use now: it stays", item.path)
        elif item.path.is_dir():
            storage.discard(item.path)
            freed += item.bytes
        elif item.path.exists():
            item.path.unlink()
            freed += item.bytes
    return freed


class _Survey:
    """One look through a data folder."""

    def __init__(self, root: Path, registered: set[str], keep_runs: int, since: float) -> None:
        self.root, self.registered = root, registered
        self.keep_runs, self.since = keep_runs, since
        self.going: list[Item] = []
        self.staying: list[Item] = []

    def result(self) -> Retention:
        for kind in ("sources", "shards", "runs", REPRODUCED):
            self._leftovers(self.root / kind)
        for folder in _folders(self.root / REPRODUCED):
            self._sort(folder, "rebuilt by slm reproduce", keep="")
        runs = _folders(self.root / "runs")
        kept = self._runs(runs)
        shards = {_shards_key(run) for run in kept}
        sources = self._data("shards", Shards, shards)
        self._data("sources", Source, sources)
        return Retention(going=tuple(self.going), staying=tuple(self.staying))

    def _runs(self, runs: list[Path]) -> list[Path]:
        """Sorts runs; returns those that stay."""
        newest = sorted(runs, key=_changed, reverse=True)
        spare = [r for r in newest if self._why_kept(r) is None][: self.keep_runs]
        kept = []
        for run in runs:
            reason = self._why_kept(run)
            if reason is None and run in spare:
                reason = f"one of the newest {self.keep_runs} runs without a version"
            if self._sort(run, "an older run without a version", keep=reason or ""):
                kept.append(run)
                self._inside(run)
        return kept

    def _why_kept(self, run: Path) -> str | None:
        """Why a run stays whatever its age; None where it may go."""
        if run.name in self.registered or registered_notes(run):
            return "a version was made from it"
        if RunFolder(run).is_training:
            return "in training"
        record = _record(run, Run)
        if record is None and checkpoint_folders(run / CHECKPOINTS):
            return "unfinished: it may go on"
        if record is None and (run / storage.RECORD).exists():
            return "its record cannot be read"
        return None

    def _inside(self, run: Path) -> None:
        """Of a kept run: what was left behind; of a finished one, checkpoints that none needs."""
        if RunFolder(run).is_training:
            return
        self._leftovers(run)
        self._leftovers(run / CHECKPOINTS)
        record = _record(run, Run)
        if record is None:
            return
        needed = {record.best, record.last, _evaluated(run)}
        if not all(_is_whole(run / CHECKPOINTS / name) for name in (record.best, record.last)):
            return  # the others may be all that is left of it
        for _, folder in checkpoint_folders(run / CHECKPOINTS):
            if folder.name not in needed:
                self._sort(folder, "neither the best nor the last of a finished run", keep="")

    def _data(self, kind: str, record: type[Shards] | type[Source], needed: set[str]) -> set[str]:
        """Sorts shards or sources by what kept runs need; returns the keys of their inputs."""
        inputs = set()
        for folder in _folders(self.root / kind):
            found = _record(folder, record)
            reason = ""
            if found is None:
                reason = "its record cannot be read" if (folder / storage.RECORD).exists() else ""
            elif found.key in needed:
                reason = "a kept run needs it"
            stays = self._sort(folder, f"{kind} that no kept run needs", keep=reason)
            if stays and isinstance(found, Shards):
                inputs.add(found.source_key)
        return inputs

    def _leftovers(self, folder: Path) -> None:
        for path in sorted(folder.glob("*")) + sorted(folder.glob(".*")):
            if storage.LEFTOVER.fullmatch(path.name):
                reason = "put aside as corrupt" if ".corrupt-" in path.name else "left unfinished"
                writing = path.is_file() and _changed(path) > self.since
                keep = "in use" if writing or _in_use(path) else ""
                item = Item(path=path, bytes=_size(path), reason=keep or reason)
                (self.staying if keep else self.going).append(item)

    def _sort(self, path: Path, goes: str, *, keep: str) -> bool:
        """Puts something among what stays, for a reason or for its youth, or what goes.

        Returns whether it stays.
        """
        reason = keep or ("in use" if _in_use(path) else "")
        if not reason and _changed(path) > self.since:
            reason = "new"
        item = Item(path=path, bytes=_size(path), reason=reason or goes)
        (self.staying if reason else self.going).append(item)
        return bool(reason)


# ---- looking ----------------------------------------------------------------------------------


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder that are results, not leftovers, in the order of their names."""
    if not parent.is_dir():
        return []
    found = (path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    return sorted(
        p for p in found if not p.name.startswith(".") and not storage.LEFTOVER.fullmatch(p.name)
    )


def _record(folder: Path, kind: type[storage.R]) -> storage.R | None:
    try:
        return storage.read_record(folder, kind, verify=False)
    except CorruptionError:
        return None


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint is there with all its bytes."""
    try:
        return storage.read_record(folder, Checkpoint) is not None
    except CorruptionError:
        return False


def _evaluated(run: Path) -> str:
    try:
        return str(json.loads((run / "evaluation" / storage.RECORD).read_bytes())["checkpoint"])
    except (OSError, ValueError, KeyError):
        return ""


def _shards_key(run: Path) -> str:
    try:
        return RunFolder(run).settings.shards_key
    except CorruptionError:
        return ""


def _locks(path: Path) -> Iterator[Path]:
    """The locks that whoever works on a path holds."""
    base = re.sub(r"\.(tmp|units|old(-\d+)?|corrupt-\d+)$", "", path.name).removeprefix(".")
    yield path / "lock"  # a run, a reproduction
    yield path.with_name(f".{base}.lock")  # a stage's folder
    yield path.parent / "lock"  # what lies in a run
    yield path.parent.parent / "lock"  # in its checkpoints


def _in_use(path: Path) -> bool:
    return any(map(storage.is_held, _locks(path)))


def _changed(path: Path) -> float:
    """When a folder, or what lies in it, last changed."""
    inside: list[Path] = []
    with suppress(OSError):  # a file, or gone
        inside = list(path.iterdir())
    return max((found.st_mtime for found in _stats((path, *inside))), default=0.0)


def _size(path: Path) -> int:
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    files = inside if path.is_dir() else (path,)
    return sum(found.st_size for found in _stats(files))


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """What the paths are; those that go while it looks are left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.lstat()
