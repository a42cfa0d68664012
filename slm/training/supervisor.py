"""The training process is run to its end: its journal is followed, and its exit code explained."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from slm.config import PipelineConfig
from slm.errors import Interrupted, TrainingError, Untrainable, UserError
from slm.progress import Progress
from slm.records import JournalEntry
from slm.run_folder import JOURNAL, LOG, RunFolder, parse_entry
from slm.training.agent import Agent, EndpointLost, kill
from slm.training.child import command, environment
from slm.training.log import ENDED, final_message
from slm.training.nodes import Nodes, elsewhere
from slm.training.peers import LEAVE
from slm.training.process import UNTRAINABLE
from slm.training.processes import process_count, processes_here, uses_gpu
from slm.training.status import Status, estimated_end
from slm.training.warm import Forked, forked

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0  # for the child to finish its step and save, after the signal to stop


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
