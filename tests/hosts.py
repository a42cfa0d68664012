"""Hosts on one machine: network namespaces, each with an address and a name of its own.

They are joined by a bridge in a namespace of its own, so that nothing outside sees them. A cable
can be cut, and a host can lose its power. Needs root on Linux, and iproute2.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SWITCH = "switch"
_count = 0


@dataclass
class Host:
    """A namespace in which commands can be run."""

    name: str  # its hostname too
    address: str
    cable: str  # its end in the switch
    switch: str
    started: list["subprocess.Popen[Any]"] = field(default_factory=list)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[Any]":
        """Start a command on this host; the process is the command itself."""
        named = 'hostname "$0" && exec "$@"'
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named]
        process = subprocess.Popen(
            [*inside, self.name, *command],
            env=without_proxy({**os.environ, **(environment or {})}),
            start_new_session=True,
            **options,
        )
        self.started.append(process)
        return process

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host to its end."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            env=without_proxy({**os.environ, **(environment or {})}),
            text=True,
            check=False,
            **options,
        )

    def cut(self) -> None:
        """Pull its cable: no connection is closed, no packet comes or goes."""
        _ip("-n", self.switch, "link", "set", self.cable, "down")

    def reconnect(self) -> None:
        _ip("-n", self.switch, "link", "set", self.cable, "up")

    def processes(self) -> list[int]:
        done = _ip("netns", "pids", self.name)
        return [int(pid) for pid in done.stdout.split()]

    def kill(self, *, silently: bool = False) -> None:
        """Kill all its processes; `silently`: as by a power cut, which closes no connection."""
        if silently:
            self.cut()
        deadline = time.monotonic() + 20
        while pids := self.processes():
            assert time.monotonic() < deadline, f"{self.name} still runs {pids}"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started:
                process.poll()
            time.sleep(0.05)
        for process in self.started:
            process.wait(10)


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done


def without_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Without this machine's way to the network, which no host has."""
    return {name: text for name, text in variables.items() if not name.lower().endswith("_proxy")}


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if sys.platform != "linux" or not Path("/proc/self/ns/net").exists():
        return "network namespaces are Linux's"
    for program in ("ip", "unshare"):
        if not shutil.which(program):
            return f"`{program}` is not installed"
    if os.geteuid():
        return "network namespaces need root"
    return None


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """Some hosts that reach each other; all that runs on them ends with the block.

    The test is skipped where they are not permitted.
    """
    global _count
    if reason := missing():
        pytest.skip(reason)
    _count += 1
    prefix = f"h{os.getpid()}{chr(96 + _count % 26)}"
    with ExitStack() as stack:
        try:
            made = _connected(stack, prefix, number)
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield made


def _connected(stack: ExitStack, prefix: str, number: int) -> list[Host]:
    switch = f"{prefix}-{SWITCH}"
    _namespace(stack, switch)
    _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge", "up")
    made = []
    for i in range(1, number + 1):
        host = Host(f"{prefix}-{i}", f"10.0.0.{i}", f"port{i}", switch)
        _namespace(stack, host.name)
        stack.callback(host.kill)
        _ip("-n", switch, "link", "add", host.cable, "type", "veth",
            "peer", "name", "eth0", "netns", host.name)  # fmt: skip
        _ip("-n", switch, "link", "set", host.cable, "master", "bridge", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
        made.append(host)
    return made


def _namespace(stack: ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    _ip("-n", name, "link", "set", "lo", "up")
