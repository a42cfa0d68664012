"""What a Prefect server needs for `pipelines.yaml`: a work pool, and the limit `gpu`."""

import asyncio
import shlex
import sys
from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.exceptions import ObjectAlreadyExists
from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage
from prefect.workers.process import ProcessWorker

from slm.orchestration.gpu_limit import GPU, TRIAL
from slm.orchestration.stack.worker import POOL

AUTOMATION = "slm: flow runs that fell silent"  # of older versions: `reaper.py` does its work
MAX_LEASES = 10_000
MAX_LIMITS = 200  # of one answer of the server


def set_up(api: str, *, own_leases: bool = True) -> list[str]:
    """Make what is missing; returns lines for the user. A limit that was changed stays so.

    Args:
        own_leases: whether all leases of the server are on this disk, so that slots without one
            are known to be nobody's.
    """
    lines = []
    with SyncPrefectClient(api) as client:
        client.create_work_pool(work_pool(), overwrite=True)
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
        if automation := client.find_automation(AUTOMATION):
            client.delete_automation(automation.id)
        for limit in client.read_global_concurrency_limits(limit=MAX_LIMITS):
            if limit.name not in (GPU, TRIAL) or not own_leases:
                continue
            if limit.active_slots > (held := asyncio.run(slots_held(limit.id))):
                freed = GlobalConcurrencyLimitUpdate(active_slots=held)
                client.update_global_concurrency_limit(limit.name, freed)
                lines.append(
                    f"freed     the limit {limit.name!r}, which runs that have died still held"
                )
    return lines


async def slots_held(limit: UUID) -> int:
    """The slots of a limit that leases on this disk hold."""
    storage = ConcurrencyLeaseStorage()
    ids = [
        *await storage.read_active_lease_ids(limit=MAX_LEASES),
        *await storage.read_expired_lease_ids(limit=MAX_LEASES),  # whose slots the server frees
    ]
    leases = [await storage.read_lease(id) for id in ids]
    return sum(
        lease.metadata.slots
        for lease in leases
        if lease and lease.metadata and limit in lease.resource_ids
    )


def work_pool() -> WorkPoolCreate:
    """A pool of processes, each of which ends when its worker dies (see `engine.py`)."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = shlex.join(
        [sys.executable, "-m", "slm.orchestration.stack.engine"]
    )
    return WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)
