"""Training processes without the seconds of their start: forks of one that has loaded PyTorch.

Of a trial that trains for seconds the imports would be a large part. Within `warm_starts` a
training process is forked from a server, `python -m slm.training.warm slm.training.process .`,
which has imported everything and has made no use of it: no thread, no kernel and no random number
is there before the fork, so that the training has the bits of any other. A server forks one
process at a time, and has one environment, which is read when a process starts.

Only on Linux, and where a CPU trains: a process that has seen a GPU cannot be forked. Whoever looks
for the trainer of a run finds the fork by the server's command line and its own working folder,
which is the run's.
"""

import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock

from slm.parent_death import signal_when_parent_dies

logger = logging.getLogger(__name__)

MODULE = "slm.training.process"


class Forked:
    """A training process that a server has forked, with what is used of `subprocess.Popen`."""

    def __init__(self, server: "_Server", run: Path, log: Path) -> None:
        self.server = server
        self.returncode: int | None = None
        self.pid = server.fork(run, log)

    def poll(self) -> int | None:
        """Its exit code, negative of a signal; None while it runs."""
        if self.returncode is None and self.server.answers(0):
            self.returncode = self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises TimeoutExpired."""
        if self.returncode is None:
            if not self.server.answers(timeout):
                raise subprocess.TimeoutExpired(MODULE, timeout or 0)
            self.returncode = self._end()
        return self.returncode

    def _end(self) -> int:
        """The exit code; with a server that was killed the training ends too, and can resume."""
        try:
            return self.server.answer()
        except OSError:
            self.server.usable = False
            return -signal.SIGKILL

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """A process that has imported what a training needs, and forks one at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.busy, self.usable = False, True
        self.environment = dict(environment)
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, MODULE, "."],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "SLM_PARENT": str(os.getpid())},
            start_new_session=True,
        )

    def fork(self, run: Path, log: Path) -> int:
        """The pid of a new training process. Raises OSError where the server has ended."""
        assert self.process.stdin is not None
        request = {"run": str(run.resolve()), "log": str(log.resolve())}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def answers(self, seconds: float | None) -> bool:
        """Whether there is an answer within so many seconds; None: waits for it."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout.fileno()], [], [], seconds)[0])

    def answer(self) -> int:
        """The next number that the server sends: a pid, or an exit code."""
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):  # a buffer would hide from `select` what it has read ahead
            if not (byte := os.read(self.process.stdout.fileno(), 1)):
                raise OSError("the server of training processes has ended")
            line += byte
        return int(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()


class _Servers:
    """The servers in use: as many as trainings run at a time, for each environment."""

    def __init__(self) -> None:
        self.servers: list[_Server] = []
        self.lock = Lock()

    def take(self, environment: Mapping[str, str]) -> _Server:
        """A server of this environment that forks nothing now; a new one if there is none."""
        with self.lock:
            for server in self.servers:
                if not server.busy and server.environment == environment:
                    break
            else:
                server = _Server(environment)
                self.servers.append(server)
            server.busy = True
            return server

    def give_back(self, server: _Server) -> None:
        """Let a server fork again; one that may be in any state is ended."""
        with self.lock:
            server.busy = False
            if not server.usable:
                self.servers.remove(server)
                server.close()


_in_use: ContextVar[_Servers | None] = ContextVar("servers", default=None)


@contextmanager
def warm_starts() -> Iterator[None]:
    """Within the block training processes are forked, where that is possible."""
    servers = _Servers()
    token = _in_use.set(servers)
    try:
        yield
    finally:
        _in_use.reset(token)
        for server in servers.servers:
            server.close()


@contextmanager
def forked(run: Path, log: Path, environment: Mapping[str, str]) -> Iterator[Forked | None]:
    """A training process of a run that is forked; None where it is to be started as usual.

    Args:
        log: the file that its output is appended to.
        environment: that of the process.
    """
    servers = _in_use.get()
    if servers is None or sys.platform != "linux":
        yield None
        return
    same = {name: value for name, value in environment.items() if name != "SLM_PARENT"}
    server = servers.take(same)
    child = None
    try:
        try:
            child = Forked(server, run, log)
        except OSError:
            logger.debug("no server of training processes could be started")
        yield child
    finally:
        server.usable = server.usable and child is not None and child.returncode is not None
        servers.give_back(server)


# ---- the server -------------------------------------------------------------------------------


def serve() -> None:
    """Fork a training process for every line of stdin; write its pid, then its exit code."""
    signal_when_parent_dies(signal.SIGKILL)

    from slm.training import process, provenance

    provenance.packages()
    provenance.code_state()  # of the code that is loaded now
    gc.collect()
    gc.freeze()  # so that no fork touches these pages
    server = os.getpid()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _enter(Path(request["run"]), Path(request["log"]), server)
                code = process.run(Path(request["run"]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _enter(run: Path, log: Path, server: int) -> None:
    """Make this fork what a started process is: its own session, its log, its folder."""
    os.environ["SLM_PARENT"] = str(server)
    os.environ["SLM_DATA"] = str(run.parents[1])  # a relative one is of another working folder
    os.setsid()
    os.chdir(run)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    serve()
