"""What the machine does while a run trains, a line every few seconds in the run's `system.jsonl`.

The figures bear the names under which MLflow shows its own system metrics. They are written
whether or not a server can be reached; the mirror sends them when it can.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SYSTEM = "system.jsonl"
INTERVAL = 10.0  # seconds; a sample takes a millisecond or two


def watch(run: Path, stop: threading.Event) -> None:
    """Appends samples to a run folder until `stop` is set. A failure ends it, with one line."""
    try:
        _watch(run, stop)
    except Exception as error:
        logger.warning("the machine is not watched any more: %s", error)


def _watch(run: Path, stop: threading.Event) -> None:
    gpus = _gpus()
    sample(run, gpus)  # what psutil tells of the CPU is the time since it was last asked
    path = run / SYSTEM
    written = path.read_bytes() if path.exists() else b""
    number = written.count(b"\n")
    begin = b"" if written.endswith(b"\n") or not written else b"\n"  # after a torn line
    while not stop.wait(INTERVAL):
        number += 1
        event = {"event": "system", "step": number, "time": time.time(), **sample(run, gpus)}
        with path.open("ab") as file:
            file.write(begin + json.dumps(event).encode() + b"\n")
        begin = b""


def sample(folder: Path, gpus: list[Any]) -> dict[str, float]:
    """Load of CPU and GPUs, use of memory and of the disk that a folder lies on, by MLflow's name.

    Megabytes are millions of bytes.
    """
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }
    for number, gpu in enumerate(gpus):
        found |= {f"gpu_{number}_{name}": value for name, value in _of_gpu(gpu).items()}
    return {f"system/{name}": round(value, 1) for name, value in found.items()}


def _gpus() -> list[Any]:
    """NVML's handles of all GPUs of this machine; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _of_gpu(gpu: Any) -> dict[str, float]:
    """What a GPU tells of itself: not every one tells everything."""
    import pynvml

    found: dict[str, float] = {}
    asked: dict[str, Callable[[], Any]] = {
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "memory_usage_megabytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6,
        "power_usage_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    }
    for name, ask in asked.items():
        try:
            found[name] = float(ask())
        except pynvml.NVMLError:
            continue
    return found
