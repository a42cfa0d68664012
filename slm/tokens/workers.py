"""Spawned worker processes, which neither fail silently nor outlive their parent.

Those of a cluster are in `slm.orchestration.cluster`; here is what can be known of it beforehand.
"""

import atexit
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context, parent_process
from queue import SimpleQueue
from types import ModuleType
from typing import Self, TypeVar
from urllib.parse import urlsplit

from slm.config import DataConfig
from slm.errors import SlmError, UserError
from slm.extras import require

logger = logging.getLogger(__name__)

RUNNERS = {"dask": "prefect_dask", "ray": "prefect_ray"}  # `data.runner` → the module it needs
CONNECT_SECONDS = 10.0
Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """`count` processes, started when they get their first job and ended with the `with` block.

    With 0 the work is done in this process, which saves small jobs the start of others.

    Each process has a pool of its own, so one that dies takes down no other, and the job that it
    died of is known. That job is tried once more in a fresh process.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads = ThreadPoolExecutor(max(1, count))  # each waits for one process
        self._idle = SimpleQueue[ProcessPoolExecutor]()
        for _ in range(count):
            self._idle.put(_pool())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self._count):
            self._idle.get().shutdown()

    def spread(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Generator[tuple[Job, Result]]:
        """Do `work` for each job; yield pairs of job and result as they are done.

        `str(job)` is its name; job, result and `work` must pickle. Raises what `work` raises, and
        SlmError naming the job that two processes died of.
        """
        if not self._count:
            yield from ((job, work(job)) for job in jobs)
            return
        futures = [self._threads.submit(self._attempt, work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _attempt(self, work: Callable[[Job], Result], job: Job) -> tuple[Job, Result]:
        for _ in range(2):
            pool = self._idle.get()
            try:
                with bare_main():
                    future = pool.submit(work, job)
                return job, future.result()
            except BrokenProcessPool:
                logger.warning("%s: its worker process was killed", job)
                pool.shutdown()
                pool = _pool()
            finally:
                self._idle.put(pool)
        raise SlmError(f"{job}: its worker process was killed, twice; is there enough memory?")


def check_runner(data: DataConfig) -> None:
    """Raises UserError where the library of `data.runner` is missing or its cluster unreachable."""
    if data.runner == "local":
        return
    require(RUNNERS[data.runner], f"data.runner={data.runner}")
    if not data.runner_address:
        return
    address = urlsplit(
        data.runner_address if "//" in data.runner_address else f"//{data.runner_address}"
    )
    try:
        socket.create_connection((address.hostname, address.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at data.runner_address={data.runner_address} ({error}): start the "
            f"{data.runner} cluster, or encode here: --set data.runner=local gives the same shards"
        ) from None


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """In each worker: leave Ctrl-C to the parent, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # all is on disk, and a normal exit takes 0.2 s
    keep_memory()


@cache
def keep_memory() -> None:
    """Keep freed arrays for the next ones, instead of returning them to the kernel each time.

    Without it, encoding took a third of its time in the kernel. Arrow's own allocator has no such
    setting, so Arrow uses glibc's.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_trim_threshold, 256 << 20)
        mallopt(m_mmap_threshold, 32 << 20)  # the largest value allowed


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_spawning = threading.Lock()
_blocks, _main = 0, sys.modules["__main__"]  # how many of `bare_main` are entered; what they hide


@contextmanager
def bare_main() -> Iterator[None]:
    """Hide the main script while processes are spawned, in any number of threads.

    A spawned process imports its parent's main script first; our workers do not need it.
    """
    global _blocks, _main
    with _spawning:
        if not _blocks:
            _main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        _blocks += 1
    try:
        yield
    finally:
        with _spawning:
            _blocks -= 1
            if not _blocks:
                sys.modules["__main__"] = _main
