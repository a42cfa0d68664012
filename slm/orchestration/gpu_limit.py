"""Limits of the Prefect server: `gpu`, as many trainings on a GPU at a time as it allows, and
`trial`, as many trials of sweeps, which a server has only where a person has made it.

Who works holds a lease on one, which it renews and which the server keeps on disk. Whatever dies,
the slot is free again within `LEASE_SECONDS` and the server's next look at its leases (15 s).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound

from slm.orchestration.display import current

GPU, TRIAL = "gpu", "trial"
LEASE_SECONDS = 60.0  # the shortest that Prefect allows
RETRY_SECONDS = 5.0
REPORT_SECONDS = 300.0  # until the same wait is reported again
MAX_EVENTS = 50  # of one answer of the server

logger = logging.getLogger(__name__)


@contextmanager
def slot(limit: str = GPU, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a slot of a limit. While none is free, wait, and report who holds them.

    A server without the limit lets all work.

    `stop`: called while it waits; what it raises ends the wait.
    """
    held = ExitStack()
    reported, due = "", 0.0
    while not _enter(held, limit):
        stop()
        message = describe_wait(limit)
        if message != reported or time.monotonic() > due:
            current().write(message)
            reported, due = message, time.monotonic() + REPORT_SECONDS
        time.sleep(RETRY_SECONDS)
    try:
        yield
    finally:
        try:
            held.close()
        except Exception as error:  # what was trained is not lost for it
            logger.warning("the slot of %s becomes free when its lease expires: %s", limit, error)


def _enter(held: ExitStack, name: str) -> bool:
    """Take a slot if one is free now. Prefect's own waiting would be silent."""
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(name)
            if limit.active and limit.active_slots >= limit.limit:
                return False
    except ObjectNotFound:
        return True
    except httpx.TransportError:
        return False
    try:
        held.enter_context(concurrency(name, max_retries=0, lease_duration=LEASE_SECONDS))
    except (httpx.TransportError, ConcurrencySlotAcquisitionError) as error:
        if not _may_pass(error):
            raise
        return False
    return True


def _may_pass(error: Exception) -> bool:
    """Whether another run was faster, or the server is being restarted."""
    cause = error.__cause__ if isinstance(error, ConcurrencySlotAcquisitionError) else error
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code == httpx.codes.LOCKED
    return isinstance(cause, httpx.TransportError)


def describe_wait(name: str = GPU) -> str:
    """For what a training waits, who holds it, and how to free it."""
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(name)
        held_by = ", ".join(holders(name)) or "a run that has died"
        use = f", {limit.active_slots} of {limit.limit} in use, held by {held_by}"
    except Exception as error:  # the wait does not depend on it
        logger.debug("who holds %s is not known: %s", name, error)
        use = ", on a server that does not answer now"
    return (
        f"waiting for the limit {name!r}{use}. A run that died frees its slot within "
        f"{LEASE_SECONDS + 30:.0f} s; `slm prefect gcl update {name} --active-slots 0` frees all, "
        f"`slm prefect gcl update {name} --limit N` lets N train at a time"
    )


def holders(name: str = GPU) -> list[str]:
    """The names of the flow runs that hold a slot, from the server's events.

    The last event of a holder is that it has acquired a slot, and it runs still.
    """
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(name)
        events = client.read_events(
            EventFilter(
                event=EventNameFilter(prefix=["prefect.concurrency-limit."]),
                resource=EventResourceFilter(id=[f"prefect.concurrency-limit.{limit.id}"]),
            ),
            limit=MAX_EVENTS,
        ).events
        last: dict[str, str] = {}  # flow run → the name of its last event
        for event in events:  # the newest first
            for related in event.related:
                if related.role == "flow-run":
                    last.setdefault(related.id, event.event)
        acquired = [
            id.removeprefix("prefect.flow-run.")
            for id, event in last.items()
            if event.endswith(".acquired")
        ]
        if not acquired:
            return []
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=acquired))
        )
        return [run.name for run in runs if run.state and run.state.is_running()]
