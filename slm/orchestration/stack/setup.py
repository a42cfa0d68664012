"""What a Prefect server needs for `pipelines.yaml`: a work pool, a limit, an automation."""

import shlex
import sys
from contextlib import suppress
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from slm.orchestration.stack.worker import POOL
from slm.orchestration.tasks import GPU

SILENCE = timedelta(seconds=90)  # three missed heartbeats, which come every 30 s (slm.machine)


def set_up(api: str) -> None:
    """Make what is missing. A limit that was changed on the server stays as it is."""
    with SyncPrefectClient(api) as client:
        client.create_work_pool(work_pool(), overwrite=True)
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
        existing = client.find_automation(ZOMBIES.name)
        if existing is None:
            client.create_automation(ZOMBIES)
        elif existing.trigger != ZOMBIES.trigger:  # made by an older version
            client.update_automation(existing.id, ZOMBIES)


def work_pool() -> WorkPoolCreate:
    """A pool of processes, each of which ends when its worker dies (see `engine.py`)."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = shlex.join(
        [sys.executable, "-m", "slm.orchestration.stack.engine"]
    )
    return WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)


ZOMBIES = AutomationCore(
    name="slm: flow runs that fell silent",  # as on servers that exist
    description="Marks a flow run as crashed when its process is gone and sends no heartbeat.",
    trigger=EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={
            "prefect.flow-run.heartbeat",
            "prefect.flow-run.Completed",
            "prefect.flow-run.Failed",
            "prefect.flow-run.Cancelled",
            "prefect.flow-run.Crashed",
            "prefect.flow-run.Suspended",  # it waits for a person, and has no process
        },
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    ),
    actions=[
        ChangeFlowRunState(
            state=StateType.CRASHED,
            message="No heartbeat: its process is gone. A retry resumes from its last checkpoint.",
        )
    ],
)
