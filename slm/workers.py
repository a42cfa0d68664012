"""Spawned worker processes, none of which can fail unseen or outlive its parent."""

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import TypeVar

from slm.errors import SlmError

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spread(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Result]]:
    """`work` done for each job by spawned processes: pairs of job and result, as they come.

    With no workers it is done here, which spares little jobs the start of processes.
    Each process has a pool of its own, so that one that dies takes down no other, and it is known
    whose job it died of. That job is tried once more in a fresh process; when that dies as well,
    SlmError names the job. `str(job)` is its name; job, result and `work` must pickle.
    """
    if workers == 0:
        yield from ((job, work(job)) for job in jobs)
        return
    waiting, retried = deque(jobs), set[int]()
    idle = [_pool() for _ in range(min(workers, len(waiting)))]
    running: dict[Future[Result], tuple[ProcessPoolExecutor, Job]] = {}
    try:
        while waiting or running:
            with _bare_main():
                while waiting and idle:
                    pool, job = idle.pop(), waiting.popleft()
                    running[pool.submit(work, job)] = pool, job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, job = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    if id(job) in retried:
                        raise SlmError(
                            f"{job}: the worker process was killed, twice; "
                            "is there enough memory for it?"
                        ) from error
                    logger.warning("%s: the worker process was killed; trying once more", job)
                    pool.shutdown()
                    retried.add(id(job))
                    waiting.appendleft(job)
                    idle.append(_pool())
                else:
                    idle.append(pool)
                    yield job, result
    finally:
        for pool in (*idle, *(pool for pool, _ in running.values())):
            pool.shutdown(cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """In each worker: Ctrl-C is the parent's to answer, and its end is ours too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _bare_main() -> Iterator[None]:
    """A spawned process imports its parent's main script first; our workers need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
