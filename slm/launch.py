"""The process boundary: training runs in a child process, and this module starts and watches it.

Signals reach the child's main thread, a crash or an out-of-memory kill cannot take the caller
down, and allocator, thread and determinism settings, which must stand before a process starts, are
set in its environment. `python -m slm.launch RUN_DIR` is the child.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from slm.checkpoint import CONFIG, MODEL_FILES
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, Interrupted, SlmError, TrainingError, UserError
from slm.journal import JOURNAL
from slm.plan import PLAN, Plan, auto_threads
from slm.records import Parent, Progress, Run, Shards, silent
from slm.session import GLANCE, LOCK, PARENT, read_settings
from slm.storage import (
    content_hash,
    lock,
    make_folder,
    mismatches,
    quarantine,
    read_record,
    run_stage,
    stage_key,
    withdraw,
    write_json,
)
from slm.tether import signal_when_parent_dies
from slm.train import TRAIN_VERSION
from slm.train import train as train_here

logger = logging.getLogger(__name__)

LOG = "train.log"
POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0  # for the child to finish its step and save, once it is asked to stop
PARENT_DIED = signal.SIGHUP
ENDED = re.compile(r"slm ended with (\d+): (.*)")


def prepare(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
) -> Path:
    """Makes the run folder of a config on some shards, or finds it; returns its path.

    `parent`: the model that the weights start from; the run keeps a copy. None: from the seed.
    """
    inputs: Any = content_hash(shards)
    if parent:
        inputs = {"shards": inputs, "parent": parent.key}
    key = stage_key("train", TRAIN_VERSION, config.train_fields(), inputs)
    run = (root or data_root()) / "runs" / f"{config.recipe}-{key[:12]}"
    if not (run / CONFIG).is_file():
        make_folder(run / "checkpoints")
        if parent:
            keep_parent(parent, run)
        described = {
            "key": key,
            "config": config.model_dump(mode="json"),
            "shards": shards.name,
            "shards_key": shards.key,
            **({"parent": parent.key} if parent else {}),
        }
        write_json(run / CONFIG, described)
    return run


def keep_parent(parent: Parent, run: Path) -> None:
    """Copies the parent's files into the run's folder."""

    def copy(staging: Path) -> Parent:
        for name in MODEL_FILES:
            shutil.copy(parent.path / name, staging / name)
        return parent

    kept = run_stage(run / PARENT, Parent, parent.key, copy)
    if kept.files != parent.files:
        raise CorruptionError(f"{parent.path} changed while it was copied: try again")


def read_run(run: Path) -> Run | None:
    """The record of a finished run; None where training has not ended."""
    return read_record(run, Run)


def run_config(run: Path) -> PipelineConfig:
    """The config that a run was made from."""
    return read_settings(run)[0]


def train(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
    progress: Progress = silent,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Run:
    """Trains in a child process until the run is finished; goes on from its last checkpoint.

    Args:
        parent: the model that the weights start from; None: from the seed.
        on_event: called with every line that the child adds to the journal, as it does.

    Raises:
        TrainingError: the child failed; the message says why and where its log lies.
        Interrupted: the child was asked to stop and saved its state.
        SlmError: another process trains this run.
    """
    run = prepare(config, shards, parent=parent, root=root)
    try:
        if record := read_run(run):
            return record.model_copy(update={"reused": True})
    except CorruptionError as error:
        with lock(run / LOCK, wait=False, patience=GLANCE):
            reopen(run, error)
        run = prepare(config, shards, parent=parent, root=root)
    with lock(run / LOCK, wait=False, patience=GLANCE):
        pass  # another trainer is told of here, not after the child's seconds of start
    supervise(run, config, progress, on_event)
    record = read_run(run)
    assert record is not None, f"{run} ended without a record"
    return record


def reopen(run: Path, error: CorruptionError) -> None:
    """Makes a damaged run that was finished one that training goes on with, losing the least.

    Damaged checkpoints are made again from the newest whole one before them. Settings and journal
    stand nowhere else: without them the run is moved aside, to be trained again from its start.
    """
    try:
        record = read_record(run, Run, verify=False)
    except CorruptionError:
        record = None  # training writes it again
    files = record.files if record else {}
    if mismatches(run, {n: e for n, e in files.items() if not n.startswith("checkpoints/")}):
        logger.warning("%s; moved to %s, training again", error, quarantine(run).name)
    else:
        logger.warning("%s; training goes back before that", error)
        withdraw(run)


# ---- the parent's side ------------------------------------------------------------------------


def supervise(
    run: Path,
    config: PipelineConfig,
    progress: Progress,
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    """Runs the child to its end. Whatever interrupts this process stops the child gracefully."""
    with (run / LOG).open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            command(run, config),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=child_environment(config),
            start_new_session=True,  # the terminal's Ctrl-C reaches it through us alone
        )
        events = follow(run / JOURNAL)
        try:
            while child.poll() is None:
                report(run, next(events), progress, on_event)
                time.sleep(POLL_SECONDS)
        except BaseException:
            stop(child)
            raise
        report(run, next(events), progress, on_event)
    check_exit(child.returncode, run, begin)


def command(run: Path, config: PipelineConfig) -> list[str]:
    """The child's command line: under torchrun where there is more than one process."""
    processes = config.train.processes
    if processes == "auto":
        processes = gpu_count() if config.train.device != "cpu" else 1
    here = [sys.executable, "-m"]
    if processes <= 1:
        return [*here, "slm.launch", str(run)]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*here, "slm.tether", *here, *torchrun, "-m", "slm.launch", str(run)]


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def child_environment(config: PipelineConfig) -> dict[str, str]:
    """The child's environment: what must be set before a process starts.

    glibc returns large freed blocks to the kernel at every step unless told not to, and pays for
    it in page faults: the thresholds keep them.
    """
    threads = auto_threads() if config.train.threads == "auto" else config.train.threads
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # a spinning thread starves the other on a busy machine
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTHONUNBUFFERED": "1",
        "SLM_PARENT": str(os.getpid()),
    }
    return {**os.environ, **settings}


