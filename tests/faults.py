"""Harness for proofs of recovery: forked trainers to be killed, and a disk that loses power.

The libraries are loaded once; each trainer is a fork of this process, so a kill and the training
that follows it take a fraction of a second. SIGKILL keeps the page cache, so it tests no fsync:
`Disk` records what was made durable when, and builds the folders that a power cut at any moment may
leave.
"""

import gc
import logging
import os
import random
import signal
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from slm import storage
from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.records import Decision, Shards
from slm.run_folder import CHECKPOINTS, LOG, RunFolder
from slm.training import launch
from slm.training.checkpoint import latest_checkpoint
from slm.training.loop import train

KILLED = -signal.SIGKILL
RAISED = 3  # the exit code of a fork whose work raised


# ---- forks ------------------------------------------------------------------------------------


def fork(work: Callable[[], object], *, fault: str = "", log: Path | None = None) -> int:
    """Starts the work in a fork of this process, with a fault if one is given; returns its id.

    It exits with 0, with an SlmError's own code, or with `RAISED`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: other threads are alive
        child = os.fork()
    if child:
        return child
    code = RAISED
    try:
        gc.disable()  # a collection would copy every page that the fork shares with its parent
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        logging.disable()
        storage.reset_fault_points()
        os.environ["SLM_FAULT"] = fault
        torch.set_num_threads(1)
        work()
        code = 0
    except SlmError as error:
        code = error.exit_code
        os.write(2, f"{error}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """A fork's exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_group(work: Callable[[], object], count: int, folder: Path) -> list[int]:
    """The same work in several forks of one process group, rank 0 first; returns their ids.

    One alone is in no group. Each writes to `log<rank>` in the folder.
    """
    meeting = folder / f"group{time.monotonic_ns()}"

    def member(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        if count > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
            )
        work()

    return [fork(partial(member, r), log=folder / f"log{r}") for r in range(count)]


# ---- trainings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bits:
    """What must be the same, however often a training was interrupted."""

    losses: tuple[tuple[int, str], ...]  # step, train_loss as float hex, in the journal's order
    scores: tuple[tuple[int, str], ...]  # the same of val_loss
    weights: str  # sha256
    optimizer: str
    decision: Decision | None  # of the clock, where that chooses the end


def bits(run: RunFolder) -> Bits:
    events = list(run.journal)
    last = latest_checkpoint(run.path / CHECKPOINTS)
    assert last is not None
    return Bits(
        tuple((e["step"], e["train_loss"].hex()) for e in events if e["event"] == "step"),
        tuple((e["step"], e["val_loss"].hex()) for e in events if e["event"] == "evaluate"),
        last.weights_sha256,
        last.files["optimizer.safetensors"].sha256,
        run.decision,
    )


@dataclass
class Lab:
    """A config and its shards, and folders to train it in again and again."""

    config: PipelineConfig
    shards: Shards
    folder: Path
    made: int = 0
    clock: Callable[[], Callable[[], float]] = lambda: time.perf_counter  # of each process

    def root(self) -> Path:
        """A new data folder with the same shards."""
        self.made += 1
        root = self.folder / str(self.made)
        root.mkdir(parents=True)
        return self.link(root)

    def link(self, root: Path) -> Path:
        (root / "shards").symlink_to(self.shards.path.parent)
        return root

    def prepare(self, root: Path) -> RunFolder:
        return launch.prepare(self.config, self.shards, root=root)

    def train(self, run: RunFolder, fault: str = "") -> int:
        work = partial(train, run, clock=self.clock())
        return wait(fork(work, fault=fault, log=run.path / LOG))

    def uninterrupted(self) -> Bits:
        """The bits of a training in this process, so that forks have what torch loads late."""
        run = self.prepare(self.root())
        train(run, clock=self.clock())
        return bits(run)


def leftovers(folder: Path) -> list[Path]:
    """What no process may leave that ends by itself, or that resumes after a killed one."""
    return [*folder.rglob("*.tmp"), *folder.rglob(".*.old")]


def kill_at_random(run: RunFolder, chance: random.Random, seconds: float) -> str:
    """Trains a run and kills it at some moment. Returns `done`, `saving` or `training`.

    Two times in five it waits for a save, and kills within its first milliseconds.
    """
    child = fork(lambda: train(run), log=run.path / LOG)
    checkpoints = run.path / CHECKPOINTS
    deadline = time.monotonic() + chance.uniform(0, seconds)
    if chance.random() < 0.4:
        while not list(checkpoints.glob("*.tmp")) and not _has_ended(child):
            time.sleep(0.0005)
        deadline = time.monotonic() + chance.uniform(0, 0.008)
    while time.monotonic() < deadline and not _has_ended(child):
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    if (code := wait(child)) != KILLED:
        assert code == 0, (run.path / LOG).read_text()
        return "done"
    return "saving" if list(checkpoints.glob("*.tmp")) else "training"


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# ---- power cuts -------------------------------------------------------------------------------

