"""Several hosts, in network namespaces, that train one run: stopped, killed, cut off, and more.

Whatever happens to a host, the weights are those of the training that nothing happened to.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import Bits, bits
from hosts import Host, hosts
from tiny_pipelines import PIPELINES

from slm.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

INTERRUPTED = 130
LOST_SECONDS = 6
SETTINGS = (
    "model.dropout=0.1",
    "train.optimizer=muon",
    "train.evaluate_every=100000",
    "train.checkpoint_every=100",
    "train.micro_batches=4",
    "train.threads=1",
    "train.precision=fp32",
    "train.device=cpu",
    f"train.launch.lost_seconds={LOST_SECONDS}",
)


@dataclass
class Cluster:
    """Hosts that share a project's folder."""

    hosts: list[Host]
    folder: Path
    steps: int = 1000

    def start(self, host: Host, nnodes: str, *more: str) -> "subprocess.Popen[Any]":
        """Start `slm train` on a host."""
        meeting = f"train.launch.rdzv_endpoint={self.hosts[0].address}:29400"
        chosen = (*SETTINGS, f"train.max_steps={self.steps}", f"train.launch.nnodes={nnodes}")
        settings = [f"--set={setting}" for setting in (*chosen, meeting, *more)]
        with self.log(host).open("ab") as log:
            return host.start(
                [sys.executable, "-m", "slm.cli.main", "train", "tiny", "--json", *settings],
                environment=environment(self.folder),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    @property
    def run(self) -> RunFolder:
        """Its only run."""
        return RunFolder(next(self.folder.glob("data/runs/tiny-*/config.json")).parent)

    def step(self) -> int:
        """The last step of the run's journal."""
        if not any(self.folder.glob("data/runs/tiny-*/metrics.jsonl")):
            return 0
        steps = [entry["step"] for entry in self.run.journal if entry["event"] == "step"]
        return max(steps, default=0)

    def wait_for_step(self, step: int, seconds: float = 120) -> float:
        """Wait until a step is made; returns the seconds that it took."""
        begin = time.monotonic()
        while self.step() < step:
            assert time.monotonic() - begin < seconds, self.output()
            time.sleep(0.05)
        return time.monotonic() - begin

    def wait_for_start(self, number: int, seconds: float = 120) -> float:
        """Wait until training has started so many times; returns the seconds that it took."""
        begin = time.monotonic()
        while len(self.resumed()) < number:
            assert time.monotonic() - begin < seconds, self.output()
            time.sleep(0.05)
        return time.monotonic() - begin

    def output(self) -> str:
        """All that was logged, for a failure's message."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("data/runs/*/train*.log")]
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    def codes(self, *processes: "subprocess.Popen[Any]", seconds: float = 180) -> list[int]:
        """The exit codes of commands, once all have ended."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(deadline - time.monotonic()) for process in processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s\n{self.output()}")

    def result(self, host: Host) -> str:
        """The weights that a finished command reported."""
        text = self.log(host).read_text()
        return str(json.loads(text[text.rindex("\n{") :])["weights_sha256"])

    def resumed(self) -> list[tuple[int, int]]:
        """From which steps training started and resumed, and by how many processes."""
        return [
            (entry["step"], entry["processes"])
            for entry in self.run.journal
            if entry["event"] in ("start", "resume")
        ]


def environment(folder: Path) -> dict[str, str]:
    return {"SLM_DATA": str(folder / "data"), "PREFECT_HOME": str(folder / "prefect")}


def project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pipelines.yaml").write_text(PIPELINES)
    return folder


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    opened = []

    def make(number: int) -> Cluster:
        context = hosts(number)
        opened.append(context)
        return Cluster(context.__enter__(), project(tmp_path / "project"))

    yield make
    for context in opened:
        context.__exit__(None, None, None)


