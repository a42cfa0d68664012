"""Signals, and the seconds that are left after them: the same command goes on, to the same bits.

A signal reaches the command; what is left of its processes when the grace is over is killed, as a
machine that is taken away does it. Whatever that leaves, the command is run again to its end.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import PIPELINES
from faults import Bits, bits

from slm.checkpoint import latest_checkpoint
from slm.journal import read_journal
from slm.runs import is_training

KILLED = -signal.SIGKILL
INTERRUPTED = 130
SETTINGS = (
    "model.dropout=0.1",
    "train.optimizer=muon",
    "train.max_steps=1500",
    "train.evaluate_every=100000",
    "train.checkpoint_every=100000",
    "train.threads=1",
    "train.precision=fp32",
)
SLM = (sys.executable, "-m", "flows.cli")


@dataclass
class Project:
    """A folder with the recipe `tiny`, and its data folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        """The folder of its only run."""
        return next(path.parent for path in self.data.glob("runs/tiny-*/config.json"))

    @property
    def environment(self) -> dict[str, str]:
        known = {k: v for k, v in os.environ.items() if k not in ("SLM_DATA", "PREFECT_HOME")}
        homes = {"SLM_DATA": str(self.data), "PREFECT_HOME": str(self.data / "prefect")}
        return {**known, **homes, "SLM_ROOT": str(self.folder)}

    def command(self, name: str) -> list[str]:
        return [*SLM, name, "tiny", *(f"--set={setting}" for setting in SETTINGS)]

    def start(self, name: str) -> psutil.Popen:
        """Starts a command in a session of its own, as in a terminal."""
        return self.start_command(self.command(name))

    def start_command(self, command: list[str], **environment: str) -> psutil.Popen:
        with (self.folder / "output.log").open("ab") as log:
            return psutil.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    def wait_for_steps(self, process: psutil.Popen) -> None:
        wait_for(
            lambda: (
                any(b'"step"' in p.read_bytes() for p in self.data.glob("runs/*/metrics.jsonl"))
                or process.poll() is not None
            )
        )
        assert process.poll() is None, self.output()

    def finish(self, name: str) -> Bits:
        """Runs the command to its end, when the process before is gone; returns the bits."""
        wait_for(lambda: not is_training(self.run))
        process = self.start(name)
        assert process.wait(150) == 0, self.output()
        return bits(self.run)


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pipelines.yaml").write_text(PIPELINES)
    return Project(tmp_path)


_wanted: list[Bits] = []


@pytest.fixture
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """The bits of the training that no signal reaches."""
    if not _wanted:
        folder = tmp_path_factory.mktemp("uninterrupted")
        (folder / "pipelines.yaml").write_text(PIPELINES)
        undisturbed = Project(folder)
        process = undisturbed.start("train")
        assert process.wait(150) == 0, undisturbed.output()
        _wanted.append(bits(undisturbed.run))
    return _wanted[0]


def end(process: psutil.Popen, numbers: list[signal.Signals], grace: float) -> int:
    """Sends the signals, and kills what is left after the grace; returns the exit code."""
    family = [process, *process.children(recursive=True)]
    for i, number in enumerate(numbers):
        time.sleep(0.3 if i else 0)
        process.send_signal(number)
    psutil.wait_procs([process], timeout=grace)
    for member in family:
        if member.is_running():
            member.kill()
    return int(process.wait(30))


CASES = [
    ([signal.SIGTERM], 0.0, {KILLED}),
    ([signal.SIGTERM], 1.0, {INTERRUPTED, KILLED}),  # a second may be too short, or not
    ([signal.SIGTERM], 5.0, {INTERRUPTED}),
    ([signal.SIGINT], 5.0, {INTERRUPTED}),
    ([signal.SIGINT, signal.SIGINT], 5.0, {INTERRUPTED}),
    ([signal.SIGTERM, signal.SIGTERM], 5.0, {INTERRUPTED}),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["train", "run"])
