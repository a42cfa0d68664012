"""A process ends with its parent, even if that died before the process could ask for it."""

import os
import signal
import sys

import pytest
from faults import fork, wait

from slm.parent_death import signal_when_parent_dies

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone sends the signal")


def starts(parent: int | None) -> int:
    """The exit code of a process whose launcher passed it this pid, if any."""

    def start() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if parent is not None:
            os.environ["SLM_PARENT"] = str(parent)
        signal_when_parent_dies(signal.SIGTERM)
        assert "SLM_PARENT" not in os.environ

    return wait(fork(start))


def test_a_parent_that_died_while_the_process_was_starting_is_noticed() -> None:
    dead = fork(lambda: None)
    assert wait(dead) == 0
    assert starts(dead) == -signal.SIGTERM


def test_a_parent_that_lives_or_is_not_named_has_not_died() -> None:
    assert starts(os.getpid()) == 0
    assert starts(None) == 0
