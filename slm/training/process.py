"""The training process, `python -m slm.training.process RUN_DIR`: `launch.py` starts it.

It answers by its exit code, and by one last line in its log that says why it ended.
"""

import logging
import os
import re
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from slm.config import TrainConfig
from slm.errors import SlmError, TrainingError
from slm.machine import available_cores
from slm.parent_death import signal_when_parent_dies
from slm.run_folder import RunFolder
from slm.training.loop import train
from slm.training.plan import pick_device

logger = logging.getLogger(__name__)

ENDED = re.compile(r"slm ended with (\d+): (.*)")
PARENT_DIED = signal.SIGHUP


def main(run: RunFolder) -> int:
    """Trains a run in this process; returns the exit code. The last line logged says why."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asked = install_signal_handlers()
    signal_when_parent_dies(PARENT_DIED)
    try:
        set_up_torch(run)
        train(run, should_stop=lambda: bool(asked))
    except SlmError as error:
        return ended(error.exit_code, str(error))
    except OSError as error:
        logger.exception("cannot write")
        return ended(TrainingError.exit_code, f"{error}: the last checkpoint of {run.name} stands")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return ended(TrainingError.exit_code, out_of_memory_message(run, error))
    return 0


def ended(code: int, words: str) -> int:
    """Leaves why this process ends in a line that `ENDED` matches; returns the code."""
    print(f"slm ended with {code}: {' '.join(words.split())}", file=sys.stderr)
    return code


def set_up_torch(run: RunFolder) -> None:
    """Threads and kernels as the run has them, and the process group where there are several."""
    config, plan = run.config.train, run.plan
    device = plan.device if plan else pick_device(config.device)
    set_up_kernels(config, device, plan.threads if plan else None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo")


def set_up_kernels(config: TrainConfig, device: str, threads: int | None = None) -> None:
    """Threads, TF32 and deterministic kernels.

    `threads`: those that a run was begun with, since its bits depend on their count; None: those
    of the config.
    """
    wanted = available_cores() if config.threads == "auto" else config.threads
    torch.set_num_threads(threads or wanted)
    torch.set_float32_matmul_precision("high")
    if device == "cuda" and config.deterministic:
        torch.use_deterministic_algorithms(True)


def install_signal_handlers() -> list[int]:
    """SIGTERM, SIGINT and the parent's death ask for a save after this step, however often told.

    One wish is told many times: to all processes of a service at once, and again by the parent, by
    torchrun, and at a parent's death for each thread that it had. Who will not wait kills, as
    `launch.stop` does. Returns the list that the signals are put into.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, PARENT_DIED):
        signal.signal(number, lambda number, _: asked.append(number))
    return asked


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
        f"the last checkpoint of {run.name} stands"
    )


if __name__ == "__main__":
    code = main(RunFolder(Path(sys.argv[1])))
    logging.shutdown()
    os._exit(code)  # all is saved; to take torch apart costs a second that may not be left
