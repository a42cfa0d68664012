"""What the machine does while a run trains, a line every few seconds in the run's `system.jsonl`.

The figures have the names of MLflow's own system metrics. They are written whether or not a server
can be reached; the mirror sends them when it can.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.storage import to_json

logger = logging.getLogger(__name__)

SYSTEM = "system.jsonl"
INTERVAL = 10.0  # seconds; a sample takes a millisecond or two


def watch(run: Path, stop: threading.Event) -> None:
    """Append samples to a run folder until `stop` is set. A failure ends it, with one line."""
    try:
        gpus = _gpus()
        sample(run, gpus)  # psutil measures the CPU's load since its last call
        path = run / SYSTEM
        written = path.read_bytes() if path.exists() else b""
        number = written.count(b"\n")
        begin = b"" if written.endswith(b"\n") or not written else b"\n"  # after a torn line
        while not stop.wait(INTERVAL):
            number += 1
            event = {"event": "system", "step": number, "time": time.time(), **sample(run, gpus)}
            with path.open("ab") as file:
                file.write(begin + to_json(event).encode() + b"\n")
            begin = b""
    except Exception as error:
        logger.warning("the machine is no longer watched: %s", error)


def sample(folder: Path, gpus: list[Any]) -> dict[str, float]:
    """Load of CPU and GPUs, use of memory and of the disk that a folder is on, by MLflow's names.

    Megabytes are millions of bytes.
    """
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }
    for number, gpu in enumerate(gpus):
        metrics |= {f"gpu_{number}_{name}": value for name, value in _of_gpu(gpu).items()}
    return {f"system/{name}": round(value, 1) for name, value in metrics.items()}


def _gpus() -> list[Any]:
    """NVML's handles of all GPUs of this machine; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _of_gpu(gpu: Any) -> dict[str, float]:
    """What a GPU reports; not every one supports every figure."""
    import pynvml

    figures: dict[str, float] = {}
    queries: dict[str, Callable[[], Any]] = {
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_usage_megabytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6,
        "power_usage_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    }
    for name, query in queries.items():
        with suppress(pynvml.NVMLError):
            figures[name] = float(query())
    return figures
