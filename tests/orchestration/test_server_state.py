"""What a server remembers of runs that have died: nothing of it blocks others."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.runtime import flow_run as running
from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

import slm.training.launch
import slm.training.processes
from slm.orchestration import gpu_limit, tasks
from slm.orchestration.display import Display, showing
from slm.orchestration.local import start_server, wait_until_healthy
from slm.orchestration.pipeline import pipeline
from slm.orchestration.stack.deploy import deploy
from slm.orchestration.stack.reaper import SILENCE, reap
from slm.orchestration.stack.setup import set_up
from slm.orchestration.stack.worker import POOL

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(autouse=True)
def ready(server: str, client: SyncPrefectClient) -> None:
    """The server with the pool and the limit, none of whose slots are held."""
    set_up(server)
    storage = ConcurrencyLeaseStorage()
    for lease in asyncio.run(storage.read_active_lease_ids()):
        asyncio.run(storage.revoke_lease(lease))
    client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(active_slots=0))


# ---- flow runs whose process is gone ----------------------------------------------------------


@flow(name="other")
def other() -> None:
    """A flow of somebody else."""


def flow_run(
    client: SyncPrefectClient, state: "State[Any]", pool: str | None = POOL, of: Any = pipeline
) -> FlowRun:
    made = client.create_flow_run(of, state=Scheduled(), work_pool_name=pool)
    if state.is_cancelling():
        client.set_flow_run_state(made.id, Running(), force=True)
    client.set_flow_run_state(made.id, state, force=True)
    return client.read_flow_run(made.id)


def reaped(client: SyncPrefectClient, silence: timedelta = timedelta(0)) -> set[UUID]:
    return {run.id for run in reap(client, since=LONG_AGO, silence=silence)}


@pytest.mark.parametrize("pool", [POOL, None])
@pytest.mark.parametrize(
    ("state", "end"),
    [
        (Pending(), "CRASHED"),
        (Pending(name="Submitting"), "CRASHED"),
        (Running(), "CRASHED"),
        (Cancelling(), "CANCELLED"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_without_a_process_ends_in_every_state(
    client: SyncPrefectClient, state: "State[Any]", end: str, pool: str | None
) -> None:
    run = flow_run(client, state, pool)
    assert run.id not in reaped(client, SILENCE)  # it may only just have begun
    assert run.id in reaped(client)
    ended = client.read_flow_run(run.id).state
    assert ended
    assert ended.type.value == end
    assert "process is gone" in str(ended.message)
    assert run.id not in reaped(client)


def test_what_lives_or_has_ended_or_is_somebody_elses_is_left_alone(
    client: SyncPrefectClient,
) -> None:
    client.create_work_pool(WorkPoolCreate(name="containers", type="docker"), overwrite=True)
    untouched = [
        flow_run(client, Completed()),
        flow_run(client, Scheduled(name="Late")),
        flow_run(client, Scheduled(name="AwaitingConcurrencySlot")),
        flow_run(client, Pending(), pool="containers"),  # whose image is on its way
        flow_run(client, Running(), pool=None, of=other),
    ]
    lives = flow_run(client, Running())
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(
        sleep, env={**os.environ, "PREFECT__FLOW_RUN_ID": str(lives.id)}
    ) as process:
        ended = reaped(client)
        process.kill()
    assert not ended & {run.id for run in [*untouched, lives]}
    for run in untouched:
        now = client.read_flow_run(run.id).state
        assert now
        assert run.state
        assert now.id == run.state.id
    assert lives.id in reaped(client)


def test_no_run_is_ended_before_its_heartbeats_could_arrive(client: SyncPrefectClient) -> None:
    flow_run(client, Running())
    just_up = datetime.now(UTC) - timedelta(seconds=1)
    assert reap(client, since=just_up, silence=timedelta(seconds=30)) == []


def test_the_automation_of_older_versions_is_removed(
    server: str, client: SyncPrefectClient
) -> None:
    from prefect.events.actions import DoNothing
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    client.create_automation(
        AutomationCore(
            name="slm: flow runs that fell silent",
            trigger=EventTrigger(
                expect={"x"}, posture=Posture.Reactive, threshold=1, within=timedelta(seconds=0)
            ),
            actions=[DoNothing()],
        )
    )
    set_up(server)
    assert client.find_automation("slm: flow runs that fell silent") is None


# ---- a deployment's slot ----------------------------------------------------------------------


def taken_slot(client: SyncPrefectClient, name: str) -> tuple[UUID, FlowRun]:
    """A deployment that lets one run at a time, and a run that has its slot."""
    deployment = client.create_deployment(
        client.create_flow(pipeline), name, concurrency_limit=1, work_pool_name=POOL
    )
    first = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(first.id, Pending())
    return deployment, client.read_flow_run(first.id)


def test_a_pending_run_that_died_blocks_its_deployment_no_longer(
    client: SyncPrefectClient,
) -> None:
    deployment, first = taken_slot(client, "blocked")
    second = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(second.id, Pending())
    assert client.read_flow_run(second.id).state_name == "AwaitingConcurrencySlot"
    assert first.id in reaped(client)
    client.set_flow_run_state(second.id, Pending())
    assert client.read_flow_run(second.id).state_name == "Pending"
    client.delete_deployment(deployment)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_slot_outlives_its_server() -> None:
    """What a flow run does every few minutes is not refused after a restart of its server."""
    with own_server() as client:
        deployment, run = taken_slot(client, "outlives")
    assert run.state
    lease = run.state.state_details.deployment_concurrency_lease_id
    assert lease
    with own_server() as client:
        client.renew_concurrency_lease(lease, 300)  # 410 Gone, where it was in memory
        client.delete_deployment(deployment)


@contextmanager
def own_server() -> Iterator[SyncPrefectClient]:
    """A server of a test's own, which is killed at the end."""
    process, api = start_server()
    assert process.stdin
    with process.stdin:
        wait_until_healthy(api)
        with SyncPrefectClient(api) as client:
            yield client
        process.kill()
        process.wait()


