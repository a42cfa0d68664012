"""The process boundary: training runs in a child process, which is started and watched.

Signals reach the child's main thread, a crash or an out-of-memory kill cannot take the caller
down, and allocator, thread and determinism settings, which are read when a process starts, are
set in its environment. The child is `slm/training/process.py`.
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from slm.config import PipelineConfig
from slm.errors import CorruptionError, InUse, UserError
from slm.progress import Progress, automatic
from slm.records import JournalEntry, Parent, Run, Shards, check_input
from slm.run_folder import LOCK, LOCK_PATIENCE_SECONDS, DataRoot, RunFolder
from slm.storage import hashing_once, lock, mismatches, quarantine, unmark_complete
from slm.training import supervisor
from slm.training.nodes import VISIBLE_SECONDS, nodes_of
from slm.training.prepare import prepare, renew_settings
from slm.training.selection import select
from slm.training.supervisor import POLL_SECONDS

logger = logging.getLogger(__name__)

FIRST_NODE = "first-node.lock"  # held by the node that shows the training elsewhere


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
        supervisor.supervise(run, config, progress, on_event, nodes)
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
