"""Flow runs whose process is gone are marked as ended, so that they block no others.

Prefect itself never notices: such a run stays Pending or Running and keeps its deployment's slot.
A run is alive while a process of this machine runs it, or while its heartbeats arrive. `slm up`
looks every few seconds; nothing here looks at a run that has ended.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.states import Cancelled, Crashed

from slm.orchestration.stack.worker import POOL

FLOWS = ["pipeline", "retrain", "sweep"]
STARTED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
SILENCE = timedelta(seconds=90)  # three missed heartbeats, which come every 30 s (slm.machine)
INTERVAL_SECONDS = 10.0
MESSAGE = "Its process is gone. A retry resumes from its last checkpoint."

logger = logging.getLogger(__name__)


def watch(api: str, write: Callable[[str], None]) -> None:
    """Reap every few seconds, in a thread that lives as long as this process.

    `write`: takes a line for each run that was ended.
    """

    def loop() -> None:
        since = datetime.now(UTC)
        while True:
            time.sleep(INTERVAL_SECONDS)
            try:
                with SyncPrefectClient(api) as client:
                    for run in reap(client, since=since):
                        write(
                            f"crashed   {run.name}: its process is gone; "
                            f"`slm prefect flow-run retry {run.id}` resumes it"
                        )
            except Exception as error:  # the server restarts, and heartbeats are missed meanwhile
                logger.debug("not reaped: %s", error)
                since = datetime.now(UTC)

    threading.Thread(target=loop, daemon=True).start()


def reap(
    client: SyncPrefectClient, *, since: datetime, silence: timedelta = SILENCE
) -> list[FlowRun]:
    """End the runs of our flows that have been silent for too long; returns them.

    Args:
        since: from when on the server could receive heartbeats. Silence counts from there.
    """
    now = datetime.now(UTC)
    if now - since <= silence:
        return []
    ours = {flow.id for flow in client.read_flows(flow_filter=_named(FLOWS))}
    ended = []
    for run in client.read_flow_runs(flow_run_filter=_in_states(STARTED)):
        if run.work_pool_name != POOL and run.flow_id not in ours:
            continue  # somebody else's, which may send no heartbeats
        if now - last_sign_of_life(client, run) > silence and run.id not in runs_of_processes():
            client.set_flow_run_state(run.id, end_state(run))  # refused if it has ended meanwhile
            ended.append(run)
    return ended


def last_sign_of_life(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """When a run last changed its state or sent a heartbeat."""
    assert run.state is not None
    if run.state.is_pending() and run.work_pool_name not in (POOL, None):
        return datetime.now(UTC)  # a container, whose image may take long to arrive
    beats = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        ),
        limit=1,  # the newest
    ).events
    return max([run.state.timestamp, *(beat.occurred for beat in beats)])


def end_state(run: FlowRun) -> "State[None]":
    assert run.state is not None
    return Cancelled(message=MESSAGE) if run.state.is_cancelling() else Crashed(message=MESSAGE)


def runs_of_processes() -> set[UUID]:
    """The flow runs that processes of this machine work on; trainers count as well."""
    runs = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):  # it has ended, or is another user's
            if run := process.environ().get("PREFECT__FLOW_RUN_ID"):
                runs.add(UUID(run))
    return runs


def _named(names: list[str]) -> FlowFilter:
    return FlowFilter(name=FlowFilterName(any_=names))


def _in_states(types: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
