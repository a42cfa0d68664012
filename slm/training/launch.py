"""The process boundary: training runs in a child process, and this module starts and watches it.

Signals reach the child's main thread, a crash or an out-of-memory kill cannot take the caller
down, and allocator, thread and determinism settings, which are read when a process starts, are
set in its environment. The child is `slm/training/process.py`.
"""

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from slm.config import PipelineConfig
from slm.errors import (
    CorruptionError,
    Interrupted,
    InUse,
    TrainingError,
    Untrainable,
    UserError,
)
from slm.machine import pick_device, thread_waiting
from slm.model.saved import MODEL_FILES
from slm.progress import Progress, automatic
from slm.records import Derivation, JournalEntry, Parent, Run, Shards, check_input
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
    hashing_once,
    lock,
    make_folder,
    mismatches,
    quarantine,
    run_stage,
    unmark_complete,
)
from slm.tokens.mixture.order import planned_order
from slm.training.agent import Agent, EndpointLost, kill
from slm.training.identity import find_run, run_inputs, run_keys
from slm.training.log import ENDED, final_message
from slm.training.needs import planned_steps
from slm.training.nodes import FROM_TORCHRUN, VISIBLE_SECONDS, Nodes, elsewhere, nodes_of
from slm.training.peers import LEAVE
from slm.training.plan import MIN_TOKENS_PER_DEVICE, pick_micro_batches, thread_count
from slm.training.process import UNTRAINABLE
from slm.training.selection import check_resumable, select
from slm.training.status import Status, estimated_end
from slm.training.warm import Forked, forked

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
FIRST_NODE = "first-node.lock"  # held by the node that shows the training elsewhere
GRACE_SECONDS = 30.0  # for the child to finish its step and save, after the signal to stop


def prepare(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
    key: str | None = None,
    derived: Derivation | None = None,
) -> RunFolder:
    """The run folder of a config on some shards, made where there is none yet.

    Args:
        parent: the model that the weights start from; the run keeps a copy. None: from the seed.
        key: of a run that is rebuilt; None: the config's.
        derived: how a run that is rebuilt was made from another one, if it was.
    """
    if config.train.init_from and parent is None:
        raise UserError(starts_elsewhere(config))
    parent_key = parent.key if parent else None
    if key:
        run = RunFolder(DataRoot(root).folder("runs", config.folder_name, key))
    else:
        run = find_run(config, shards, parent_key, DataRoot(root))
    if not run.exists:
        key = key or run_keys(config, run_inputs(shards, parent_key))[0]
        check_order(config, shards)
        make_folder(run.path / CHECKPOINTS)
        if parent:
            keep_parent(parent, run)
        run.write_settings(Settings(key, config, shards.key, parent_key, derived))
    return run


def check_order(config: PipelineConfig, shards: Shards) -> None:
    """Raises UserError where the sources of a mixture cannot be trained on as the settings ask."""
    rows = config.train.tokens_per_step // config.model.seq_len
    planned_order(config, shards, rows, planned_steps(config, shards.trained_on))


def starts_elsewhere(config: PipelineConfig) -> str:
    """Why a config cannot be trained as it is: the model that it starts from is not given."""
    return (
        f"train.init_from={config.train.init_from}: `config, parent = slm.initial_model(config)` "
        "opens that model; give it as parent=parent"
    )


def renew_settings(run: RunFolder, config: PipelineConfig) -> None:
    """Let an unfinished run resume with today's values of the settings that are not in its key.

    Raises UserError where its best checkpoint so far was chosen by another cadence.
    """
    settings = run.settings
    if settings.config.train == config.train or run.is_finished:
        return
    former = check_resumable(run, config)
    train = config.train
    if former:  # its hashes have it
        own = settings.config.train.checkpoint_every
        train = train.model_copy(update={"checkpoint_every": own})
    renewed = settings.config.model_copy(update={"train": train})
    run.write_settings(replace(settings, config=renewed))


