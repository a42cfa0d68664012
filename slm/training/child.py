"""How the training process is started: its command line and its environment."""

import logging
import os
import sys
from collections.abc import Sequence

from slm.config import PipelineConfig
from slm.machine import thread_waiting
from slm.run_folder import RunFolder
from slm.training.nodes import FROM_TORCHRUN, Nodes
from slm.training.plan import thread_count

logger = logging.getLogger(__name__)


def command(run: RunFolder, processes: int, nodes: Nodes | None = None) -> list[str]:
    """The child's command line: under torchrun where there is more than one process."""
    train = ["slm.training.process", str(run.path)]
    if processes == 1 and nodes is None:
        return [sys.executable, "-m", *train]
    return under_torchrun(train, processes, nodes.torchrun(run.name) if nodes else ())


def under_torchrun(module: Sequence[str], processes: int, meeting: Sequence[str] = ()) -> list[str]:
    """The command line of a module and its arguments in several processes.

    `meeting`: torchrun's options for several nodes; of none this machine is alone.
    """
    python = [sys.executable, "-m"]
    options = [*(meeting or ("--standalone",)), f"--nproc-per-node={processes}", "-m"]
    return [*python, "slm.parent_death", *python, "torch.distributed.run", *options, *module]


def environment(config: PipelineConfig, processes: int, nodes: Nodes | None) -> dict[str, str]:
    """`child_environment`, of several nodes or one; without what torchrun sets and reads."""
    variables = child_environment(config, processes)
    for name in list(variables):
        if name in FROM_TORCHRUN or name.startswith("PET_"):
            del variables[name]
    return {**variables, **(nodes.environment() if nodes else {})}


def child_environment(config: PipelineConfig, processes: int = 1) -> dict[str, str]:
    """The child's environment: what must be set before a process starts. What is exported wins.

    Only `train.threads`, where it is a number, wins over OMP_NUM_THREADS, with a warning.

    glibc returns large freed blocks to the kernel at every step by default, and pays for it in page
    faults: the thresholds keep them.
    """
    exported, threads = os.environ, str(thread_count(config.train, processes))
    if exported.get("OMP_NUM_THREADS", threads) != threads and config.train.threads != "auto":
        logger.warning(
            "train.threads=%s is used instead of OMP_NUM_THREADS=%s",
            threads, exported["OMP_NUM_THREADS"],
        )  # fmt: skip
    settings = {
        "MKL_NUM_THREADS": threads,
        **thread_waiting(),
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
    }
    if "PYTORCH_CUDA_ALLOC_CONF" not in exported:  # the older name of the same variable
        settings["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return {
        **settings,
        **exported,
        "OMP_NUM_THREADS": threads,
        "SLM_PARENT": str(os.getpid()),
    }
