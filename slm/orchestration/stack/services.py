"""The local stack: a Prefect server, an MLflow server and a worker, all on this machine alone.

`up` starts them, waits until each answers, prepares the server for `pipelines.yaml` and keeps them
running: one that ends is started again, and flow runs whose process is gone are marked Crashed.
Ctrl-C stops the worker first, so that running flows save and end Crashed; `slm prefect flow-run
retry` resumes them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import slm.tracking.server
from slm.config import data_root, project_root
from slm.errors import InUse, SlmError, UserError
from slm.machine import ask_no_proxy
from slm.orchestration.addresses import check_mlflow, note_stack, stack_lock
from slm.orchestration.stack import deployments, reaper
from slm.orchestration.stack.server import only_one_starting
from slm.storage import lock, make_folder
from slm.tracking.entities import public_uri
from slm.tracking.store import prepare as prepare_store

HOST = "127.0.0.1"
START_SECONDS = 120.0  # for a server to answer: minutes on a slow disk, where it makes its tables
STOP_SECONDS = 90.0  # for the worker, whose flows save; servers take a second
POLL_SECONDS = 0.5
MIN_UPTIME_SECONDS = 20.0  # a service that ends sooner is not started again


@dataclass
class Service:
    """A program of the stack, and its process once it is started."""

    name: str
    command: list[str]
    environment: dict[str, str]
    health: str | None = None  # the address that answers when it is ready
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def log(self) -> Path:
        name = self.name.removeprefix("the ").replace(" ", "-").lower()
        return data_root() / "logs" / f"{name}.log"

    def start(self) -> None:
        """Start the program in its own session: a terminal's Ctrl-C is for `up` alone."""
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slm.parent_death", sys.executable, "-m", *self.command],
                env={**self.environment, "SLM_PARENT": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL to a program that does not end."""
        if self.process is None or self.has_ended():
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_until_healthy(self) -> None:
        """Wait until the program answers. Raises SlmError where it ends or never does."""
        assert self.health is not None
        while not answers(self.health):
            if self.has_ended() or time.monotonic() - self.started > START_SECONDS:
                raise SlmError(f"{self.name} did not start; its log {self.log} has the reason")
            time.sleep(POLL_SECONDS)


def up(
    *,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    postgres: str | None = None,
    write: Callable[[str], None] = print,
    on_ready: Callable[[dict[str, str], list[str]], None] = lambda addresses, deployed: None,
) -> None:
    """Run the stack until it is interrupted.

    Args:
        postgres: the address of a database for the Prefect server, instead of SQLite under
            `data/prefect`: `postgresql+asyncpg://USER:PASSWORD@HOST/NAME`.
        write: takes a line for the user.
        on_ready: called once everything answers, with the addresses and the folder of the logs,
            and with the names of the deployments.

    Raises:
        UserError: a port is in use, a stack runs on this data folder, `pipelines.yaml` is wrong,
            the server of MLFLOW_TRACKING_URI does not answer.
        SlmError: a program did not start, or ends again and again.
    """
    deployed = list(deployments.check())
    ask_no_proxy(HOST)
    prefect = f"http://{HOST}:{prefect_port}"
    mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not mlflow.startswith("http"):  # an address of a store is not a server
        mlflow = ""
    check_mlflow(mlflow)
    with only_stack():
        check_ports(prefect_port, None if mlflow else mlflow_port)
        environment = shared_environment(f"{prefect}/api", mlflow or f"http://{HOST}:{mlflow_port}")
        servers = [prefect_server(prefect_port, environment, postgres)]
        servers += [] if mlflow else [mlflow_server(mlflow_port, environment)]
        worker = Service("the worker", ["slm.orchestration.stack.worker"], environment)
        try:
            write("starting  servers, on this machine alone")
            with only_one_starting():
                for service in servers:
                    service.start()
                servers[0].wait_until_healthy()
            own_leases = not postgres and "PREFECT_API_DATABASE_CONNECTION_URL" not in environment
            for line in prepare(environment, own_leases=own_leases):
                write(line)
            for service in servers:
                service.wait_until_healthy()
            worker.start()  # last: a run that waits for it needs all of them
            note_stack(environment)
            addresses = {
                "prefect": prefect,
                "prefect_api": environment["PREFECT_API_URL"],
                "mlflow": public_uri(environment["MLFLOW_TRACKING_URI"]),
                "logs": str(worker.log.parent),
            }
            write(f"Prefect   {prefect}")
            write(f"MLflow    {addresses['mlflow']}")
            write(f"logs      {addresses['logs']}")
            on_ready(addresses, deployed)
            write("up        Ctrl-C stops it; running flows save, and can be retried")
            reaper.watch(environment["PREFECT_API_URL"], write)
            keep_running([*servers, worker], write)
        finally:
            write("stopping  running flows save first")
            for service in (worker, *servers):
                service.stop()


def check_ports(prefect: int, mlflow: int | None) -> None:
    """Raises UserError where a port of ours is in use. `mlflow`: None: another server is used."""
    refuse_port_in_use("Prefect", prefect, "--prefect-port")
    if mlflow is not None:
        if mlflow == prefect:
            raise UserError(f"--prefect-port and --mlflow-port are both {mlflow}: give two ports")
        refuse_port_in_use("MLflow", mlflow, "--mlflow-port")


def shared_environment(prefect: str, mlflow: str) -> dict[str, str]:
    """The environment of all parts of the stack."""
    return {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a gigabyte of memory
        "MLFLOW_TRACKING_URI": mlflow,
        "PREFECT_API_URL": prefect,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "SLM_DATA": str(data_root()),
    }


def prefect_server(port: int, environment: dict[str, str], postgres: str | None) -> Service:
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": postgres} if postgres else {}
    return Service(
        "the Prefect server",
        ["prefect", "server", "start", "--host", HOST, "--port", str(port)],
        environment | database,
        health=f"http://{HOST}:{port}/api/health",
    )


def mlflow_server(port: int, environment: dict[str, str]) -> Service:
    """A server of the project's own store. Clients write its artifacts to the disk themselves."""
    folder = make_folder(data_root() / "mlflow")
    prepare_store(folder / "mlflow.db")
    artifacts = folder / "artifacts"
    command = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", slm.tracking.server.store_uri(data_root())]
    command += ["--no-serve-artifacts", "--default-artifact-root", artifacts.as_uri()]
    health = f"http://{HOST}:{port}/health"
    return Service("the MLflow server", command, environment, health=health)


def prepare(environment: dict[str, str], *, own_leases: bool) -> list[str]:
    """Make the work pool and the limit, and deploy `pipelines.yaml`; returns lines for the user.

    `own_leases`: as of `set_up`.
    """
    from slm.orchestration.stack.deploy import deploy  # heavy
    from slm.orchestration.stack.setup import set_up

    api = environment["PREFECT_API_URL"]
    lines = set_up(api, own_leases=own_leases)
    return lines + deploy(api, environment, project_root() / "pipelines.yaml")


def keep_running(services: list[Service], write: Callable[[str], None]) -> None:
    """Restart what ends. Raises SlmError for what ends again immediately."""
    while True:
        time.sleep(POLL_SECONDS)
        for service in filter(Service.has_ended, services):
            if time.monotonic() - service.started < MIN_UPTIME_SECONDS:
                raise SlmError(
                    f"{service.name} ends immediately; its log {service.log} has the reason"
                )
            write(f"restart   {service.name} had ended")
            service.start()


@contextmanager
def only_stack() -> Iterator[None]:
    """Refuse a second stack on this data folder."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(stack_lock(), wait=False))
        except InUse:
            message = f"a stack is up on {data_root()} already: stop that one with Ctrl-C first"
            raise UserError(message) from None
        yield


def refuse_port_in_use(name: str, port: int, option: str) -> None:
    """Raises UserError for a port that something listens on, naming the process if it is ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            owner = listener(port)
            by = f" by {owner.name()} (process {owner.pid})" if owner else ""
            raise UserError(
                f"port {port}, for {name}, is in use{by}: end that, or choose another ({option})"
            ) from error


def listener(port: int) -> psutil.Process | None:
    """The process that listens on a port of this machine; None where that is not readable."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and port in connection.laddr[1:]:
                return psutil.Process(connection.pid) if connection.pid else None
    return None


def answers(address: str) -> bool:
    """Whether an address of this machine answers, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(address, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True