def keep_parent(parent: Parent, run: RunFolder) -> None:
    """Copy the parent's files into the run's folder."""

    def copy(staging: Path) -> Parent:
        try:
            for name in MODEL_FILES:
                shutil.copy(parent.path / name, staging / name)
        except FileNotFoundError as error:
            raise CorruptionError(f"{error.filename} was deleted meanwhile: try again") from error
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
    """Train in a child process until the run is finished; resume from its last checkpoint.

    Args:
        parent: the model that the weights start from; None: from the seed.
        on_event: called with every entry that the child adds to the journal, as it does.
        around: entered while the child trains, such as the mirror in MLflow; not for a finished
            run.

    Raises:
        UserError: the best checkpoint cannot be chosen by the config's cadence.
        TrainingError: the child failed; the message gives the reason. Untrainable, where that is
            its settings.
        Interrupted: the child was stopped and saved its state.
        InUse: another process trains this run.
    """
    check_input(shards, Shards)
    run = prepare(config, shards, parent=parent, root=root)
    if record := finished_record(run):
        return select(run, record, config, progress).model_copy(update={"reused": True})
    if not run.exists:  # it was quarantined
        run = prepare(config, shards, parent=parent, root=root)
    return train_folder(run, config, progress, on_event, around)


@hashing_once()
def resume(
    run: str | Path | RunFolder | Run,
    *,
    root: Path | None = None,
    progress: Progress = automatic,
    on_event: Callable[[JournalEntry], None] = lambda event: None,
    around: Callable[[RunFolder], AbstractContextManager[Any]] = lambda run: nullcontext(),
) -> Run:
    """Train a run to its end by its own settings, from its last checkpoint; as `train` otherwise.

    >>> slm.resume("quickstart-3693316e0b15").val_bpb

    Args:
        run: its folder or name.

    Raises UserError where its shards are gone.
    """
    folder = as_folder(run, root)
    if record := finished_record(folder):
        return record.model_copy(update={"reused": True})
    if not folder.exists:
        raise CorruptionError(f"{folder.name} was damaged and is quarantined: train it again")
    if folder.shards is None:
        raise UserError(shards_gone(folder))
    return train_folder(folder, folder.config, progress, on_event, around)


def as_folder(run: str | Path | RunFolder | Run, root: Path | None = None) -> RunFolder:
    """A run by its folder, its name or its record."""
    if isinstance(run, RunFolder):
        return run
    return RunFolder.of(run) if isinstance(run, Run) else DataRoot(root).run(str(run))


def shards_gone(run: RunFolder) -> str:
    """Why a run cannot be trained, and what makes its shards again."""
    return f"the shards of {run.name} are gone: `slm train {run.name}` makes them again"


def finished_record(run: RunFolder) -> Run | None:
    """The verified record of a finished run; None where it is not finished.

    A damaged run is reopened or quarantined: see `reopen`.
    """
    try:
        return run.verified_record
    except CorruptionError as error:
        with lock(run.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS):
            reopen(run, error)
        return None


def train_folder(
    run: RunFolder,
    config: PipelineConfig,
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
    around: Callable[[RunFolder], AbstractContextManager[Any]],
) -> Run:
    """Train an unfinished run in a child process; return its record.

    On several nodes each does so; the first process of all holds the run's lock, and the node that
    was here first does what is `around`.
    """
    nodes = nodes_of(config.train.launch)
    try:
        with lock(run.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS):
            # another trainer is reported here, not after the child's seconds of start
            renew_settings(run, config)
    except InUse:
        if nodes is None:
            raise
    with ExitStack() as stack:
        if nodes is None or holds(stack, run.path / FIRST_NODE):
            stack.enter_context(around(run))
        supervise(run, config, progress, on_event, nodes)
    deadline = time.monotonic() + (VISIBLE_SECONDS if nodes else 0)
    while (record := run.verified_record) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # another node wrote it
    assert record is not None, f"{run.path} ended without a record"
    return record


def holds(stack: ExitStack, path: Path) -> bool:
    """Whether this process gets a lock, which the stack then holds."""
    try:
        stack.enter_context(lock(path, wait=False))
    except InUse:
        return False
    return True