# ---- the limit `gpu` --------------------------------------------------------------------------


def active_slots(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name("gpu").active_slots


def hold(client: SyncPrefectClient) -> UUID:
    """A slot held, as by a training that then dies; returns its lease."""
    held = client.increment_concurrency_slots_with_lease(["gpu"], 1, "concurrency", 60)
    return UUID(held.json()["lease_id"])


def expire(lease: UUID) -> None:
    """What a minute does to a lease that nobody renews."""
    assert asyncio.run(ConcurrencyLeaseStorage().renew_lease(lease, timedelta(seconds=-1)))


def test_a_training_that_waits_reports_it_and_gets_the_slot_of_one_that_died(
    client: SyncPrefectClient, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.training.processes, "gpu_count", lambda: 1)
    monkeypatch.setattr(gpu_limit, "RETRY_SECONDS", 0.2)
    lease = hold(client)
    lines: list[str] = []

    def write(line: str) -> None:
        if not lines:
            expire(lease)
        lines.append(line)

    with showing(Display(write)), tasks.gpu(tiny_config(**{"train.device": "auto"})):
        assert active_slots(client) == 1  # now ours
    assert active_slots(client) == 0
    assert "waiting for the limit 'gpu', 1 of 1 in use, held by a run that has died" in lines[0]
    assert "slm prefect gcl update gpu --active-slots 0" in lines[0]


def test_who_holds_the_limit_is_named(client: SyncPrefectClient) -> None:
    @flow(name="holder")
    def holder() -> tuple[str, list[str]]:
        with gpu_limit.slot():
            for _ in range(150):  # the event is on its way
                if names := gpu_limit.holders():
                    break
            return str(running.name), names

    name, names = holder()
    assert names == [name]
    assert gpu_limit.holders() == []  # it has ended


def test_no_training_on_a_cpu_waits(client: SyncPrefectClient, tiny_config: Any) -> None:
    hold(client)
    with tasks.gpu(tiny_config(**{"train.device": "cpu"})):
        assert active_slots(client) == 1  # the other's


def test_slots_that_nobody_leases_are_freed_when_the_stack_starts(
    server: str, client: SyncPrefectClient
) -> None:
    client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(active_slots=1))
    assert set_up(server, own_leases=False) == []
    assert "freed" in set_up(server)[0]
    assert active_slots(client) == 0
    hold(client)
    assert set_up(server) == []  # somebody's
    assert active_slots(client) == 1


# ---- what people change on the page -----------------------------------------------------------

