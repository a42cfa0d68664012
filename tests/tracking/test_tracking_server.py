"""A real tracking server, on SQLite and on Postgres: mirrored to, registered in, and gated by."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    add_report,
    finish_run,
    killed_after,
    start_run,
    step_events,
    write_journal,
)
from servers import free_port, postgres, postgres_programs, running
from tiny_run import shards_of

from slm.config import RegistryConfig
from slm.registry import gate, register
from slm.registry.chain import version_lineage
from slm.registry.versions import list_versions, resolve
from slm.run_folder import RunFolder
from slm.tracking import mirror
from slm.tracking.server import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LENIENT = RegistryConfig(max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1)
SENDING = ["create_run", "log_batch", "log_inputs", "create_logged_model", "log_artifact"]
LAST = 1300  # steps: more points than one request takes


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server with that backend, whose artifacts it serves itself."""
    if request.param == "postgres" and postgres_programs() is None:
        pytest.skip("Postgres is not installed: apt-get install postgresql")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        store = f"sqlite:///{tmp_path}/server.db"
        if request.param == "postgres":
            store = stack.enter_context(postgres())
        command = [
            "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
            f"--backend-store-uri={store}", "--artifacts-destination=kept",
        ]  # fmt: skip
        stack.enter_context(running(command, f"{address}/health", tmp_path))
        yield address


def test_killed_mid_sync_it_continues_and_ends_with_a_champion(uri: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    config = CONFIG.model_copy(
        update={"registry": LENIENT.model_copy(update={"tracking_uri": uri})}
    )
    path = start_run(root, config)
    write_journal(path, step_events(1, LAST))
    for calls in (1, 2, 2):
        assert killed_after(calls, SENDING, lambda: mirror.sync(RunFolder(path)))
    server = connect(uri)
    run_id = mirror.sync(RunFolder(path))
    assert server.get_run(run_id).info.status == "KILLED"  # its training ended without a record

    run = finish_run(path)
    evaluation = add_evaluation(run)
    assert killed_after(2, SENDING, lambda: mirror.sync(RunFolder(path)))
    version = register.register(config, run, evaluation, add_report(run), shards_of(run), root=root)
    assert (version.version, version.run_id) == ("1", run_id)
    assert (
        register.register(config, run, evaluation, None, shards_of(run), root=root).version == "1"
    )
    history = server.get_metric_history(run_id, "train_loss")
    assert [m.step for m in history] == list(range(1, LAST + 1))
    assert server.get_run(run_id).info.status == "FINISHED"
    assert {"config.json", "report", "evaluation"} <= {
        f.path for f in server.list_artifacts(run_id)
    }

    assert gate.promote("models:/slm/1", root=root, uri=uri).decision == "promoted"
    listed = list_versions(root, uri=uri)
    assert [(v.aliases, v.tags["decision"]) for v in listed] == [(("champion",), "promoted")]
    chain = version_lineage("models:/slm@champion", root, uri=uri)
    assert chain["version"].state == "unchanged"

    weights = (run.checkpoint("best") / "model.safetensors").read_bytes()
    (root / "runs").rename(root / "gone")
    folder = resolve("models:/slm@champion", root, uri=uri)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (root / "mlflow" / "mlflow.db").exists()
