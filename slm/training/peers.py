"""The training processes of several nodes: who is alive, and the end that all of them share.

torchrun starts processes that failed again. Two things it leaves to them:

- A node that loses its power or its network closes no connection: the others would wait in an
  exchange for half an hour. So every process counts up in a store, once a second, and one that sees
  another's count unchanged for `lost_seconds` ends itself; torchrun then starts those that are
  left. A process that hashes or saves for long, while the others wait for it, still counts.
- The end of the training, a stop, and an error that no restart can repair are for all nodes. So
  whoever comes to an end announces it, and all end with it, by an exit code that torchrun does not
  take for a failure. Where only a node leaves, that is an end after which the others start again.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from slm.errors import Interrupted
from slm.training.nodes import LOST_SECONDS, MIN_NODES

logger = logging.getLogger(__name__)

AGAIN, LOST = 75, 76  # exit codes: torchrun starts the processes again
START_SECONDS = 180.0  # for every process to import torch and to connect
BEAT_SECONDS = 1.0
ENDING_SECONDS = 5.0  # for a process to reach an announced end by itself
READ_SECONDS = 10.0  # for all to read it, while rank 0 still has the store

STOP_ALL = signal.SIGINT  # ends the training on all nodes
LEAVE = signal.SIGQUIT  # takes this node out of it
PARENT_DIED = signal.SIGHUP


@dataclass(frozen=True)
class End:
    """How a training ended."""

    code: int
    reason: str
    again: bool = False  # whether the nodes that are left start again


class Peers:
    """The processes of a training on several nodes, as one of them sees them."""

    def __init__(self, lost_seconds: float, min_nodes: int) -> None:
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.node, self.nodes = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
        self.lost_seconds, self.min_nodes = lost_seconds, min_nodes
        self.asked = False  # whether a process asked for a stop
        self._counts = [0] * self.world_size
        self._changed = [time.monotonic()] * self.world_size
        self._end: End | None = None
        self._ended, self._leaving = threading.Event(), threading.Event()
        self._served = _store(is_master=True) if self.rank == 0 else None
        if self._served:
            for rank in range(self.world_size):
                self._served.set(_count_of(rank), "0")
        # Of its own, since a connection makes one request at a time, and may wait in it.
        self._store = _store(is_master=False)
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def group_store(self) -> Store:
        """A store for the process group."""
        return PrefixStore("group", self._served or _store(is_master=False))

    # ---- stopping and ending ----

    def pass_on(self, signals: Iterable[int]) -> None:
        """Let all processes know which signals this one received: see `restarts`."""
        for number in signals:
            if number == STOP_ALL:
                self._store.set("stop", "1")
            elif number in (LEAVE, PARENT_DIED):
                self._store.set(f"leaving/{self.node}", "1")
        self._store.set("asked", "1")

    def restarts(self) -> bool:
        """Whether enough nodes are left to go on after a stop."""
        if self._store.check(["stop"]):
            return False
        leaving = sum(self._store.check([f"leaving/{node}"]) for node in range(self.nodes))
        return bool(self.nodes - leaving >= self.min_nodes)

    def announce(self, end: End) -> End:
        """End the training of all processes; returns the end that was announced first."""
        if end.code == Interrupted.exit_code and self.restarts():
            end = End(end.code, end.reason, again=True)
        return _decoded(self._store.compare_set("end", "", json.dumps(asdict(end))))

    def announced(self, seconds: float | None = None) -> End | None:
        """The end that a process announced; None where none has within the seconds."""
        self._ended.wait(seconds)
        return self._end

    def leave(self, end: End) -> int:
        """Leave the training, at its end; returns the exit code for torchrun.

        Rank 0 waits until all know the end, since the store goes with it.
        """
        self._leaving.set()
        deadline = time.monotonic() + READ_SECONDS
        try:
            self._store.add("read", 1)
            while self.rank == 0 and self._store.add("read", 0) < self.world_size:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        except RuntimeError:  # rank 0 has left
            logger.info("the store is gone")
        return AGAIN if end.again else 0

    # ---- who is alive ----

    def _beat(self) -> None:
        """Count up; see whose count has changed, and what was asked and announced."""
        names = [_count_of(rank) for rank in range(self.world_size)]
        try:
            while not self._leaving.is_set():
                self._store.add(_count_of(self.rank), 1)
                self.asked = self.asked or self._store.check(["asked"])
                if self._store.check(["end"]):
                    self._end = _decoded(self._store.get("end"))
                    self._ended.set()
                    return self._end_late(self._end)
                counts = [int(count) for count in self._store.multi_get(names)]
                for rank, count in enumerate(counts):
                    if count != self._counts[rank]:
                        self._counts[rank], self._changed[rank] = count, time.monotonic()
                self._leaving.wait(BEAT_SECONDS)
        except RuntimeError:
            self._give_up("the process of rank 0 is gone")

    def _end_late(self, end: End) -> None:
        """End this process, should its main thread wait for processes that have ended."""
        if not self._leaving.wait(ENDING_SECONDS):
            log_end(end)
            os._exit(self.leave(end))

    def _watch(self) -> None:
        """End this process where another one has not counted for too long."""
        while not self._leaving.wait(BEAT_SECONDS):
            now = time.monotonic()
            for rank, changed in enumerate(self._changed):
                limit = self.lost_seconds if self._counts[rank] else START_SECONDS
                if now - changed > max(limit, 2 * BEAT_SECONDS):
                    self._give_up(f"no sign of life from rank {rank} for {now - changed:.0f} s")

    def _give_up(self, reason: str) -> None:
        if not self._leaving.is_set():
            logger.error("%s: this process ends, for torchrun to start those that are left", reason)
            logging.shutdown()
            os._exit(LOST)


def connect() -> Peers | None:
    """The processes of this training, where it is on several nodes."""
    if LOST_SECONDS not in os.environ:
        return None
    return Peers(float(os.environ[LOST_SECONDS]), int(os.environ[MIN_NODES]))


def log_end(end: End) -> None:
    """Log why this process ends: in a line for `supervisor`, unless it is started again."""
    if end.again:
        logger.info("%s; those that are left start again", end.reason)
    else:
        reason = " ".join(end.reason.split())
        print(f"slm ended with {end.code}: {reason}", file=sys.stderr, flush=True)


def _count_of(rank: int) -> str:
    return f"alive/{rank}"


def _decoded(text: bytes) -> End:
    return End(**json.loads(text))


def _store(*, is_master: bool) -> TCPStore:
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_master,
        timeout=timedelta(seconds=START_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
