"""The training process, `python -m slm.training.process RUN_DIR`, which `supervisor.py` starts.

It reports by its exit code, and by one last line in its log that gives the reason. On several
nodes the code is for torchrun alone, which starts again what fails, and the line has the reason.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from slm.config import TrainConfig
from slm.errors import SlmError, TrainingError, Untrainable, UserError
from slm.machine import pick_device
from slm.parent_death import signal_when_parent_dies
from slm.run_folder import RunFolder
from slm.training.distributed import broadcast_from_rank0, wait_for_rank0
from slm.training.loop import train
from slm.training.nodes import VISIBLE_SECONDS
from slm.training.peers import LEAVE, LOST, PARENT_DIED, STOP_ALL, End, Peers, connect, log_end
from slm.training.plan import thread_count

logger = logging.getLogger(__name__)

UNTRAINABLE = 6  # exit code, so that the parent can tell it from other failures
MEANWHILE_SECONDS = 3.0  # for what another process announced to be known here
SHARED_CHECK = "shared.tmp"


def main(run: RunFolder) -> int:
    """Train a run in this process; return the exit code. The last line logged is the reason."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signals = install_signal_handlers()
    signal_when_parent_dies(PARENT_DIED)
    peers = connect()
    if peers is None:
        end = train_to_end(run, signals)
        if end.code:
            log_end(end)
        return end.code
    try:
        end = train_to_end(run, signals, peers)
        knows = end.code or peers.rank == 0
        end = peers.announce(end) if knows else end_of_rank0(peers, signals)
    except Exception:
        announced = peers.announced(MEANWHILE_SECONDS)
        if announced is None:
            logger.exception("this process ends, for torchrun to start it again")
            return LOST
        end = announced  # a process that waited for others, which had ended
    if os.environ["LOCAL_RANK"] == "0":
        log_end(end)
    return peers.leave(end)


def end_of_rank0(peers: Peers, signals: list[int]) -> End:
    """Wait while rank 0 saves and scores the final weights."""
    while (end := peers.announced(1.0)) is None:
        if signals:
            peers.pass_on(signals)
    return end


def train_to_end(run: RunFolder, signals: list[int], peers: Peers | None = None) -> End:
    """Train a run until it is finished, stopped, or fails for a reason that can be explained."""

    def should_stop() -> bool:
        if signals and peers:
            peers.pass_on(signals)
        return bool(signals) or (peers is not None and peers.asked)

    try:
        set_up_torch(run, peers)
        train(run, should_stop=should_stop)
    except Untrainable as error:
        return End(UNTRAINABLE, str(error))
    except SlmError as error:
        return End(error.exit_code, str(error))
    except OSError as error:
        logger.exception("cannot write")
        return End(TrainingError.exit_code, f"{error}: the last checkpoint of {run.name} is kept")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return End(UNTRAINABLE, out_of_memory_message(run, error))
    return End(0, f"{run.name} is trained")


def set_up_torch(run: RunFolder, peers: Peers | None = None) -> None:
    """Threads and kernels as the run has them, and the process group where there are several."""
    config, plan = run.config.train, run.plan
    device = pick_device(plan.device if plan else config.device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    # The bits of a run depend on the number of threads that it was started with.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    threads = plan.threads if plan else thread_count(config, here)
    if world_size > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = peers.group_store() if peers else None
        rank = int(os.environ["RANK"]) if peers else -1
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size if peers else -1
        )
    if peers:
        threads = int(broadcast_from_rank0(str(threads)))  # the nodes may differ in their cores
        check_shared(run, peers)
    set_up_kernels(config, device, threads)


def check_shared(run: RunFolder, peers: Peers) -> None:
    """Raises UserError where this process sees another folder under the run's path than rank 0."""
    path, mark = run.path / SHARED_CHECK, broadcast_from_rank0(secrets.token_hex())
    if peers.rank == 0:
        path.write_text(mark)
    wait_for_rank0()
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (path.is_file() and path.read_text() == mark):
        if time.monotonic() > deadline:
            raise UserError(
                f"the data folder {run.root.path} is not shared by the nodes: {run.name} on "
                f"{socket.gethostname()} is another folder than on the first one; point SLM_DATA "
                "to a folder that all of them see"
            )
        time.sleep(0.1)
    wait_for_rank0()
    if peers.rank == 0:
        path.unlink()


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
    """SIGTERM, SIGINT, SIGQUIT and the parent's death ask for a save after this step.

    Each may come many times: to all processes of a service together, and again from the parent,
    from torchrun, and at a parent's death once for each of its threads. None cuts a save short; a
    process that shall not save is killed, as `supervisor.stop` does. Returns the list of the
    signals received so far.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, STOP_ALL, LEAVE, PARENT_DIED):
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


def run(path: Path) -> int:
    """Train the run of a folder in this process, and close its log; return the exit code."""
    code = main(RunFolder(path))
    logging.shutdown()
    return code


if __name__ == "__main__":
    # All is saved, and unloading torch takes a second that may not be left.
    os._exit(run(Path(sys.argv[1])))
