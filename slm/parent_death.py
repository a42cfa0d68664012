"""What ends with its parent: Linux sends a signal to a process whose parent dies, however it dies.

`python -m slm.parent_death COMMAND…` runs a command that gets SIGTERM then. Elsewhere than on Linux
nothing is sent. Who starts such a process gives it its own pid as `SLM_PARENT`: a parent that dies
while the process is still starting would not be missed otherwise.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def signal_when_parent_dies(number: int) -> None:
    """Asks for a signal when our parent dies; sends it at once where it is dead already.

    It may come more than once: the kernel tells of the death of each thread that the parent had.
    `SLM_PARENT` leaves the environment, since our children have another parent.
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
