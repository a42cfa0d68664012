"""Several hosts, in network namespaces: a Prefect worker and the workers of clusters on another."""

import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, hosts
from tiny_pipelines import PIPELINES

from slm.records import Shards
from slm.run_folder import DataRoot
from slm.storage import read_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
SLM = [sys.executable, "-m", "slm.cli.main"]
DEPLOYMENT = """
deployments:
  - name: tiny
    entrypoint: flows/pipeline.py:pipeline
    parameters: {recipe: tiny, overrides: {}, until: train}
    work_pool: {name: slm-process}
"""


class Office:
    """Two hosts with one project and one data folder, and a Prefect server on the first one."""

    def __init__(self, made: list[Host], folder: Path) -> None:
        self.first, self.second = made
        self.folder = folder
        self.api = f"http://{self.first.address}:4200/api"
        (folder / "pipelines.yaml").write_text(PIPELINES.replace("deployments: []", DEPLOYMENT))
        shutil.copytree(ROOT / "flows", folder / "flows")
        server = ["prefect", "server", "start", "--host", self.first.address, "--port", "4200"]
        self.start(self.first, sys.executable, "-m", *server, PREFECT_HOME=str(folder / "server"))
        self.wait_for(self.first, self.first.address, 4200)

    def environment(self, **more: str) -> dict[str, str]:
        homes = {"SLM_DATA": str(self.folder / "data"), "PREFECT_HOME": str(self.folder / "home")}
        return {**homes, "PREFECT_API_URL": self.api, **more}

    def start(self, host: Host, *command: str, **variables: str) -> None:
        """Start a program that runs on until the end of the test."""
        with self.log(host).open("ab") as log:
            host.start(
                command, self.environment(**variables), cwd=self.folder, stdout=log, stderr=log
            )

    def run(self, host: Host, *command: str, **variables: str) -> str:
        """Run a command to its end; returns its output."""
        done = host.run(
            command, self.environment(**variables), cwd=self.folder, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.output()
        return done.stdout

    def wait_for(self, host: Host, address: str, port: int) -> None:
        """Wait until a host reaches a port."""
        connect = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
        deadline = time.monotonic() + 120
        while host.run([sys.executable, "-c", connect], capture_output=True).returncode:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def output(self) -> str:
        logs = self.folder.glob("*.log")
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with hosts(2) as made:
        yield Office(made, tmp_path)


def test_a_worker_on_another_host_runs_a_deployment(office: Office) -> None:
    set_up = f"from slm.orchestration.stack.setup import set_up; set_up({office.api!r})"
    office.run(office.first, sys.executable, "-c", set_up)
    deploy = ("prefect", "deploy", "--all", "--prefect-file", "pipelines.yaml")
    office.run(office.first, *SLM, *deploy)
    office.start(office.second, sys.executable, "-m", "slm.orchestration.stack.worker")
    run = ("prefect", "deployment", "run", "pipeline/tiny", "--watch")
    office.run(office.first, *SLM, *run)
    [trained] = DataRoot(office.folder / "data").runs()
    assert trained.verified_record is not None
    assert "Completed" in office.log(office.second).read_text()


SETTINGS = ("--set=data.documents=20000", "--set=data.vocab_size=2048")


def encode(office: Office, data: str, *more: str) -> Shards:
    """Encode on the first host into a data folder."""
    command = (*SLM, "encode", "tiny", "--json", *SETTINGS, *more)
    printed = office.run(office.first, *command, SLM_DATA=str(office.folder / data))
    shards = read_record(Path(json.loads(printed)["shards"]), Shards)
    assert shards is not None
    return shards


def test_a_dask_cluster_of_two_hosts_encodes_the_same_bytes(office: Office) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("prefect_dask")
    scheduler = f"tcp://{office.first.address}:8786"
    cli = "distributed.cli.dask_"
    options = ("--host", office.first.address, "--port", "8786", "--no-dashboard")
    office.start(office.first, sys.executable, "-m", f"{cli}scheduler", *options)
    office.wait_for(office.second, office.first.address, 8786)
    for host in (office.first, office.second):
        options = ("--host", host.address, "--nthreads", "1", "--no-dashboard")
        office.start(host, sys.executable, "-m", f"{cli}worker", scheduler, *options)
    for host in (office.first, office.second):
        wait_for_log(office, host, "Registered to")
    on = ("--set=data.runner=dask", f"--set=data.runner_address={scheduler}")
    shards = encode(office, "data", *on)
    assert shards.files == encode(office, "alone").files


def test_a_ray_cluster_of_two_hosts_encodes_the_same_bytes(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("prefect_ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # else a head of an address makes one for itself
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cli = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1")
    few = ("--disable-usage-stats", "--object-store-memory", str(100 << 20))
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the path of a socket has 107 characters
    head = (
        "--head",
        "--temp-dir",
        short,
        "--node-ip-address",
        office.first.address,
        "--port",
        "6379",
    )
    office.start(office.first, *cli, *few, *head, "--include-dashboard", "false")
    office.wait_for(office.second, office.first.address, 6379)
    address = f"{office.first.address}:6379"
    other = ("--address", address, "--node-ip-address", office.second.address)
    office.start(office.second, *cli, *few, *other)
    wait_for_log(office, office.second, "Ray runtime started")
    shards = encode(office, "data", "--set=data.runner=ray", f"--set=data.runner_address={address}")
    assert shards.files == encode(office, "alone").files
    shutil.rmtree(short, ignore_errors=True)


def wait_for_log(office: Office, host: Host, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in office.log(host).read_text(errors="replace"):
        assert time.monotonic() < deadline, office.output()
        time.sleep(0.2)
