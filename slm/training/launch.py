"""The process boundary: training runs in a child process, and this module starts and watches it.

Signals reach the child's main thread, a crash or an out-of-memory kill cannot take the caller
down, and allocator, thread and determinism settings, which must stand before a process starts, are
set in its environment. The child is `slm/trainer.py`.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError, Interrupted, TrainingError, UserError
from slm.machine import available_cores
from slm.model.saved import MODEL_FILES
from slm.progress import Progress, automatic
from slm.records import JournalEntry, Parent, Run, Shards
from slm.run_folder import (
    CHECKPOINTS,
    JOURNAL,
    LOCK,
    LOCK_PATIENCE_SECONDS,
    LOG,
    PARENT,
    DataRoot,
    RunFolder,
    Settings,
    parse_entry,
)
from slm.storage import (
    content_hash,
    hashing_once,
    lock,
    make_folder,
    mismatches,
    quarantine,
    run_stage,
    unmark_complete,
)
from slm.training.loop import TRAIN_VERSION
from slm.training.process import ENDED

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
ERROR = re.compile(r"\b\w*(Error|Exception)\b: ")  # the end of a traceback
GRACE_SECONDS = 30.0  # for the child to finish its step and save, once it is asked to stop


def prepare(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
) -> RunFolder:
    """Makes the run folder of a config on some shards, or finds it.

    `parent`: the model that the weights start from; the run keeps a copy. None: from the seed.
    """
    inputs: Any = content_hash(shards)
    if parent:
        inputs = {"shards": inputs, "parent": parent.key}
    key = keys.stage_key("train", TRAIN_VERSION, keys.train_fields(config), inputs)
    run = RunFolder(DataRoot(root).folder("runs", config.recipe, key))
    if not run.exists:
        make_folder(run.path / CHECKPOINTS)
        if parent:
            keep_parent(parent, run)
        run.write_settings(Settings(key, config, shards.key, parent.key if parent else None))
    return run


def renew_settings(run: RunFolder, config: PipelineConfig) -> None:
    """Lets a run that is not finished resume with the training settings that are not in its key."""
    settings = run.settings
    if settings.config.train != config.train and not run.is_finished:
        renewed = settings.config.model_copy(update={"train": config.train})
        run.write_settings(replace(settings, config=renewed))


def keep_parent(parent: Parent, run: RunFolder) -> None:
    """Copies the parent's files into the run's folder."""

    def copy(staging: Path) -> Parent:
        for name in MODEL_FILES:
            shutil.copy(parent.path / name, staging / name)
        return parent

    kept = run_stage(run.path / PARENT, Parent, parent.key, copy)
    if kept.files != parent.files:
        raise CorruptionError(f"{parent.path} changed while it was copied: try again")


@hashing_once()
def train(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
    on_event: Callable[[JournalEntry], None] = lambda event: None,
    around: Callable[[RunFolder], AbstractContextManager[Any]] = lambda run: nullcontext(),
) -> Run:
    """Trains in a child process until the run is finished; resumes from its last checkpoint.

    Args:
        parent: the model that the weights start from; None: from the seed.
        on_event: called with every entry that the child adds to the journal, as it does.
        around: entered while the child trains, such as the mirror in MLflow; not for a run that
            is finished.

    Raises:
        TrainingError: the child failed; the message says why and where its log is.
        Interrupted: the child was asked to stop and saved its state.
        SlmError: another process trains this run.
    """
    run = prepare(config, shards, parent=parent, root=root)
    try:
        if record := run.verified_record:
            return record.model_copy(update={"reused": True})
    except CorruptionError as error:
        with lock(run.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS):
            reopen(run, error)
        run = prepare(config, shards, parent=parent, root=root)
    with lock(run.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS):
        # another trainer is reported here, not after the child's seconds of start
        renew_settings(run, config)
    with around(run):
        supervise(run, config, progress, on_event)
    record = run.verified_record
    assert record is not None, f"{run.path} ended without a record"
    return record


def reopen(run: RunFolder, error: CorruptionError) -> None:
    """Makes a damaged run that was finished one that training goes on with, losing the least.

    Damaged checkpoints are made again from the newest whole one before them. Settings and journal
    stand nowhere else: without them the run is moved aside, to be trained again from its start.
    """
    try:
        record = run.record
    except CorruptionError:
        record = None  # training writes it again
    files = record.files if record else {}
    if mismatches(run.path, {n: e for n, e in files.items() if not n.startswith("checkpoints/")}):
        logger.warning("%s; moved to %s, training again", error, quarantine(run.path).name)
    else:
        logger.warning("%s; training goes back before that", error)
        unmark_complete(run.path)


def supervise(
    run: RunFolder,
    config: PipelineConfig,
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
) -> None:
    """Runs the child to its end. Whatever interrupts this process stops the child gracefully."""
    with (run.path / LOG).open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            command(run, process_count(run, config)),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=child_environment(config),
            start_new_session=True,  # the terminal's Ctrl-C reaches it through us alone
        )
        events = follow(run.path / JOURNAL)
        try:
            while child.poll() is None:
                report(run, next(events), progress, on_event)
                time.sleep(POLL_SECONDS)
        except BaseException:
            stop(child)
            raise
        report(run, next(events), progress, on_event)
    check_exit(child.returncode, run, begin)


def process_count(run: RunFolder, config: PipelineConfig) -> int:
    """As many processes as the run was begun with; `auto`: one a GPU, if its rows divide so."""
    train = config.train
    if plan := run.plan:
        if plan.device == "cuda" and gpu_count() < plan.world_size:
            raise UserError(
                f"{run.name} was begun on {plan.world_size} GPUs, of which {gpu_count()} are here: "
                "let it go on where there are as many, or begin another run with train.device=cpu"
            )
        return plan.world_size
    if train.processes != "auto":
        return train.processes
    gpus = gpu_count() if train.device != "cpu" else 0
    rows = train.tokens_per_step // config.model.seq_len
    at_once = 1 if train.micro_batch_size == "auto" else train.micro_batch_size
    return max((n for n in range(2, gpus + 1) if rows % (n * at_once) == 0), default=1)


def command(run: RunFolder, processes: int) -> list[str]:
    """The child's command line: under torchrun where there is more than one process."""
    here = [sys.executable, "-m"]
    if processes == 1:
        return [*here, "slm.training.process", str(run.path)]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        *here,
        "slm.parent_death",
        *here,
        *torchrun,
        "-m",
        "slm.training.process",
        str(run.path),
    ]


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def child_environment(config: PipelineConfig) -> dict[str, str]:
    """The child's environment: what must be set before a process starts.

    glibc returns large freed blocks to the kernel at every step unless told not to, and pays for
    it in page faults: the thresholds keep them.
    """
    threads = available_cores() if config.train.threads == "auto" else config.train.threads
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


