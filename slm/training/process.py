"""The training process, `python -m slm.training.process RUN_DIR`, which `launch.py` starts.

It reports by its exit code, and by one last line in its log that gives the reason.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from slm.config import TrainConfig
from slm.errors import SlmError, TrainingError
from slm.machine import pick_device
from slm.parent_death import signal_when_parent_dies
from slm.run_folder import RunFolder
from slm.training.loop import train
from slm.training.plan import thread_count

logger = logging.getLogger(__name__)

ENDED = re.compile(r"slm ended with (\d+): (.*)")
PARENT_DIED = signal.SIGHUP


def main(run: RunFolder) -> int:
    """Train a run in this process; return the exit code. The last line logged is the reason."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signals = install_signal_handlers()
    signal_when_parent_dies(PARENT_DIED)
    try:
        set_up_torch(run)
        train(run, should_stop=lambda: bool(signals))
    except SlmError as error:
        return log_end(error.exit_code, str(error))
    except OSError as error:
        logger.exception("cannot write")
        return log_end(
            TrainingError.exit_code, f"{error}: the last checkpoint of {run.name} is kept"
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return log_end(TrainingError.exit_code, out_of_memory_message(run, error))
    return 0


def log_end(code: int, reason: str) -> int:
    """Log why this process ends in a line that `ENDED` matches; return the code."""
    print(f"slm ended with {code}: {' '.join(reason.split())}", file=sys.stderr)
    return code


def set_up_torch(run: RunFolder) -> None:
    """Threads and kernels as the run has them, and the process group where there are several."""
    config, plan = run.config.train, run.plan
    device = pick_device(plan.device if plan else config.device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    # The bits of a run depend on the number of threads that it was started with.
    set_up_kernels(config, device, plan.threads if plan else thread_count(config, world_size))
    if world_size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


@contextmanager
def torch_as_in(run: RunFolder) -> Iterator[None]:
    """Within the block, threads and kernels are as the run has them."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_up_torch(run)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)


def set_up_kernels(config: TrainConfig, device: torch.device, threads: int) -> None:
    """Threads, TF32 and deterministic kernels."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    if device.type == "cuda" and config.deterministic:
        torch.use_deterministic_algorithms(True)
        # Else every new tensor is filled with NaN first; no kernel of ours reads what it has not
        # written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def install_signal_handlers() -> list[int]:
    """SIGTERM, SIGINT and the parent's death ask for a save after this step.

    Each may come many times: to all processes of a service together, and again from the parent,
    from torchrun, and at a parent's death once for each of its threads. None cuts a save short; a
    process that shall not save is killed, as `launch.stop` does. Returns the list of the signals
    received so far.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, PARENT_DIED):
        signal.signal(number, lambda number, _: received.append(number))
    return received


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def out_of_memory_message(run: RunFolder, error: BaseException) -> str:
    """What did not fit, and what would."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    plan = run.plan
    rows = plan.micro_batch_size if plan else 0
    remedy = f"try train.micro_batch_size={rows // 2}" if rows > 1 else "try a smaller model"
    return (
        f"out of memory ({first}): {remedy}, which is another run, from its first step; "
        f"the last checkpoint of {run.name} is kept"
    )


if __name__ == "__main__":
    code = main(RunFolder(Path(sys.argv[1])))
    logging.shutdown()
    os._exit(code)  # all is saved, and unloading torch takes a second that may not be left