def follow(path: Path) -> Iterator[list[dict[str, Any]]]:
    """At each `next`, the lines that were added to a journal since the one before.

    Starts at the journal's end, so that an earlier process's lines are not told again.
    """
    position = path.stat().st_size if path.is_file() else 0
    while True:
        found: list[dict[str, Any]] = []
        if path.is_file():
            with path.open("rb") as file:
                position = file.seek(min(position, path.stat().st_size))  # it may be cut back
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    with suppress(ValueError):
                        found.append(json.loads(line))
        yield found


def report(
    run: Path,
    events: list[dict[str, Any]],
    progress: Progress,
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    """Hands on what the child has written since the last time."""
    for event in events:
        on_event(event)
    steps = [event for event in events if event["event"] == "step"]
    if steps:
        plan = Plan.model_validate_json((run / PLAN).read_bytes())
        last = steps[-1]
        text = f"loss {last['train_loss']:.3f}  {last['tok_per_sec']:,.0f} tok/s"
        progress(text, last["step"], plan.max_steps)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the child to save and leave; makes it leave if it will not, or on a second signal."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_SECONDS)
    except BaseException:  # too late, Ctrl-C, or what Prefect makes of a SIGTERM
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(child.pid).children(recursive=True):
                process.kill()  # torchrun's workers
        child.kill()
        child.wait()


def check_exit(code: int, run: Path, begin: int) -> None:
    """Raises what the child's exit code means, in its own words where it left some.

    `begin`: where its words begin in the log.
    """
    if code == 0:
        return
    words = last_words(run / LOG, begin)
    if ended := ENDED.fullmatch(words):  # torchrun has no codes but its own
        code, words = int(ended[1]), ended[2]
    if code == Interrupted.exit_code:
        raise Interrupted(words)
    if code == -signal.SIGKILL:
        raise TrainingError(
            f"the training process of {run.name} was killed (SIGKILL), as the system does when "
            "memory runs out: a smaller train.micro_batch_size needs less. Its last checkpoint "
            "stands; the same command goes on from there"
        )
    if code == UserError.exit_code:
        raise UserError(words)
    if code == TrainingError.exit_code:
        raise TrainingError(words)
    raise TrainingError(f"the training process of {run.name} ended with code {code}: {words}")


def last_words(log: Path, begin: int) -> str:
    """The line that says why the child ended: its own, else the last one that it left."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    own = [line for line in lines if ENDED.fullmatch(line)]
    return next((line for line in [*own[:1], *reversed(lines)] if line), f"no message in {log}")


# ---- the child's side -------------------------------------------------------------------------


def main(run: Path) -> int:
    """Trains a run in this process; returns the exit code. The last line logged says why."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asked = install_signal_handlers()
    die_with_parent()
    try:
        set_up_torch(run)
        train_here(run, should_stop=lambda: bool(asked))
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


def set_up_torch(run: Path) -> None:
    """Threads, TF32, deterministic kernels, and the process group where there are several."""
    import torch
    import torch.distributed as dist

    config = run_config(run).train
    threads = auto_threads() if config.threads == "auto" else config.threads
    if (run / PLAN).is_file():  # the bits depend on the thread count: keep the run's own
        threads = Plan.model_validate_json((run / PLAN).read_bytes()).threads
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    if on_gpu and config.deterministic:
        torch.use_deterministic_algorithms(True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")


def install_signal_handlers() -> list[int]:
    """The first SIGTERM or SIGINT asks for a save after this step; a second one ends at once.

    So does the parent's death, however often it is told: once for each thread that it had.
    Returns the list that the signals are put into.
    """
    asked: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if number != PARENT_DIED and set(asked) - {PARENT_DIED}:
            os._exit(Interrupted.exit_code)
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, PARENT_DIED):
        signal.signal(number, handle)
    return asked


def die_with_parent() -> None:
    """On Linux: a signal, so a graceful end, if our parent dies, even by SIGKILL."""
    known = "RANK" not in os.environ and os.environ.get("SLM_PARENT")  # torchrun's is its agent
    signal_when_parent_dies(PARENT_DIED, int(known or os.getppid()))


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def out_of_memory_message(run: Path, error: BaseException) -> str:
    """What did not fit, and what would."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    plan = Plan.model_validate_json((run / PLAN).read_bytes()) if (run / PLAN).is_file() else None
    rows = plan.micro_batch_size if plan else 0
    remedy = f"try train.micro_batch_size={rows // 2}" if rows > 1 else "try a smaller model"
    return f"out of memory ({first}): {remedy}; the last checkpoint of {run.name} stands"


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    logging.shutdown()
    os._exit(code)  # all is saved; to take torch apart costs a second that may not be left
