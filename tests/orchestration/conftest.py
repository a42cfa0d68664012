"""A Prefect server for each module that wants one."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from slm.orchestration.local import start_server, wait_until_healthy


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of this module's own, which all that runs here uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS", "1")
        process, api = start_server()
    wait_until_healthy(api)
    with temporary_settings({PREFECT_API_URL: api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield api
        EventsWorker.drain_all(timeout=10)  # else the next module's events would go to this server
    assert process.stdin
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