def follow(path: Path) -> Iterator[list[JournalEntry]]:
    """At each `next`, the lines that were added to a journal since the one before.

    Starts at the journal's end, so that an earlier process's lines are not told again.
    """
    position = path.stat().st_size if path.is_file() else 0
    while True:
        found: list[JournalEntry] = []
        if path.is_file():
            with path.open("rb") as file:
                position = file.seek(min(position, path.stat().st_size))  # it may be cut back
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    if event := parse_entry(line):
                        found.append(event)
        yield found


def report(
    run: RunFolder,
    events: list[JournalEntry],
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
) -> None:
    """Hands on what the child has written since the last time."""
    for event in events:
        on_event(event)
    steps = [event for event in events if event["event"] == "step"]
    if steps:
        plan, last = run.plan, steps[-1]
        text = f"loss {last['train_loss']:.3f}  {last['tok_per_sec']:,.0f} tok/s"
        progress(text, last["step"], plan.max_steps if plan else None)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the child to save and leave; kills it if it will not, or on a second Ctrl-C.

    A second SIGTERM asks for no more: who ends a service may send it to all of its processes, and
    Prefect's worker then sends it to a flow once more.
    """
    try:
        with ignoring_signal(signal.SIGTERM):
            child.send_signal(signal.SIGTERM)
            child.wait(GRACE_SECONDS)
    except BaseException:  # too late, or Ctrl-C
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(child.pid).children(recursive=True):
                process.kill()  # torchrun's workers
        child.kill()
        child.wait()


@contextmanager
def ignoring_signal(number: signal.Signals) -> Iterator[None]:
    """Ignores a signal, where this is the main thread, which alone gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def check_exit(code: int, run: RunFolder, begin: int) -> None:
    """Raises what the child's exit code means, in its own words where it left some.

    `begin`: where its words begin in the log.
    """
    if code == 0:
        return
    words = last_words(run.path / LOG, begin)
    if ended := ENDED.fullmatch(words):  # torchrun has no codes but its own
        code, words = int(ended[1]), ended[2]
    if code == Interrupted.exit_code:
        raise Interrupted(words)
    if code == -signal.SIGKILL:
        raise TrainingError(
            f"the training process of {run.name} was killed (SIGKILL), as the system does when "
            "memory runs out. Its last checkpoint stands; the same command goes on from there. A "
            "smaller train.micro_batch_size needs less, but is another run, from its first step"
        )
    if code == UserError.exit_code:
        raise UserError(words)
    if code == TrainingError.exit_code:
        raise TrainingError(words)
    raise TrainingError(f"the training process of {run.name} ended with code {code}: {words}")


def last_words(log: Path, begin: int) -> str:
    """The line that says why the child ended: its own, else the first error, else the last."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    own = [line for line in lines if ENDED.fullmatch(line)]
    errors = [line for line in lines if ERROR.search(line)]
    return next(
        (line for line in [*own[:1], *errors[:1], *reversed(lines)] if line),
        f"no message in {log}",
    )