_undisturbed: dict[str, Bits] = {}


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """The bits of a training of one process that nothing disturbs."""
    if not _undisturbed:
        folder = project(tmp_path_factory.mktemp("undisturbed"))
        chosen = (*SETTINGS, "train.max_steps=1000")
        settings = [f"--set={setting}" for setting in chosen]
        done = subprocess.run(
            [sys.executable, "-m", "slm.cli.main", "train", "tiny", *settings],
            env={**os.environ, **environment(folder)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        _undisturbed["bits"] = bits(Cluster([], folder).run)
    return _undisturbed["bits"]


def test_two_hosts_train_what_one_does(
    make_cluster: Callable[[int], Cluster], expected: Bits
) -> None:
    cluster = make_cluster(2)
    assert cluster.codes(*(cluster.start(host, "2") for host in cluster.hosts)) == [0, 0], (
        cluster.output()
    )
    assert bits(cluster.run) == expected
    record = cluster.run.verified_record
    assert record is not None
    assert [cluster.result(host) for host in cluster.hosts] == [record.weights_sha256] * 2
    assert cluster.resumed() == [(0, 2)]
    again = cluster.start(cluster.hosts[1], "2")  # alone, since there is nothing to train
    assert cluster.codes(again, seconds=60) == [0]


@pytest.mark.parametrize("host", [0, 1])
def test_a_signal_to_one_of_two_stops_both_at_one_step(
    host: int, make_cluster: Callable[[int], Cluster], expected: Bits
) -> None:
    cluster = make_cluster(2)
    both = [cluster.start(each, "2") for each in cluster.hosts]
    cluster.wait_for_step(50)
    both[host].send_signal(signal.SIGTERM)
    assert cluster.codes(*both, seconds=60) == [INTERRUPTED] * 2, cluster.output()
    last = cluster.run.last
    assert last is not None
    assert last.step == cluster.step()
    assert "Traceback" not in cluster.log(cluster.hosts[host]).read_text()
    both = [cluster.start(each, "2") for each in cluster.hosts]
    assert cluster.codes(*both) == [0, 0], cluster.output()
    assert bits(cluster.run) == expected


@pytest.mark.parametrize("how", ["killed", "without power", "cut off"])
@pytest.mark.parametrize("lost", [1, 2])
def test_the_others_continue_without_a_host_that_is_lost(
    how: str, lost: int, make_cluster: Callable[[int], Cluster], expected: Bits
) -> None:
    """Host 1 of 0, 1, 2 has rank 1, host 2 the last one; the first is where they meet."""
    cluster = make_cluster(3)
    commands = [cluster.start(host, "1:3") for host in cluster.hosts]
    cluster.wait_for_step(150)
    host, gone = cluster.hosts[lost], commands.pop(lost)
    begin = time.monotonic()
    if how == "cut off":
        host.cut()
    else:
        host.kill(silently=how == "without power")
    resumed = cluster.wait_for_start(2)
    report(f"a host {how}: {resumed:.0f} s until the others resumed")
    if how == "cut off":  # it notices too, and explains itself
        assert cluster.codes(gone, seconds=90) == [1], cluster.output()
        assert "nothing answers at 10.0.0.1:29400" in cluster.log(host).read_text()
        report(f"the host itself ended {time.monotonic() - begin:.0f} s after it was cut off")
    assert cluster.codes(*commands) == [0, 0], cluster.output()
    assert cluster.resumed()[0] == (0, 3)
    assert cluster.resumed()[1][0] >= 100
    assert cluster.resumed()[1][1] == 2
    assert bits(cluster.run) == expected
    assert [cluster.result(cluster.hosts[i]) for i in range(3) if i != lost] == [
        expected.weights
    ] * 2


def test_hosts_come_and_go(make_cluster: Callable[[int], Cluster], expected: Bits) -> None:
    """One joins a training, and leaves it by a signal: nothing is trained twice."""
    cluster = make_cluster(2)
    first = cluster.start(cluster.hosts[0], "1:2")
    cluster.wait_for_step(100)
    second = cluster.start(cluster.hosts[1], "1:2")
    report(f"a host joins: {cluster.wait_for_start(2):.0f} s from its command to the resumption")
    cluster.wait_for_step(cluster.step() + 50)
    second.send_signal(signal.SIGTERM)
    report(f"a host leaves: {cluster.wait_for_start(3):.0f} s until the other resumed")
    assert cluster.codes(second, first) == [INTERRUPTED, 0], cluster.output()
    assert bits(cluster.run) == expected
    assert [processes for _, processes in cluster.resumed()] == [1, 2, 1]


def test_slm_stop_ends_all_hosts(make_cluster: Callable[[int], Cluster], expected: Bits) -> None:
    """Whatever number of them could go on; and one machine alone can finish the run."""
    cluster = make_cluster(2)
    both = [cluster.start(each, "1:2") for each in cluster.hosts]
    cluster.wait_for_step(100)
    stop = [sys.executable, "-m", "slm.cli.main", "stop", str(cluster.run.path)]
    done = cluster.hosts[1].run(stop, environment(cluster.folder))
    assert done.returncode == 0
    assert cluster.codes(*both, seconds=60) == [INTERRUPTED] * 2, cluster.output()
    assert cluster.run.last is not None
    assert cluster.run.last.step == cluster.step()
    alone = cluster.start(cluster.hosts[1], "1")
    assert cluster.codes(alone) == [0], cluster.output()
    assert bits(cluster.run) == expected


@pytest.mark.parametrize("how", ["killed", "without power"])
def test_they_meet_elsewhere_when_the_host_is_lost_where_they_met(
    how: str, make_cluster: Callable[[int], Cluster], expected: Bits
) -> None:
    cluster = make_cluster(3)
    meeting = ",".join(f"{host.address}:29400" for host in cluster.hosts[:2])
    other = f"train.launch.rdzv_endpoint={meeting}"
    commands = [cluster.start(host, "1:3", other) for host in cluster.hosts]
    cluster.wait_for_step(150)
    cluster.hosts[0].kill(silently=how == "without power")
    resumed = cluster.wait_for_start(2)
    report(f"the host where they meet {how}: {resumed:.0f} s until the others resumed")
    assert cluster.codes(*commands[1:]) == [0, 0], cluster.output()
    assert bits(cluster.run) == expected


def test_a_folder_that_is_not_shared_is_refused(
    make_cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(2)
    elsewhere = Cluster(cluster.hosts, project(tmp_path / "elsewhere"))
    both = cluster.start(cluster.hosts[0], "2"), elsewhere.start(cluster.hosts[1], "2")
    assert cluster.codes(*both) == [2, 2], cluster.output()
    assert "is not shared by the nodes" in cluster.log(cluster.hosts[0]).read_text()


def report(figure: str) -> None:
    """Measured values of docs/clusters.md: shown by `pytest -s`."""
    print(figure, flush=True)
