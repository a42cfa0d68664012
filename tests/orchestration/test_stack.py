"""`slm up` with a real server and a real worker: it runs deployments, and what dies is known."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Pending, Scheduled
from servers import postgres, postgres_programs
from wheels import clean_checkout, install, wheel_of

import slm
from slm.code_state import modules_sha256
from slm.errors import SlmError, UserError
from slm.orchestration.stack import services
from slm.recipes import load_recipe
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.source.stories import stories
from slm.storage import RECORD, make_folder
from slm.tokens.encode import encode
from slm.training import launch

T = TypeVar("T")
# Flow runs renew the lease on their deployment's slot after three quarters of 300 s; here, sooner.
SOONER = """
import threading
wait = threading.Event.wait
threading.Event.wait = lambda self, timeout=None: wait(self, 2.0 if timeout == 225.0 else timeout)
"""
ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "data.documents": 200,
    "data.vocab_size": 512,
    "data.val_fraction": 0.3,  # enough documents for the gate
    "data.workers": 1,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.seq_len": 32,
    "train.tokens_per_step": 128,
    "train.threads": 1,
    "evaluate.documents": 4,
    "report.prompts": ["Once"],
    "report.temperatures": [0.8],
    "report.top_ks": [10],
    "report.max_new_tokens": 8,
    "registry.max_bpb": 100.0,  # any model may be champion
    "registry.beat_baselines": False,
    "registry.max_degenerate": 1.0,
    "registry.max_memorised": 1.0,
}
SHORT = TINY | {"train.max_steps": 20}
LONG = TINY | {"train.max_steps": 2000, "train.checkpoint_every": 100, "train.evaluate_every": 1000}


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_for(condition: Callable[[], T], seconds: float = 120.0) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value


def copy_project(folder: Path) -> None:
    """The project's own recipes and deployments."""
    folder.mkdir()
    shutil.copy(ROOT / "pipelines.yaml", folder)
    (folder / "flows").symlink_to(ROOT / "flows")


class Stack:
    """`slm up` in a project folder of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        make: Callable[[Path], object] = copy_project,
        package: Path = ROOT,
    ) -> None:
        """`package`: the folder that `slm` is imported from."""
        self.options = options
        self.project = folder / "project"
        make(self.project)
        self.data = folder / "data"
        self.prefect_port, self.mlflow_port = free_ports(2)
        self.api = f"http://127.0.0.1:{self.prefect_port}/api"
        (folder / "sooner").mkdir()
        (folder / "sooner" / "sitecustomize.py").write_text(SOONER)
        paths = [str(folder / "sooner"), str(package), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "SLM_DATA": str(self.data),
            "PREFECT_HOME": str(self.data / "prefect"),
        }
        self.start()

    def start(self) -> None:
        ports = ["--prefect-port", str(self.prefect_port), "--mlflow-port", str(self.mlflow_port)]
        self.output = self.project / "up.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slm.cli.main", "up", *ports, *self.options],
                cwd=self.project,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: self.printed("Ctrl-C stops it") or self.process.poll() is not None, 300)
        assert self.process.poll() is None, self.output.read_text()

    def printed(self, text: str) -> bool:
        return text in self.output.read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)

    def prefect(self, *arguments: str) -> str:
        """What a `slm prefect` command prints."""
        done = subprocess.run(
            [sys.executable, "-m", "slm.cli.main", "prefect", "--no-prompt", *arguments],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, deployment: str, overrides: dict[str, Any], *options: str) -> UUID:
        """Runs a deployment as a person does; returns the flow run's id."""
        parameter = f"overrides={json.dumps(overrides)}"
        output = self.prefect("deployment", "run", deployment, "-p", parameter, *options)
        return UUID(output.partition("UUID: ")[2].split()[0])

    def read(self, flow_run: UUID) -> FlowRun:
        with SyncPrefectClient(self.api) as client:
            return client.read_flow_run(flow_run)

    def ended(self, flow_run: UUID) -> StateType | None:
        """The final state of a flow run, None before it."""
        with suppress(Exception):  # the server may be starting
            state = self.read(flow_run).state
            return state.type if state and state.is_final() else None
        return None

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of this stack whose command line holds a word."""
        matching = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if name in process.cmdline() and process.environ().get("SLM_DATA") == str(
                    self.data
                ):
                    matching.append(process)
        return matching

    def may_lose_its_worker(self) -> bool:
        """Whether the worker is old enough to be started again when it ends."""
        ages = [
            time.time() - worker.create_time()
            for worker in self.processes("slm.orchestration.stack.worker")
        ]
        return bool(ages) and min(ages) > services.MIN_UPTIME_SECONDS

    def trained(self) -> list[Path]:
        """The checkpoints of a training that has begun."""
        return list(self.data.glob(f"runs/*/checkpoints/step_*/{RECORD}"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    yield stack
    stack.stop()
    assert stack.process.returncode == 130
    assert not stack.processes("slm.orchestration.stack.worker")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights that the long training gives."""
    root = tmp_path_factory.mktemp("uninterrupted")
    config = load_recipe("quickstart", LONG)
    shards = encode(config, download(config, root=root), root=root)
    return launch.train(config, shards, root=root).weights_sha256


