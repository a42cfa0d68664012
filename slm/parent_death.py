"""A signal at the parent's death: Linux sends it to a child whose parent dies, however it dies.

`python -m slm.parent_death COMMAND…` runs a command that gets SIGTERM then. On other systems than
Linux nothing is sent. The parent passes its own pid as `SLM_PARENT`; otherwise its death while the
child is still starting would go unnoticed.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def signal_when_parent_dies(number: int) -> None:
    """Request a signal for when the parent dies; send it immediately where that has happened.

    It may come more than once: the kernel sends one for each thread that the parent had.
    `SLM_PARENT` is removed from the environment, since this process's children have another parent.
    """
    parent = int(os.environ.pop("SLM_PARENT", os.getppid()))
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def main() -> None:
    """Becomes the command of the arguments."""
    signal_when_parent_dies(signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
