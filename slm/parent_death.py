"""A signal at the parent's death: a child gets one when its parent dies, however it dies.

Linux sends it; on other systems a thread of the child looks once a second whether it has another
parent. `python -m slm.parent_death COMMAND…` runs a command that gets SIGTERM then. The parent
passes its own pid as `SLM_PARENT`; otherwise its death while the child is still starting would go
unnoticed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 1.0


def signal_when_parent_dies(number: int) -> None:
    """Request a signal for when the parent dies; send it immediately where that has happened.

    It may come more than once: the kernel sends one for each thread that the parent had.
    `SLM_PARENT` is removed from the environment, since this process's children have another parent.
    """
    parent = int(os.environ.pop("SLM_PARENT", os.getppid()))
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent, number), daemon=True).start()
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _watch(parent: int, number: int) -> None:
    """Send this process the signal once its parent is another one."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), number)


def main() -> None:
    """Becomes the command of the arguments; where only a thread can watch, runs it as a child."""
    if sys.platform == "linux":
        signal_when_parent_dies(signal.SIGTERM)
        os.execvp(sys.argv[1], sys.argv[1:])
    child = subprocess.Popen(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    signal_when_parent_dies(signal.SIGTERM)
    code = child.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
