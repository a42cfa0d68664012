"""What this machine offers, and the environment that libraries read when they are imported."""

import os
import sys

from slm.config import data_root


def prepare() -> None:
    """Points every library's home into the data folder and turns telemetry off.

    Prefect reads these when it is imported, so call this before. What the user has set stays.
    Raises UserError where there is no data folder to point at.
    """
    data = data_root().resolve()
    if "SLM_DATA" in os.environ:
        os.environ["SLM_DATA"] = str(data)  # absolute: children may work in another folder
    settings = {
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "passive",  # a spinning thread starves the other on a busy machine
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # stack/setup.py takes silence for a crash
        "PREFECT_HOME": f"{data}/prefect",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "slm",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HOME": f"{data}/cache/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MPLCONFIGDIR": f"{data}/cache/matplotlib",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def ask_no_proxy(host: str) -> None:
    """Keeps requests to a server of this machine, and those of children, from any proxy."""
    for name in ("NO_PROXY", "no_proxy"):  # either may be read, and the smaller one first
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


def available_cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "darwin":  # it cannot say which
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))
