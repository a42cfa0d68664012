"""What can be deleted from a data folder: what no kept run needs, and leftovers of interruptions.

Kept are every run that a version was made from, every run that is training or can resume, and
whatever changed within the last `GRACE` seconds, since a command may be about to use it. So are the
runs of a sweep that is not complete, and those of the best trial of one that is; the records of
trials are small and stay. A run holds a copy of the model that it started from. Of the finished
runs without a version the newest are kept. A kept run keeps its shards and their source. All else
that is deleted can be rebuilt, except the older runs themselves.
"""

import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field

from slm import storage
from slm.errors import CorruptionError, InUse, UserError
from slm.records import Checkpoint, Evaluation, Frozen, Run, Selection, Shards, Source, Vocabulary
from slm.registry.initial import IMPORTED
from slm.registry.tags import registered_notes
from slm.reproduction.reproduce import FOLDER as REPRODUCED
from slm.run_folder import CHECKPOINTS, EVALUATION, LOCK, SELECTION, DataRoot, RunFolder
from slm.sweeps.folder import SweepFolder
from slm.training.checkpoint import shared_with_longer
from slm.training.optim import cooldown_start

logger = logging.getLogger(__name__)

KEPT_RUNS = 5  # finished ones that no version was made from
GRACE = 3600.0  # seconds
IMPORT_DAYS = 7  # for which a Hugging Face model that was imported stays after its last use
_SUFFIX = re.compile(r"\.(tmp|units|old(-\d+)?|corrupt-\d+)$")  # of a leftover


@dataclass(frozen=True)
class Rules:
    """Which data folder, and what to keep in it; see `survey`."""

    root: Path
    registered: frozenset[str]
    keep_runs: int
    grace: float
    deleted: frozenset[Path] = frozenset()


class Item(Frozen):
    """Something that is deleted or stays, and why."""

    path: Path
    bytes: int
    reason: str


class Retention(Frozen):
    """What `collect` would delete, and what stays."""

    rules: Rules = Field(exclude=True, repr=False)
    going: tuple[Item, ...]
    staying: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.going)


@storage.hashing_once()
def survey(
    root: Path,
    registered: Collection[str],
    *,
    keep_runs: int = KEPT_RUNS,
    grace: float = GRACE,
    deleted: Collection[Path] = (),
) -> Retention:
    """Decide what can be deleted from a data folder. Deletes nothing.

    Args:
        registered: names of the runs that the registry has versions of; runs with a
            `registered*.json` are kept as well.
        keep_runs: how many finished runs without a version stay, the newest ones.
        grace: seconds for which what is new stays.
        deleted: notes `registered*.json` of versions that the registry no longer has.

    Raises NewerFormat where a newer slm wrote a record: what that needs is not known here.
    """
    rules = Rules(root, frozenset(registered), keep_runs, grace, frozenset(deleted))
    look = _Survey(rules)
    going: list[Item] = []
    staying: list[Item] = []
    for path in look.candidates():
        reason = look.why_kept(path)
        item = Item(path=path, bytes=_size(path), reason=reason or look.why_deleted(path))
        (staying if reason else going).append(item)
    return Retention(rules=rules, going=tuple(going), staying=tuple(staying))


@storage.hashing_once()
def collect(retention: Retention) -> int:
    """Delete what a survey found; returns the bytes.

    Each item is decided anew while its locks are held, in the survey's order: runs before the
    shards that they need, shards before sources. What came into use meanwhile stays.
    """
    freed = 0
    for item in retention.going:
        if not item.path.exists():
            continue
        try:
            with ExitStack() as held:
                for lock in _locks(retention.rules.root, item.path):
                    held.enter_context(storage.lock(lock, wait=False))
                reason = _Survey(retention.rules).why_needed(item.path)
                if reason is None:
                    _delete(item.path)
                    freed += item.bytes
        except InUse:
            reason = "in use"
        except FileNotFoundError:  # another gc deleted it first
            continue
        if reason:
            logger.warning("%s stays: %s", item.path, reason)
    return freed


def _delete(path: Path) -> None:
    if path.is_dir():
        storage.discard(path)
    else:
        path.unlink(missing_ok=True)


