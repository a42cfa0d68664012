"""What ends with its parent: Linux sends a signal to a process whose parent dies, however it dies.

`python -m slm.tether COMMAND…` runs a command that gets SIGTERM then. Elsewhere than on Linux
nothing is sent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def signal_when_parent_dies(number: int, parent: int) -> None:
    """Asks for a signal when our parent dies; sends it at once where `parent` is dead already.

    It may come more than once: the kernel tells of the death of each thread that the parent had.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def main() -> None:
    """Becomes the command of the arguments."""
    signal_when_parent_dies(signal.SIGTERM, os.getppid())
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