@pytest.mark.parametrize(("numbers", "grace", "codes"), CASES)
def test_the_same_command_goes_on_to_the_same_bits(
    project: Project,
    wanted: Bits,
    name: str,
    numbers: list[signal.Signals],
    grace: float,
    codes: set[int],
) -> None:
    process = project.start(name)
    project.wait_for_steps(process)
    code = end(process, numbers, grace)
    assert code in codes, project.output()
    assert "Traceback" not in project.output()
    saved = latest_checkpoint(project.run / "checkpoints")
    if code == INTERRUPTED and len(numbers) == 1:
        assert saved is not None
        assert saved.step == max(
            e["step"] for e in read_journal(project.run) if e["event"] == "step"
        )
        assert "interrupted: what is done is kept" in project.output()
    assert project.finish(name) == wanted


# ---- a Prefect worker ---------------------------------------------------------------------------

DEPLOYMENT = """
  - name: tiny
    entrypoint: flows/pipeline.py:train
    parameters: {{recipe: tiny, overrides: {overrides}}}
    work_pool: {{name: slm-process}}
"""
PULL = (
    "pull:\n  - prefect.deployments.steps.set_working_directory: {directory: '{{ $SLM_ROOT }}'}\n"
)


@dataclass
class Stack:
    """A Prefect server, and a project that is deployed on it."""

    project: Project
    api: str

    def prefect(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=self.project.folder,
            env={**self.project.environment, "PREFECT_API_URL": self.api},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_worker(self) -> psutil.Popen:
        return self.project.start_command(
            [sys.executable, "-m", "flows.worker"],
            PREFECT_API_URL=self.api,
            PREFECT_WORKER_QUERY_SECONDS="1",
        )

    def start_run(self) -> str:
        """Schedules the deployment; returns the id of the flow run."""
        before = set(self.states())
        self.prefect("deployment", "run", "train/tiny")
        return (set(self.states()) - before).pop()

    def states(self) -> dict[str, str]:
        """The state of every flow run, by id."""
        listed = json.loads(self.prefect("flow-run", "ls", "--output", "json"))
        return {run["id"]: run["state"]["type"] for run in listed}

    def wait_for_state(self, run: str, *wanted: str) -> None:
        end = time.monotonic() + 120
        while (state := self.states()[run]) not in wanted:
            assert time.monotonic() < end, state + self.project.output()
            time.sleep(1)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    overrides = {k: yaml_value(v) for k, v in (setting.split("=") for setting in SETTINGS)}
    text = PIPELINES.replace("deployments: []", "deployments:" + DEPLOYMENT)
    (tmp_path / "pipelines.yaml").write_text(PULL + text.format(overrides=json.dumps(overrides)))
    shutil.copytree(Path(__file__).parents[1] / "flows", tmp_path / "flows")
    project = Project(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with stopped(project.start_command([*server, "--port", str(port), "--no-ui"])):
        stack = Stack(project, f"http://127.0.0.1:{port}/api")
        wait_for(lambda: answers(port))
        stack.prefect("work-pool", "create", "slm-process", "--type", "process")
        stack.prefect("deploy", "--all", "--prefect-file", "pipelines.yaml")
        yield stack


def yaml_value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stopped(process: psutil.Popen) -> Iterator[psutil.Popen]:
    """Ends the process and its children with the block."""
    try:
        yield process
    finally:
        family = [*process.children(recursive=True), process] if process.is_running() else []
        for member in family:
            if member.is_running():
                member.kill()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["cancel", "worker SIGTERM", "worker SIGKILL", "flow SIGKILL"])
def test_a_flow_run_that_is_ended_is_gone_on_with_by_the_next(
    stack: Stack, wanted: Bits, way: str
) -> None:
    project = stack.project
    with stopped(stack.start_worker()) as worker:
        run = stack.start_run()
        project.wait_for_steps(worker)
        flow = next(p for p in worker.children(recursive=True) if "engine" in " ".join(p.cmdline()))
        if way == "cancel":
            stack.prefect("flow-run", "cancel", run)
            stack.wait_for_state(run, "CANCELLED")
        elif way == "flow SIGKILL":
            flow.kill()
            stack.wait_for_state(run, "CRASHED")
        else:
            worker.send_signal(getattr(signal, way.split()[1]))
            worker.wait(60)
            stack.wait_for_state(run, "CRASHED")
        wait_for(lambda: not flow.is_running() and not is_training(project.run))
        saved = latest_checkpoint(project.run / "checkpoints")
        assert saved is not None  # the training process saved, even where its parents were killed
    with stopped(stack.start_worker()):
        stack.wait_for_state(stack.start_run(), "COMPLETED")
    assert bits(project.run) == wanted
