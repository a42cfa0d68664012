"""Prefect's engine for one flow run, which ends when its worker dies.

Without it a worker that is killed leaves its flow running where nothing can cancel it. Here the
flow saves and ends, as after a SIGTERM, and the run ends Crashed, ready to be retried.
"""

import os
import runpy
import signal
from types import FrameType

from slm.parent_death import signal_when_parent_dies


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    signal.signal(signal.SIGHUP, _end_once)
    signal_when_parent_dies(signal.SIGHUP)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _end_once(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
