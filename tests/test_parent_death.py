"""What ends with its parent, though the parent died before it could ask for that."""

import os
import signal
import sys

import pytest
from faults import fork, wait

from slm.parent_death import signal_when_parent_dies

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone sends the signal")


def starts(parent: int | None) -> int:
    """What becomes of a process whose launcher gave it this pid, if any."""

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


def test_a_parent_that_lives_or_is_not_named_is_none_that_died() -> None:
    assert starts(os.getpid()) == 0
    assert starts(None) == 0