Name = str  # a path below the disk's root
Number = int  # of a file or folder: unlike an inode's, never given twice


@dataclass
class Moment:
    """What is in the page cache, and what of it is surely on the disk."""

    numbers: dict[Name, Number]
    contents: dict[Number, bytes | None]  # None for a folder
    synced: dict[Number, bytes]  # files as their last fsync left them
    entries: dict[Number, dict[str, Number]]  # folders as their last fsync left them


@dataclass
class Disk:
    """Records every fsync and every change of a name below a folder, while `watching`."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    _one_at_a_time: RLock = field(default_factory=RLock)  # a thread saves while another trains
    _inodes: dict[int, Number] = field(default_factory=dict)
    _last_number: int = 0
    _synced: dict[Number, bytes] = field(default_factory=dict)
    _entries: dict[Number, dict[str, Number]] = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What is there at the start is durable."""
        self._sync_all(self._look())
        self.moments.clear()
        self._look()
        names = ("rename", "mkdir", "unlink", "rmdir")
        with (
            patch.multiple(os, **{name: self._noted(getattr(os, name)) for name in names}),
            patch("os.fsync", self._fsync(os.fsync)),
        ):
            yield

    def _noted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            with self._one_at_a_time:
                self._look()  # writes before it are a moment of their own
                result = call(*arguments, **options)
                self._look()
            return result

        return noted

    def _fsync(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def noted(descriptor: int) -> None:
            with self._one_at_a_time:
                call(descriptor)
                moment = self._look()
                number = self._inodes.get(os.fstat(descriptor).st_ino)
                if number is not None:
                    self._sync(number, moment)
                self._look()

        return noted

    def _sync(self, number: Number, moment: Moment) -> None:
        content = moment.contents[number]
        if content is not None:
            self._synced[number] = content
            return
        folder = next(name for name, other in moment.numbers.items() if other == number)
        self._entries[number] = {
            Path(name).name: other
            for name, other in moment.numbers.items()
            if name != folder and str(Path(name).parent) == folder
        }

    def _sync_all(self, moment: Moment) -> None:
        for number in moment.numbers.values():
            self._sync(number, moment)

    def _look(self) -> Moment:
        numbers, contents, inodes = {}, dict[Number, bytes | None](), {}
        for path in (self.root, *sorted(self.root.rglob("*"))):
            try:
                status = path.lstat()
                data = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            except FileNotFoundError:  # removed by another thread
                continue
            if stat.S_ISLNK(status.st_mode):
                continue
            if status.st_ino not in self._inodes:
                self._last_number += 1
                self._inodes[status.st_ino] = self._last_number
            number = inodes[status.st_ino] = self._inodes[status.st_ino]
            numbers[str(path.relative_to(self.root))] = number
            contents[number] = data
        self._inodes = inodes  # a number that is gone may come again for another file
        moment = Moment(numbers, contents, dict(self._synced), dict(self._entries))
        self.moments.append(moment)
        return moment


UNSYNCED = ("kept", "dropped", "torn", "zeros", "names dropped")


def left_by(moment: Moment, unsynced: str) -> dict[Name, bytes | None]:
    """The files (and folders: None) after a power cut, by what becomes of what was not synced.

    `kept`: all of it is there, as after a kill. `dropped`: names are there, data is not. `torn`:
    half of the data is. `zeros`: the file has its length, filled with zeros. `names dropped`: a
    name counts only if its folder was synced after it was given.
    """
    if unsynced == "names dropped":
        return dict(_durable(moment, moment.numbers["."], ""))
    tree = dict[Name, bytes | None]()
    for name, number in moment.numbers.items():
        now, before = moment.contents[number], moment.synced.get(number, b"")
        if now is None or now == before or unsynced == "kept":
            tree[name] = now
        elif unsynced == "dropped":
            tree[name] = before
        elif unsynced == "torn":
            tree[name] = now[: (len(before) + len(now)) // 2]
        else:
            tree[name] = before + bytes(max(0, len(now) - len(before)))
    return tree


def _durable(moment: Moment, folder: Number, at: str) -> Iterator[tuple[Name, bytes | None]]:
    for name, number in moment.entries.get(folder, {}).items():
        path = f"{at}{name}"
        if moment.contents.get(number, b"") is None or number in moment.entries:
            yield path, None
            yield from _durable(moment, number, f"{path}/")
        else:
            yield path, moment.synced.get(number, b"")


def power_cuts(disk: Disk) -> Iterator[tuple[int, str, dict[Name, bytes | None]]]:
    """Every distinct folder that a power cut may leave: the moment, what was lost, the files."""
    seen = set[int]()
    for i, moment in enumerate(disk.moments):
        for unsynced in UNSYNCED:
            tree = left_by(moment, unsynced)
            mark = hash(frozenset(tree.items()))
            if mark not in seen:
                seen.add(mark)
                yield i, unsynced, tree


def rebuild(tree: dict[Name, bytes | None], target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for name, data in sorted(tree.items()):
        path = target / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return target
