"""Signals, and the seconds that are left after them: the same command resumes, to the same bits.

A signal reaches the command; what is left of its processes after the grace period is killed, as
when a machine is taken away. Whatever that leaves, the command is run again to its end. The same
through Prefect's worker and `prefect flow-run cancel`: tests/orchestration/test_stack.py.
"""

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from faults import Bits, bits
from tiny_pipelines import PIPELINES

from slm.run_folder import RunFolder
from slm.training.checkpoint import latest_checkpoint

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
        return {**known, **homes}

    def start(self, name: str, *more: str) -> psutil.Popen:
        """Starts a command in a session of its own, as in a terminal."""
        settings = (f"--set={setting}" for setting in (*SETTINGS, *more))
        with (self.folder / "output.log").open("ab") as log:
            return psutil.Popen(
                [sys.executable, "-m", "slm.cli.main", name, "tiny", *settings],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    def flow_states(self) -> list[str]:
        """The states of the flow runs in Prefect's database."""
        with closing(sqlite3.connect(self.data / "prefect" / "prefect.db")) as store:
            return [state for (state,) in store.execute("SELECT state_name FROM flow_run")]

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
        wait_for(lambda: not RunFolder(self.run).is_training)
        process = self.start(name)
        assert process.wait(150) == 0, self.output()
        return bits(RunFolder(self.run))


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pipelines.yaml").write_text(PIPELINES)
    return Project(tmp_path)


_uninterrupted: list[Bits] = []


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """The bits of the training that no signal reaches."""
    if not _uninterrupted:
        folder = tmp_path_factory.mktemp("uninterrupted")
        (folder / "pipelines.yaml").write_text(PIPELINES)
        undisturbed = Project(folder)
        process = undisturbed.start("train")
        assert process.wait(150) == 0, undisturbed.output()
        _uninterrupted.append(bits(RunFolder(undisturbed.run)))
    return _uninterrupted[0]


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
def test_the_same_command_resumes_to_the_same_bits(
    project: Project,
    expected: Bits,
    name: str,
    numbers: list[signal.Signals],
    grace: float,
    codes: set[int],
) -> None:
    process = project.start(name)
    project.wait_for_steps(process)
    code = end(process, numbers, grace)
    assert code in codes, project.output()
    if name == "run" and code == INTERRUPTED:
        assert project.flow_states() == ["Crashed"]
    assert "Traceback" not in project.output()
    saved = latest_checkpoint(project.run / "checkpoints")
    if grace == 5 and len(numbers) == 1:
        assert saved is not None
        assert saved.step == max(
            e["step"] for e in RunFolder(project.run).journal if e["event"] == "step"
        )
    if code == INTERRUPTED and len(numbers) == 1:
        assert "interrupted: what is done is kept" in project.output()
    assert project.finish(name) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_all_processes_at_once_saves(project: Project, processes: int) -> None:
    """As a service manager ends a service: torchrun and the command signal the trainers again."""
    several = (f"train.processes={processes}", f"train.micro_batches={processes}")
    process = project.start("train", *several)
    project.wait_for_steps(process)
    for member in [*process.children(recursive=True), process]:
        member.send_signal(signal.SIGTERM)
    assert process.wait(20) == INTERRUPTED, project.output()
    saved = latest_checkpoint(project.run / "checkpoints")
    assert saved is not None
    steps = [e["step"] for e in RunFolder(project.run).journal if e["event"] == "step"]
    assert saved.step == steps[-1]
    assert "interrupted: what is done is kept" in project.output()
    wait_for(lambda: not RunFolder(project.run).is_training, 10)
