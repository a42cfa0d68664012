"""A process ends with its parent, even if that died before the process could ask for it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from faults import fork, wait

from slm.parent_death import signal_when_parent_dies

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the other systems are imitated")


def starts(parent: int | None, platform: str = "linux") -> int:
    """The exit code of a process whose launcher passed it this pid, if any."""

    def start() -> None:
        sys.platform = platform
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if parent is not None:
            os.environ["SLM_PARENT"] = str(parent)
        signal_when_parent_dies(signal.SIGTERM)
        assert "SLM_PARENT" not in os.environ
        if platform != "linux" and parent not in (None, os.getppid()):
            time.sleep(30)  # a thread is to end this

    return wait(fork(start))


def test_a_parent_that_died_while_the_process_was_starting_is_noticed() -> None:
    dead = fork(lambda: None)
    assert wait(dead) == 0
    assert starts(dead) == -signal.SIGTERM


def test_a_parent_that_lives_or_is_not_named_has_not_died() -> None:
    assert starts(os.getpid()) == 0
    assert starts(None) == 0


def test_on_other_systems_the_process_looks_itself() -> None:
    dead = fork(lambda: None)
    assert wait(dead) == 0
    assert starts(dead, "darwin") == -signal.SIGTERM
    assert starts(os.getpid(), "darwin") == 0
    assert starts(None, "darwin") == 0


def watched(code: str) -> subprocess.Popen[bytes]:
    """`python -m slm.parent_death python -c CODE`, on a system that sends no signal."""
    script = (
        "import runpy, sys; sys.platform = 'darwin'; "
        "runpy.run_module('slm.parent_death', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", script, sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_on_other_systems_a_command_is_a_child_whose_code_and_signals_are_passed_on() -> None:
    with watched("raise SystemExit(7)") as ended:
        assert ended.wait(60) == 7
    with watched("import time; print('up', flush=True); time.sleep(60)") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
