"""Prefect's process worker that lets its flows save before it ends.

Prefect's own kills them immediately on SIGTERM: nothing is saved, and their runs stay Running.
This one sends them SIGTERM and waits; they save, and their runs end Crashed.
"""

import asyncio
import os
import platform
import signal
from contextlib import suppress

import psutil
from prefect.workers.process import ProcessWorker

POOL = "slm-process"
GRACE_SECONDS = 60.0  # for flows to save: longer than a training is given


async def work() -> None:
    """Run the flows that the work pool has, until SIGTERM or SIGINT."""
    os.environ["SLM_PARENT"] = str(os.getpid())  # for `slm.orchestration.stack.engine`
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    worker = ProcessWorker(work_pool_name=POOL, name=f"{platform.node()}-{os.getpid()}")
    working = asyncio.create_task(worker.start())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        await end_flows()
        working.cancel()
    await asyncio.gather(working, return_exceptions=stopping.is_set())


async def end_flows() -> None:
    """Send SIGTERM to every flow of this worker; wait until they have ended, or for a while."""
    signalled: set[int] = set()
    deadline = asyncio.get_running_loop().time() + GRACE_SECONDS
    while flows := psutil.Process().children():
        for flow in flows:
            if flow.pid not in signalled:  # also one that has just started
                signalled.add(flow.pid)
                with suppress(psutil.NoSuchProcess):
                    flow.terminate()
        if asyncio.get_running_loop().time() > deadline:
            return
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(work())
