"""Fault points: where a test may kill this process, or let its disk fail."""

import errno
import os
import signal

_passes: dict[str, int] = {}


def fault_point(name: str) -> None:
    """A place where a test may make this process fail: `SLM_FAULT=NAME:N:kill|enospc|eio|raise`.

    The fault fires at the N-th pass of that name (`*` counts every name). Unset, it costs one
    lookup in the environment.
    """
    fault = requested_fault()
    if not fault:
        return
    target, count, kind = fault.split(":")
    if target not in ("*", name):
        return
    _passes[target] = _passes.get(target, 0) + 1
    if _passes[target] != int(count):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise RuntimeError(f"fault injected at {name}")
    number = {"enospc": errno.ENOSPC, "eio": errno.EIO}[kind]
    raise OSError(number, os.strerror(number), name)


def requested_fault() -> str | None:
    """The fault that this process is asked for, in the form above."""
    return os.environ.get("SLM_FAULT")


def reset_fault_points() -> None:
    """Start to count the passes of every fault point anew."""
    _passes.clear()