# ---- it runs deployments ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployment_makes_a_champion(stack: Stack) -> None:
    flow_run = stack.run("pipeline/quickstart", SHORT, "--watch")
    assert stack.ended(flow_run) == StateType.COMPLETED
    assert stack.read(flow_run).name.startswith("quickstart-")

    from mlflow import MlflowClient

    server = MlflowClient(f"http://127.0.0.1:{stack.mlflow_port}")
    version = server.get_model_version_by_alias("slm", "champion")
    assert server.get_run(version.run_id).info.status == "FINISHED"

    with SyncPrefectClient(stack.api) as client:
        artifacts = {a.key: a for a in client.read_artifacts() if a.flow_run_id == flow_run}
    expected = {
        "report",
        "samples",
        "metrics",
        "lineage",
        "mlflow-version",
        "mlflow-run",
        "report-html",
    }
    assert expected <= set(artifacts)
    assert version.run_id in str(artifacts["mlflow-run"].data)
    report = urllib.parse.quote("report/index.html", safe="")
    copy = f"{server.tracking_uri}/get-artifact?run_id={version.run_id}&path={report}"
    with urllib.request.urlopen(copy) as answer:  # what the link's page shows
        assert answer.read().startswith(b"<!doctype html>")
    assert f"{version.run_id}/artifacts/report/index.html" in str(artifacts["report-html"].data)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployment_up_to_a_stage(stack: Stack) -> None:
    offline = TINY | {"data.source": "stories", "data.path": "", "data.revision": None}
    flow_run = stack.run("pipeline/tinystories-encode", offline, "--watch")
    assert stack.ended(flow_run) == StateType.COMPLETED
    assert list(stack.data.glob(f"shards/tinystories-*/{RECORD}"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_schedule_fires(stack: Stack) -> None:
    with SyncPrefectClient(stack.api) as client:
        deployment = client.read_deployment_by_name("pipeline/quickstart")
        soon = IntervalSchedule(interval=timedelta(seconds=20))
        [made] = client.create_deployment_schedules(
            deployment.id,
            [DeploymentScheduleCreate(schedule=soon, parameters={"overrides": SHORT})],
        )

        def fired() -> list[FlowRun]:
            runs = client.read_flow_runs()
            return [r for r in runs if r.auto_scheduled and r.state and r.state.is_completed()]

        assert wait_for(fired)[0].parameters["overrides"] == SHORT
        client.delete_deployment_schedule(deployment.id, made.id)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_approval_is_asked_for_and_obeyed(stack: Stack) -> None:
    offline = SHORT | {"data.source": "stories", "data.path": "", "data.revision": None}
    asking = {"registry.model": "asked", "retrain.approval": True}  # a model without a champion
    flow_run = stack.run("retrain/tinystories", offline | asking)
    wait_for(lambda: stack.read(flow_run).state_name == "Suspended")
    wait_for(
        lambda: not stack.processes("slm.orchestration.stack.engine")
    )  # what waits holds no process
    with SyncPrefectClient(stack.api) as client:
        client.resume_flow_run(flow_run, run_input={"approve": False, "who": "Ann"})
    assert wait_for(lambda: stack.ended(flow_run)) == StateType.COMPLETED
    assert {"retrain:retrain", "verdict:refused"} <= set(stack.read(flow_run).tags)
    assert "rejected by Ann" in str(stack.read(flow_run).state)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(postgres_programs() is None, reason="Postgres is not installed")
def test_on_postgres(tmp_path: Path) -> None:
    with postgres() as address:
        stack = Stack(tmp_path, "--postgres", address.replace("psycopg2", "asyncpg"))
        offline = TINY | {"data.source": "stories"}
        flow_run = stack.run("pipeline/tinystories-download", offline, "--watch")
        assert stack.ended(flow_run) == StateType.COMPLETED
        stack.stop()
    assert not (stack.data / "prefect" / "prefect.db").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_project_that_init_has_made(tmp_path: Path) -> None:
    """In a folder without a line of code, with only the wheel: deployed by Prefect's own command,
    and run.
    """
    for name in ("sources", "wheels"):
        (tmp_path / name).mkdir()
    wheel = wheel_of(clean_checkout(tmp_path / "sources"), tmp_path / "wheels")
    package = install(wheel, tmp_path / "installed")
    texts = tmp_path / "tales.jsonl"
    lines = (json.dumps({"id": n, "tale": text}) for n, text in enumerate(stories(1, 0, 200)))
    texts.write_text("\n".join(lines))
    stack = Stack(tmp_path, make=lambda folder: slm.init(folder, texts), package=package)
    try:
        assert stack.printed("deployed  pipeline/tales, retrain/tales")
        stack.prefect("deploy", "--all", "--prefect-file", "pipelines.yaml")
        settings = {key: SHORT[key] for key in SHORT if key != "data.documents"}
        flow_run = stack.run("pipeline/tales", settings, "--watch")
        assert stack.ended(flow_run) == StateType.COMPLETED
        [record] = stack.data.glob(f"runs/tales-*/{RECORD}")
        environment = json.loads(record.read_text())["environment"]
        assert environment["modules_sha256"] == modules_sha256(package / "slm")
        with SyncPrefectClient(stack.api) as client:
            weekly = client.read_deployment_by_name("retrain/tales")
        assert weekly.entrypoint == "slm.orchestration.retrain.retrain"
        assert [schedule.active for schedule in weekly.schedules] == [True]
    finally:
        stack.stop()


# ---- what dies is known, and resumes ----------------------------------------------------------


def kill_flow(stack: Stack, flow_run: UUID) -> None:
    [flow] = stack.processes("slm.orchestration.stack.engine")
    flow.kill()


def kill_worker(stack: Stack, flow_run: UUID) -> None:
    [worker] = stack.processes("slm.orchestration.stack.worker")
    worker.kill()


def end_worker(stack: Stack, flow_run: UUID) -> None:
    [worker] = stack.processes("slm.orchestration.stack.worker")
    worker.terminate()


def kill_server(stack: Stack, flow_run: UUID) -> None:
    [server] = [p for p in stack.processes("server") if str(stack.prefect_port) in p.cmdline()]
    server.kill()


def cancel(stack: Stack, flow_run: UUID) -> None:
    stack.prefect("flow-run", "cancel", str(flow_run))


def stop_stack(stack: Stack, flow_run: UUID) -> None:
    stack.stop()
    stack.start()


def kill_stack(stack: Stack, flow_run: UUID) -> None:
    stack.process.kill()
    stack.process.wait()
    wait_for(lambda: not stack.processes("slm.orchestration.stack.worker"))
    wait_for(lambda: not stack.processes("server"))
    stack.start()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("happens", "state"),
    [
        (kill_flow, StateType.CRASHED),
        (kill_worker, StateType.CRASHED),
        (end_worker, StateType.CRASHED),
        (kill_server, StateType.COMPLETED),
        (cancel, StateType.CANCELLED),
        (stop_stack, StateType.CRASHED),
        (kill_stack, StateType.CRASHED),
    ],
)
def test_what_happens_is_known_and_a_retry_gives_the_same_bits(
    stack: Stack,
    uninterrupted: str,
    happens: Callable[[Stack, UUID], None],
    state: StateType,
) -> None:
    assert_known_and_retried(stack, uninterrupted, happens, state)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("grace", [0.0, 1.0, 5.0])
@pytest.mark.parametrize(
    ("asks", "state"), [(end_worker, StateType.CRASHED), (cancel, StateType.CANCELLED)]
)
def test_whatever_the_grace_a_retry_gives_the_same_bits(
    stack: Stack,
    uninterrupted: str,
    asks: Callable[[Stack, UUID], None],
    state: StateType,
    grace: float,
) -> None:
    """What was asked to end, and all that it started, is killed when the grace is over."""

    def happens(stack: Stack, flow_run: UUID) -> None:
        [asked] = stack.processes(
            "slm.orchestration.stack.worker"
            if asks is end_worker
            else "slm.orchestration.stack.engine"
        )
        family = [asked, *asked.children(recursive=True)]
        asks(stack, flow_run)
        psutil.wait_procs(family, timeout=grace)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    assert_known_and_retried(
        stack, uninterrupted, happens, state, f"{asks.__name__}, {grace:.0f} s"
    )


def assert_known_and_retried(
    stack: Stack,
    uninterrupted: str,
    happens: Callable[[Stack, UUID], None],
    state: StateType,
    name: str = "",
) -> None:
    """Something happens to a training: its end is known, and a retry gives the same bits."""
    shutil.rmtree(stack.data / "runs", ignore_errors=True)
    flow_run = stack.run("pipeline/quickstart", LONG)
    wait_for(stack.trained)
    wait_for(stack.may_lose_its_worker)
    began = time.monotonic()
    happens(stack, flow_run)
    assert wait_for(lambda: stack.ended(flow_run)) == state
    seconds = time.monotonic() - began
    wait_for(
        lambda: not stack.processes("slm.training.process"), seconds=30
    )  # no trainer is left over
    alone = time.monotonic() - began - seconds
    name = name or happens.__name__
    print(f"\n{name:<16} {state.value:<10} after {seconds:.1f} s, trainer {alone:+.1f} s")

    if state != StateType.COMPLETED:
        last = max(int(path.parent.name.removeprefix("step_")) for path in stack.trained())
        began = time.monotonic()
        stack.prefect("flow-run", "retry", str(flow_run))
        wait_for(lambda: stack.ended(flow_run) == StateType.COMPLETED)
        print(f"{'':<16} retried from step {last}: {time.monotonic() - began:.1f} s")
        [run] = stack.data.glob("runs/*/metrics.jsonl")
        resumed = [e["step"] for e in RunFolder(run.parent).journal if e["event"] == "resume"]
        assert resumed == [last]
    [record] = stack.data.glob(f"runs/*/{RECORD}")
    assert json.loads(record.read_text())["weights_sha256"] == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_goes_on_for_long_after_its_server_was_restarted(stack: Stack) -> None:
    """It renews the lease on its deployment's slot, which the new server must know."""
    shutil.rmtree(stack.data / "runs", ignore_errors=True)
    flow_run = stack.run("pipeline/quickstart", TINY | {"train.max_seconds": 90})
    wait_for(lambda: list(stack.data.glob("runs/*/metrics.jsonl")), 300)
    kill_server(stack, flow_run)
    wait_for(lambda: stack.printed("restart   the Prefect server"))
    wait_for(lambda: services.answers(f"{stack.api}/health"))
    restarted = time.time()

    def renewed() -> bool:
        leases = (stack.data / "prefect" / "concurrency_leases").glob("*-*.json")
        return any(lease.stat().st_mtime > restarted + 1 for lease in leases)

    wait_for(renewed)
    assert wait_for(lambda: stack.ended(flow_run), 400) == StateType.COMPLETED


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_stack_that_is_killed_leaves_blocks_nothing(stack: Stack) -> None:
    """A run that is Pending, and the limit `gpu`."""
    with SyncPrefectClient(stack.api) as client:
        deployment = client.read_deployment_by_name("pipeline/quickstart")
        later = datetime.now(UTC) + timedelta(hours=1)  # not for the worker
        made = client.create_flow_run_from_deployment(
            deployment.id, state=Scheduled(scheduled_time=later)
        )
        client.set_flow_run_state(made.id, Pending())
        client.increment_concurrency_slots_with_lease(["gpu"], 1, "concurrency", 60)
    kill_stack(stack, made.id)
    began = time.monotonic()
    waiting = stack.run("pipeline/quickstart", SHORT)
    assert wait_for(lambda: stack.ended(made.id)) == StateType.CRASHED
    print(f"\npending run, and limit of a killed stack: {time.monotonic() - began:.0f} s")
    assert wait_for(lambda: stack.ended(waiting), 300) == StateType.COMPLETED
    with SyncPrefectClient(stack.api) as client:
        wait_for(lambda: client.read_global_concurrency_limit_by_name("gpu").active_slots == 0)


# ---- what cannot start ------------------------------------------------------------------------


def test_a_port_in_use_names_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}, .* in use by .*process {os.getpid()}"):
            services.refuse_port_in_use("Prefect", port, "--prefect-port")


def test_one_port_for_two_servers_is_refused(
    project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_folder(data_root)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=f"are both {port}: give two ports"):
        services.up(prefect_port=port, mlflow_port=port)


def test_a_second_stack_on_a_data_folder_is_refused(data_root: Path) -> None:
    with services.only_stack(), pytest.raises(UserError, match="is up on"), services.only_stack():
        pass


def test_a_program_that_ends_immediately_is_not_restarted_for_ever(data_root: Path) -> None:
    service = services.Service("the worker", ["no_such_module"], dict(os.environ))
    make_folder(service.log.parent)
    service.start()
    with pytest.raises(SlmError, match=r"the worker ends immediately; its log .*worker.log has"):
        services.keep_running([service], print)
    assert "no_such_module" in service.log.read_text()