def reopen(run: RunFolder, error: CorruptionError) -> None:
    """Make a damaged finished run one that training resumes, losing the least.

    Damaged checkpoints are rebuilt from the newest valid one before them. Settings and journal have
    no other copy: where they are damaged the run is quarantined, to be trained from its start.
    """
    try:
        record = run.record
    except CorruptionError:
        record = None  # training writes it again
    files = record.files if record else {}
    if mismatches(run.path, {n: e for n, e in files.items() if not n.startswith("checkpoints/")}):
        logger.warning("%s; moved to %s, training again", error, quarantine(run.path).name)
    else:
        logger.warning("%s; training resumes before the damage", error)
        unmark_complete(run.path)


def supervise(
    run: RunFolder,
    config: PipelineConfig,
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
    nodes: Nodes | None = None,
) -> None:
    """Run the child to its end. Whatever interrupts this process stops the child gracefully.

    `nodes`: the machines that train together; None: this one alone. Where they meet elsewhere,
    should the machine be lost where they do, it is run again.
    """
    while True:
        try:
            return watch_child(run, config, progress, on_event, nodes)
        except EndpointLost as error:
            others = elsewhere(nodes) if nodes else None
            if others is None:
                raise
            logger.warning("%s; now at %s", error, others.endpoint)
            nodes = others


def watch_child(
    run: RunFolder,
    config: PipelineConfig,
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
    nodes: Nodes | None,
) -> None:
    """`supervise`, with the nodes that meet at one place."""
    path = run.path / LOG
    if nodes:  # two machines cannot append to one file
        path = path.with_stem(f"{path.stem}-{nodes.address.replace(':', '_')}")
    with path.open("ab") as log, ExitStack() as stack:
        begin = log.tell()
        processes = processes_here(config) if nodes else process_count(run, config)
        variables = environment(config, processes, nodes)
        alone = processes == 1 and nodes is None and not uses_gpu(config)
        fork = stack.enter_context(forked(run.path, path, variables)) if alone else None
        child = fork or subprocess.Popen(
            command(run, processes, nodes),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=variables,
            start_new_session=True,  # the terminal's Ctrl-C reaches it through this process alone
        )
        agent = None
        if nodes:
            assert isinstance(child, subprocess.Popen)
            agent = Agent(child, nodes, path, begin)
        events, status = follow(run.path / JOURNAL), Status(run.journal)
        progress("starting", 0, None)
        try:
            while child.poll() is None:
                report(run, next(events), progress, on_event, status)
                if agent:
                    agent.check()
                time.sleep(POLL_SECONDS)
        except BaseException:
            stop(child, LEAVE if nodes else signal.SIGTERM)
            raise
        report(run, next(events), progress, on_event, status)
    if agent is None:
        assert child.returncode is not None
        check_exit(child.returncode, run, begin)
    elif end := agent.end(run):
        raise_end(*end, run)


def process_count(run: RunFolder, config: PipelineConfig) -> int:
    """The processes that train a run: as its config has them now, whatever it was started with.

    Of a run that was started on GPUs, as many as there are here at most.
    """
    plan = run.plan
    if plan is None:
        return planned_processes(config)
    device = config.train.model_copy(update={"device": plan.device})
    count = planned_processes(config.model_copy(update={"train": device}), plan.leaves)
    if plan.device != "cuda" or count <= (gpus := gpu_count()):
        return count
    if not gpus:
        raise UserError(
            f"{run.name} was started on a GPU, and torch sees none here: resume it where there is "
            "one, or start another run with train.device=cpu"
        )
    logger.warning("%d GPUs are here: as many processes train, not %d", gpus, count)
    return gpus


