"""torchrun as the child of a command: what it logged, and, on several nodes, when it is stuck.

torchrun waits long where others are gone: five minutes for those that ended differently, and
without an end for a machine that lost its power. Here such a wait is ended.
"""

import re
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from slm.errors import TrainingError
from slm.run_folder import RunFolder
from slm.training.log import ENDED, final_message, logged
from slm.training.nodes import JOIN_SECONDS, Nodes, answers

if TYPE_CHECKING:
    from slm.training.warm import Forked

MEETING = re.compile(r"\bRendezvous(Timeout|Connection|Closed)Error\b")  # of torchrun
ENDED_SECONDS = 10.0  # for torchrun to end after its processes
LOOK_SECONDS = 1.0  # between two looks at the log


class EndpointLost(TrainingError):
    """Nothing answers where the nodes meet."""


class Agent:
    """torchrun on one of several nodes.

    Args:
        child: its process.
        log: its file, and that of the training processes.
        begin: where its log begins in the file.
    """

    def __init__(
        self, child: "subprocess.Popen[bytes]", nodes: Nodes, log: Path, begin: int
    ) -> None:
        self.child, self.nodes, self.log, self.begin = child, nodes, log, begin
        self._looked = time.monotonic()
        self._ended: float | None = None  # when the training processes had
        self._answered: float | None = None  # when the endpoint last did; None: not yet
        threading.Thread(target=self._ask, daemon=True).start()

    def check(self) -> None:
        """Kill torchrun where it waits in vain. To be called again and again."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if self._ended is None and self._ends():
            self._ended = now
        if (self._ended is not None and now - self._ended > ENDED_SECONDS) or self._is_cut_off():
            kill(self.child)

    def end(self, run: RunFolder) -> tuple[int, str] | None:
        """How the training ended: code and reason; None where it is finished.

        torchrun's own code counts only where its processes came to no end. What it logged before
        the last end is of earlier starts.

        Raises EndpointLost and TrainingError where this node could not take part.
        """
        if ends := self._ends():
            code, reason = int(ends[-1][1]), ends[-1][2]
            return (code, reason) if code else None
        if run.is_finished:  # by others, while this node waited to join them
            return None
        errors = [met[1] for line in logged(self.log, self.begin) if (met := MEETING.search(line))]
        nodes, kind = self.nodes, errors[-1] if errors else None
        if kind == "Connection" or self._is_cut_off():
            raise EndpointLost(
                f"{run.name}: nothing answers at {nodes.endpoint}, where the nodes meet: it must "
                "be the address of one that runs the same command, and that this one reaches. The "
                f"last checkpoint is kept, and the same command resumes; torchrun's log is "
                f"{self.log}"
            )
        if kind == "Timeout":
            raise TrainingError(
                f"{run.name}: fewer than {nodes.fewest} nodes came to {nodes.endpoint} within "
                f"{JOIN_SECONDS} s (train.launch.nnodes={nodes.count}): run the same command on "
                "the others"
            )
        if kind == "Closed":
            raise TrainingError(
                f"{run.name}: the training on the other nodes has just ended: run the same command "
                "again"
            )
        assert self.child.returncode is not None
        return self.child.returncode or 1, final_message(self.log, self.begin)

    def _ends(self) -> list[re.Match[str]]:
        lines = logged(self.log, self.begin)
        return [ended for line in lines if (ended := ENDED.fullmatch(line))]

    def _ask(self) -> None:
        """See whether the endpoint answers, again and again: an attempt may take seconds."""
        while self.child.poll() is None:
            if answers(self.nodes.endpoint):
                self._answered = time.monotonic()
            time.sleep(self.nodes.lost_seconds / 6)

    def _is_cut_off(self) -> bool:
        silent = time.monotonic() - (self._answered or time.monotonic())
        return silent > self.nodes.lost_seconds


def kill(child: "subprocess.Popen[bytes] | Forked") -> None:
    """Kill a process and those that it started."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            process.kill()  # torchrun's workers
    child.kill()
    child.wait()