class _Survey:
    """One look through a data folder; what several decisions need is read once."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.root = rules, rules.root
        self.since = time.time() - rules.grace

    # ---- what there is ----

    def candidates(self) -> Iterator[Path]:
        """All that is decided about, in the order in which it can be deleted."""
        yield from _leftovers(self.root / "mlflow" / "models")
        for kind in (REPRODUCED, IMPORTED, "runs", "shards", "tokenizers", "sources"):
            yield from _leftovers(self.root / kind)
            for folder in _folders(self.root / kind):
                yield folder
                if kind == "runs" and folder in self._kept_runs and not self._is_held(folder):
                    yield from self._inside(RunFolder(folder))

    def _inside(self, run: RunFolder) -> Iterator[Path]:
        """Of a kept run: leftovers, and the checkpoints that it does not need."""
        yield from _leftovers(run.path)
        yield from _leftovers(run.path / CHECKPOINTS)
        yield from (path for _, path in run.checkpoints if self._checkpoint_need(path) is None)

    # ---- decisions ----

    def why_kept(self, path: Path) -> str | None:
        """Why something stays; None where it can be deleted."""
        if self._is_held(path):
            return "in training" if path.parent == self.root / "runs" else "in use"
        return self.why_needed(path)

    def why_needed(self, path: Path) -> str | None:
        """The same, whether or not a process holds its locks."""
        need = None
        if storage.LEFTOVER.fullmatch(path.name):
            if path.is_dir():
                return None  # its age says nothing: who works on it holds its lock
        elif path.parent.name == CHECKPOINTS:
            need = self._checkpoint_need(path)
        elif path.parent.name == "runs":
            need = self._run_need(RunFolder(path))
        elif path.parent.name == IMPORTED:
            if _changed(path) > time.time() - IMPORT_DAYS * 86_400:
                need = f"used within the last {IMPORT_DAYS} days"
        elif path.parent.name == "shards":
            need = _data_need(path, Shards, self._needed_shards)
        elif path.parent.name == "tokenizers":
            need = _data_need(path, Vocabulary, self._needed_tokenizers)
        elif path.parent.name == "sources":
            need = _data_need(path, Source, self._needed_sources)
        is_new = _changed(path) > self.since
        minutes = round(self.rules.grace / 60)
        return need or (f"changed within the last {minutes} minutes" if is_new else None)

    def why_deleted(self, path: Path) -> str:
        """What is printed of something that can be deleted."""
        if storage.LEFTOVER.fullmatch(path.name):
            return "quarantined as corrupt" if ".corrupt-" in path.name else "unfinished leftover"
        kind = path.relative_to(self.root).parts[0]
        if path.parent.name == CHECKPOINTS:
            return "neither the best nor the last of a finished run"
        if kind == "runs":
            done = RunFolder(path).is_finished
            return "an older run without a version" if done else "no step of it was trained"
        texts = {
            REPRODUCED: "rebuilt by slm reproduce",
            IMPORTED: "each run that started from it holds a copy",
        }
        return texts.get(kind, f"{kind} that no kept run needs")

    def _run_need(self, run: RunFolder) -> str | None:
        with suppress(CorruptionError):
            _ = run.settings  # raises NewerFormat
        if run.name in self.rules.registered or self._notes(run.path):
            return "a version was made from it"
        if sweep := self._of_sweeps.get(run.name):
            return sweep
        if run.is_finished:
            if _record(run.path, Run) is None:
                return "its record cannot be read"
            if run.path in self._newest_runs:
                return f"one of the newest {self.rules.keep_runs} runs without a version"
        elif run.checkpoints:
            return "unfinished: it can resume"
        return None

    def _checkpoint_need(self, path: Path) -> str | None:
        run = RunFolder(path.parents[1])
        record = _record(run.path, Run)
        if record is None:
            return "its run can resume"
        evaluations = (_record(f, Evaluation) for f in run.path.glob(f"{EVALUATION}*"))
        selections = (_record(f, Selection) for f in run.path.glob(f"{SELECTION}-*"))
        used = {e.checkpoint for e in evaluations if e} | {s.best for s in selections if s}
        used |= {scored.checkpoint for scored in run.all_benchmarks}
        if path.name in {record.best, record.last, *used}:
            return "the best, the last or an evaluated one"
        if path.name in _shared_with_longer(run):
            return "a longer training can continue from it"
        needed = (run.path / CHECKPOINTS / name for name in (record.best, record.last))
        if not all(_record(folder, Checkpoint, verify=True) for folder in needed):
            return "it may be all that is left of its run"
        return None

    def _notes(self, run: Path) -> set[Path]:
        """The notes of the versions that were made from a run and still exist."""
        return set(registered_notes(run)) - self.rules.deleted

    # ---- what kept runs need ----

    @cached_property
    def _of_sweeps(self) -> dict[str, str]:
        """The runs that a sweep needs, and why. Raises NewerFormat."""
        needs: dict[str, str] = {}
        for path in DataRoot(self.root).sweeps():
            folder = SweepFolder(path)
            result = folder.result
            if result is None or folder.is_running:
                why = f"a trial of the sweep {folder.name}, which is not complete"
                needs |= dict.fromkeys(folder.runs, why)
            elif result.winner:
                why = f"the best trial of the sweep {folder.name}"
                needs |= {seed.run: why for seed in result.winner.seeds}
        return needs

    @cached_property
    def _newest_runs(self) -> list[Path]:
        """The newest finished runs that no version was made from."""
        spare = [
            folder
            for folder in _folders(self.root / "runs")
            if folder.name not in self.rules.registered
            and folder.name not in self._of_sweeps
            and not self._notes(folder)
            and _record(folder, Run)
        ]
        return sorted(spare, key=_changed, reverse=True)[: self.rules.keep_runs]

    @cached_property
    def _kept_runs(self) -> list[Path]:
        return [path for path in _folders(self.root / "runs") if self.why_kept(path)]

    @cached_property
    def _needed_shards(self) -> set[str]:
        """Those of kept runs, and of a mixture among them those of its sources."""
        needed = set()
        for path in self._kept_runs:
            with suppress(CorruptionError):
                needed.add(RunFolder(path).settings.shards_key)
        mixed = (DataRoot(self.root).shards(key) for key in list(needed))
        return needed | {part.key for each in mixed if each for part in each.parts.values()}

    @cached_property
    def _kept_shards(self) -> list[Shards]:
        kept = (path for path in _folders(self.root / "shards") if self.why_kept(path))
        return [shards for path in kept if (shards := _record(path, Shards))]

    @cached_property
    def _needed_tokenizers(self) -> set[str]:
        return {shards.tokenizer_sha256 for shards in self._kept_shards}

    @cached_property
    def _needed_sources(self) -> set[str]:
        kept = (path for path in _folders(self.root / "tokenizers") if self.why_kept(path))
        vocabularies = (own for path in kept if (own := _record(path, Vocabulary)))
        trained_on = {own.source_key for own in vocabularies if own.source_key}
        needed = {shards.source_key for shards in self._kept_shards} | trained_on
        mixed = (DataRoot(self.root).source(key) for key in needed)
        return needed | {part.key for each in mixed if each for part in each.parts.values()}

    def _is_held(self, path: Path) -> bool:
        return any(map(_is_held, _locks(self.root, path)))


def _shared_with_longer(run: RunFolder) -> set[str]:
    """The checkpoints that `slm train RUN --longer` needs."""
    with suppress(CorruptionError):
        if plan := run.plan:
            start = cooldown_start(plan, run.decision, run.config.train)
            return shared_with_longer(run.path / CHECKPOINTS, start)
    return set()


def _data_need(
    path: Path, kind: type[Shards] | type[Vocabulary] | type[Source], needed: set[str]
) -> str | None:
    record = _record(path, kind)
    if record is None:
        return "its record cannot be read" if (path / storage.RECORD).exists() else None
    name = record.tokenizer_sha256 if isinstance(record, Vocabulary) else record.key
    return "a kept run needs it" if name in needed else None


# ---- locks ------------------------------------------------------------------------------------


def _locks(root: Path, path: Path) -> list[Path]:
    """The locks that whoever works on something holds.

    >>> _locks(root, root / "shards/tiny-1234")                # and of its .tmp, .units, .old
    [root / "shards/.tiny-1234.lock"]
    >>> _locks(root, root / "runs/tiny-5678")                  # and of its checkpoints
    [root / "runs/tiny-5678/lock"]
    >>> _locks(root, root / "runs/tiny-5678/evaluation.tmp")
    [root / "runs/tiny-5678/lock", root / "runs/tiny-5678/.evaluation.lock"]
    """
    kind, name, *inside = path.relative_to(root).parts
    is_leftover = storage.LEFTOVER.fullmatch(path.name)
    locks = []
    if kind in ("runs", REPRODUCED) and (inside or not is_leftover):
        locks.append(root / kind / name / LOCK)
    if is_leftover and path.is_file():
        locks.append(path)  # a file that is being written is its own lock
    elif kind in (IMPORTED, "shards", "tokenizers", "sources") or (
        is_leftover and path.parent.name != CHECKPOINTS
    ):
        result = _SUFFIX.sub("", path.name).removeprefix("." if is_leftover else "")
        locks.append(storage.lock_of(path.with_name(result)))
    return locks


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock, shared or not. Looking creates no file."""
    if not lock.exists():
        return False
    try:
        with storage.lock(lock, wait=False):
            return False
    except InUse:
        return True
    except UserError:  # not ours to write
        return storage.is_held(lock)


# ---- looking ----------------------------------------------------------------------------------


def _leftovers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if storage.LEFTOVER.fullmatch(path.name))


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder that are results, not leftovers, in the order of their names."""
    return sorted(
        path
        for path in parent.glob("[!.]*")
        if path.is_dir() and not path.is_symlink() and not storage.LEFTOVER.fullmatch(path.name)
    )


def _record(folder: Path, kind: type[storage.R], *, verify: bool = False) -> storage.R | None:
    """None where there is none, or it cannot be read. Raises NewerFormat."""
    with suppress(CorruptionError):
        return storage.read_record(folder, kind, verify=verify)
    return None


def _changed(path: Path) -> float:
    """When a file, or what is in a folder, last changed; locks, which are taken here, aside."""
    inside: list[Path] = []
    with suppress(OSError):  # a file, or gone
        inside = [
            each for each in path.iterdir() if not re.fullmatch(r"lock|\..+\.lock", each.name)
        ]
    return max((status.st_mtime for status in _stats(inside or (path,))), default=0.0)


def _size(path: Path) -> int:
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    files = inside if path.is_dir() else (path,)
    return sum(status.st_size for status in _stats(files))


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """The status of each path; those that are gone by then are left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.lstat()