def planned_processes(config: PipelineConfig, micro_batches: int | None = None) -> int:
    """The processes that train. `auto`: one per GPU, of as many as pay.

    Under `elastic` no more than there are micro-batches; else as many as divide the rows.

    `micro_batches`: those of the plan; None: of a new run.
    """
    train = config.train
    gpus = gpu_count() if train.device in ("auto", "cuda") else 0
    paying = min(gpus, train.tokens_per_step // MIN_TOKENS_PER_DEVICE)
    if train.parallel == "elastic":
        leaves = micro_batches or pick_micro_batches(config, "cuda" if gpus else "cpu")
        if train.processes != "auto":
            return min(train.processes, leaves)
        each = math.ceil(leaves / max(1, min(paying, leaves)))
        return math.ceil(leaves / each)  # the fewest that are as fast
    if train.processes != "auto":
        return train.processes
    rows = train.tokens_per_step // config.model.seq_len
    per_pass = 1 if train.micro_batch_size == "auto" else train.micro_batch_size
    most = gpus if train.parallel == "fsdp" else paying
    return max((n for n in range(2, most + 1) if rows % (n * per_pass) == 0), default=1)


def processes_here(config: PipelineConfig) -> int:
    """The processes of this machine, where several train. `auto`: one per GPU, or one."""
    train = config.train
    if train.processes != "auto":
        return train.processes
    return max(1, gpu_count()) if train.device in ("auto", "cuda") else 1


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


def uses_gpu(config: PipelineConfig) -> bool:
    """Whether a new training takes a GPU, if there is one."""
    return config.train.device != "cpu" and pick_device(config.train.device).type != "cpu"


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


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


def follow(path: Path) -> Iterator[list[JournalEntry]]:
    """At each `next`, the entries that were added to a journal since the one before.

    Starts at the journal's end, so that an earlier process's entries are not among them.
    """
    position = path.stat().st_size if path.is_file() else 0
    while True:
        entries: list[JournalEntry] = []
        if path.is_file():
            with path.open("rb") as file:
                position = file.seek(min(position, path.stat().st_size))  # it may be cut back
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    if entry := parse_entry(line):
                        entries.append(entry)
        yield entries


def report(
    run: RunFolder,
    events: list[JournalEntry],
    progress: Progress,
    on_event: Callable[[JournalEntry], None],
    status: Status,
) -> None:
    """Pass on what the child has written since the last call."""
    for event in events:
        on_event(event)
        status.add(event)
    if events and status.step:
        max_steps, estimate = run.max_steps, estimated_end(run, status.step)
        progress(status.line(max_steps, estimate), status.step, max_steps or estimate)


def stop(
    child: "subprocess.Popen[bytes] | Forked", number: signal.Signals = signal.SIGTERM
) -> None:
    """Ask the child to save and end; kill it after the grace period, or on a second Ctrl-C.

    A second SIGTERM is ignored: a service manager may send it to all processes of a service, and
    Prefect's worker then sends it to a flow once more.
    """
    try:
        with ignoring_signal(signal.SIGTERM):
            child.send_signal(number)
            child.wait(GRACE_SECONDS)
    except BaseException:  # too late, or Ctrl-C
        kill(child)


@contextmanager
def ignoring_signal(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal, where this is the main thread, which alone gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def check_exit(code: int, run: RunFolder, begin: int) -> None:
    """Raises what the child's exit code means, with the reason that it logged.

    `begin`: where its log begins in the file.
    """
    if code == 0:
        return
    message = final_message(run.path / LOG, begin)
    if ended := ENDED.fullmatch(message):  # torchrun returns codes of its own only
        code, message = int(ended[1]), ended[2]
    raise_end(code, message, run)


def raise_end(code: int, message: str, run: RunFolder) -> NoReturn:
    """Raises what an exit code of the training process means."""
    if code == -signal.SIGKILL:
        raise TrainingError(
            f"the training process of {run.name} was killed (SIGKILL), as the system does when "
            f"memory runs out. Its last checkpoint is kept: `slm train {run.name}` resumes from "
            "it. A smaller train.micro_batch_size needs less, but is another run, from its first "
            "step"
        )
    if code == -signal.SIGTERM:  # while it was starting
        raise Interrupted(f"{run.name} was stopped before its first step")
    if code == Interrupted.exit_code:
        raise Interrupted(
            f"{message}: `slm train {run.name}` resumes, and `slm finish {run.name}` makes a "
            "finished run of it"
        )
    if code == UNTRAINABLE:
        raise Untrainable(message)
    for kind in (UserError, TrainingError):
        if code == kind.exit_code:
            raise kind(message)
    raise TrainingError(f"the training process of {run.name} ended with code {code}: {message}")
