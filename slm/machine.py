"""What this machine offers, and the environment that libraries read when they are imported."""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from slm.config import data_root
from slm.errors import UserError

if TYPE_CHECKING:
    import torch  # takes seconds: only who asks for a device loads it

INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")  # the newest first


def prepare() -> None:
    """Point every library's home into the data folder and turn telemetry off.

    Prefect reads these when it is imported, so call this before. What the user has set stays.
    Raises UserError where there is no data folder to point at.
    """
    data = data_root().resolve()
    if "SLM_DATA" in os.environ:
        os.environ["SLM_DATA"] = str(data)  # absolute: children may work in another folder
    settings = {
        "DO_NOT_TRACK": "1",
        **thread_waiting(),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # stack/setup.py treats silence as a crash
        "PREFECT_HOME": f"{data}/prefect",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "slm",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # On disk, under PREFECT_HOME: what is in a server's memory is lost when it is restarted.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HOME": f"{data}/cache/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MPLCONFIGDIR": f"{data}/cache/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": f"{data}/cache/inductor",  # a shape is compiled once
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def thread_waiting() -> dict[str, str]:
    """How long a thread of torch spins before it sleeps, for libgomp; what the user has set wins.

    Waking a thread takes up to 40 µs on a virtual machine, and a step of a small model waits some
    thousand times: with threads that sleep at once it takes up to 1.6 times as long. By libgomp's
    own default they spin for milliseconds, and where another process needs a core, a step then
    takes over ten times as long. 5,000 turns are some hundred microseconds.
    """
    return {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "5000"}


def ask_no_proxy(host: str) -> None:
    """Keep requests to a server of this machine, and those of children, from any proxy."""
    for name in ("NO_PROXY", "no_proxy"):  # either may be read, and the smaller one first
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


def pick_device(choice: str) -> "torch.device":
    """The device of this process for `train.device`: `cpu`, or a GPU with its index.

    `auto` is `cuda`, else `mps`, else `cpu`. Under torchrun every process has a GPU of its own,
    LOCAL_RANK. Raises UserError where a GPU is demanded and torch sees none.
    """
    import torch

    if choice in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if choice in ("auto", "mps") and has_mps():
        return torch.device("mps", 0)
    if choice == "cuda":
        raise UserError("train.device='cuda': torch sees no CUDA GPU here; use cpu or auto")
    if choice == "mps":
        raise UserError("train.device='mps': torch sees no Apple GPU here; use cpu or auto")
    return torch.device("cpu")


def has_mps() -> bool:
    """Whether torch can use the GPU of an Apple computer, through Metal."""
    import torch

    return torch.backends.mps.is_available()


# ---- cores and memory -------------------------------------------------------------------------


def available_cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: its affinity, and the CPU quota of its container.

    `root`: the folder that holds `proc` and `sys`.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    for group in _control_groups("cpu", root):
        # "150000 100000" microseconds of CPU per period; "max", or -1, is no quota
        limit = _text(group / "cpu.max") or " ".join(
            _text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        )
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may have: the machine's, or its container's limit.

    All of it, not what is free: the same machine gives the same answer each time. `root`: the
    folder that holds `proc` and `sys`.
    """
    import psutil

    memory: int = psutil.virtual_memory().total
    for group in _control_groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (limit := _text(group / name)).isdigit():
                memory = min(memory, int(limit))
    return memory


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free now: the machine's, or what is left of its container's limit.

    `root`: the folder that holds `proc` and `sys`.
    """
    import psutil

    free: int = psutil.virtual_memory().available
    for group in _control_groups("memory", root):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, used = _text(group / limit), _text(group / usage)
            if most.isdigit() and used.isdigit():
                free = min(free, max(0, int(most) - int(used) + _reclaimable(group)))
    return free


def _reclaimable(group: Path) -> int:
    """Bytes of a control group that the kernel gives back when they are needed: cached files."""
    lines = (line.split() for line in _text(group / "memory.stat").splitlines())
    return sum(int(line[1]) for line in lines if line[0] == "inactive_file")


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, which limit it too.

    Of version 2, `0::/a/b` in /proc/self/cgroup, and of version 1, `4:cpu,cpuacct:/a/b`. Inside a
    container the path may be the host's, and then only the uppermost folder is there.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        own = mounts / controller if controllers else mounts
        place = PurePosixPath(path.lstrip("/"))
        yield from (own / part for part in (place, *place.parents))


def _text(path: Path) -> str:
    """The text of a file of the kernel's; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# ---- the CPU ----------------------------------------------------------------------------------


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets that the kernel lets programs use, such as `avx2` and `amx_bf16`.

    Empty where the system has no such file.
    """
    return frozenset(_cpu_info(path, "flags", "Features").split())


def cpu_kind(path: Path = Path("/proc/cpuinfo")) -> str:
    """What libraries choose their kernels by, so that other bits are expected where it differs.

    The CPU's maker, since MKL has other kernels for AMD's than for Intel's, and the instruction
    sets, since oneDNN uses newer ones than torch's own kernels have a name for.
    """
    maker = _cpu_info(path, "vendor_id", "CPU implementer") or platform.processor()
    sets = [name for name in INSTRUCTION_SETS if name in cpu_features(path)]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if limit:
        sets.append(f"oneDNN up to {limit}")
    return f"{maker} ({' '.join(sets)})" if sets else maker


def cpu_name() -> str:
    """The model of the CPU and the number of its cores."""
    name = _cpu_info(Path("/proc/cpuinfo"), "model name")
    return f"{name} × {os.cpu_count()}" if name else platform.processor()


def _cpu_info(path: Path, *fields: str) -> str:
    """The text of the first line of /proc/cpuinfo that begins with one of the fields, or ""."""
    lines = (line for line in _text(path).splitlines() if line.startswith(fields))
    return next(lines, ":").partition(":")[2].strip()


def has_amx_bf16(path: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether matrix products in bf16 run on AMX, which makes them several times faster.

    Without AMX they are no faster than float32, or slower. oneDNN, which makes them, can be held
    to older instruction sets by ONEDNN_MAX_CPU_ISA.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "all")).lower()
    allowed = limit in ("all", "default") or "amx" in limit
    return allowed and {"amx_tile", "amx_bf16"} <= cpu_features(path)