DEPLOYMENTS = """
deployments:
  - name: kept
    entrypoint: flows/pipeline.py:pipeline
    description: A tiny one.
    version: "1"
    parameters: {recipe: tiny, overrides: {}}
    work_pool: {name: slm-process}
    schedules:
      - {cron: "0 3 * * 0", slug: weekly, active: true}
      - {cron: "0 4 * * *", slug: daily}
  - name: gone
    entrypoint: flows/pipeline.py:pipeline
    description: Another.
    version: "1"
    parameters: {recipe: tiny, overrides: {}}
    work_pool: {name: slm-process}
"""


@pytest.fixture
def file(project: Path) -> Path:
    (project / "flows").symlink_to(ROOT / "flows")
    path = project / "pipelines.yaml"
    path.write_text(path.read_text().replace("deployments: []\n", DEPLOYMENTS))
    return path


def test_a_paused_schedule_stays_paused(server: str, client: SyncPrefectClient, file: Path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": server}
    deploy(server, environment, file)
    made = client.read_deployment_by_name("pipeline/kept")
    weekly = next(schedule for schedule in made.schedules if schedule.slug == "weekly")
    client.update_deployment_schedule(made.id, weekly.id, active=False)
    [line] = deploy(server, environment, file)
    assert line == "kept      schedule 'weekly' of pipeline/kept is paused, as on the Prefect page"
    made = client.read_deployment_by_name("pipeline/kept")
    assert {s.slug: s.active for s in made.schedules} == {"weekly": False, "daily": True}
    undo(client)


def undo(client: SyncPrefectClient) -> None:
    """Remove what was deployed, and the note of it."""
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    for variable in client.read_variables():
        client.delete_variable_by_name(variable.name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_deploying_again_keeps_what_people_have_changed(
    server: str, client: SyncPrefectClient, file: Path
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": server}

    def again() -> str:
        return "\n".join(deploy(server, environment, file))

    def schedules() -> dict[str, bool]:
        made = client.read_deployment_by_name("pipeline/kept").schedules
        return {str(schedule.slug): schedule.active for schedule in made}

    def edit(old: str, new: str) -> None:
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    assert again() == "deployed  pipeline/kept, pipeline/gone"
    assert schedules() == {"weekly": True, "daily": True}
    assert again() == ""

    # Somebody pauses one schedule, deletes the other, and makes one of their own.
    kept = client.read_deployment_by_name("pipeline/kept")
    by_slug = {schedule.slug: schedule for schedule in kept.schedules}
    client.update_deployment_schedule(kept.id, by_slug["weekly"].id, active=False)
    client.delete_deployment_schedule(kept.id, by_slug["daily"].id)
    own = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 * * *"), slug="own")
    client.create_deployment_schedules(kept.id, [own])
    mine = client.create_deployment(kept.flow_id, "mine", work_pool_name=POOL)
    changed = {"weekly": False, "own": True}
    reports = [
        "kept      schedule 'weekly' of pipeline/kept is paused, as on the Prefect page",
        "kept      schedule 'daily' of pipeline/kept was deleted on the Prefect page",
    ]
    assert again().splitlines() == reports
    assert schedules() == changed

    # The file changes, first elsewhere in the entry, then in the schedule itself.
    edit("A tiny one", "A small one")
    assert again().splitlines() == ["deployed  pipeline/kept", *reports]
    assert client.read_deployment_by_name("pipeline/kept").description == "A small one."
    assert schedules() == changed
    edit("active: true", "active: false")
    edit('      - {cron: "0 4 * * *", slug: daily}\n', "")
    assert again() == ""
    edit("active: false", "active: true")
    assert again() == ""
    assert schedules() == {"weekly": True, "own": True}

    # A schedule and a deployment leave the file; somebody's own deployment stays.
    edit('    schedules:\n      - {cron: "0 3 * * 0", slug: weekly, active: true}\n', "")
    file.write_text(file.read_text().partition("  - name: gone")[0])
    assert again().splitlines() == [
        "removed   schedule 'weekly' of pipeline/kept",
        "removed   pipeline/gone, which pipelines.yaml has no longer",
    ]
    assert schedules() == {"own": True}
    assert {d.name for d in client.read_deployments()} >= {"kept", "mine"}
    assert "gone" not in {d.name for d in client.read_deployments()}
    assert mine in {d.id for d in client.read_deployments()}
    undo(client)
