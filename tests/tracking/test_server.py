"""Which server, its errors in one sentence, and the page that shows training runs."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from run_folders import CONFIG, empty_store, start_run, step_events, write_journal
from servers import free_port, running
from stages import install

from slm.config import RegistryConfig
from slm.errors import SlmError, UserError
from slm.orchestration.outline import run_pipeline
from slm.run_folder import RunFolder
from slm.tracking import mirror, pages
from slm.tracking.server import (
    check_experiment,
    connect,
    experiment_id,
    explained,
    store_uri,
    training_page,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return empty_store(tmp_path / "my data")


# ---- errors -----------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, int]]]:
    """A server that answers every request with one status, and no JSON."""
    answer = {"status": 500}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(b"<html>\nnothing of MLflow</html>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", answer
    server.shutdown()
    server.server_close()
    thread.join()


def raised(uri: str) -> SlmError:
    with pytest.raises(SlmError) as caught, explained():
        connect(uri).search_experiments()
    text = str(caught.value)
    assert text.startswith("MLflow: ")
    assert "\n" not in text
    assert "Pool" not in text
    assert "secret" not in text
    return caught.value


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (500, "the server http://ADDRESS fails at every request"),
        (403, "the server answers 403 to /api/"),
        (404, "the server answers 404 to /api/"),
        (200, "no MLflow server answers"),
    ],
)
def test_a_server_that_fails_is_one_sentence(
    failing: tuple[str, dict[str, int]], status: int, sentence: str
) -> None:
    address, answer = failing
    answer["status"] = status
    error = raised(f"http://me:secret@{address}")
    assert sentence.replace("ADDRESS", address) in str(error)
    assert error.exit_code == 1


def test_a_server_that_is_down_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert str(raised("http://me:secret@127.0.0.1:9")) == (
        "MLflow: the server http://127.0.0.1:9 cannot be reached (connection refused): start it, "
        "or change MLFLOW_TRACKING_URI"
    )


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http:///mlflow", "ftp://mlflow"])
def test_what_cannot_be_an_address_is_bad_input(uri: str) -> None:
    error = raised(uri)
    assert error.exit_code == 2
    assert f"{uri.partition('/mlflow')[0]}" in str(error)
    assert "is not the address of a tracking server" in str(error)


# ---- a deleted experiment -----------------------------------------------------------------------


def test_a_deleted_experiment_is_noticed_before_any_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATA", str(root))
    called = install(monkeypatch, root)
    client = connect(store_uri(root))
    number = experiment_id(client, CONFIG, root)
    client.delete_experiment(number)
    with pytest.raises(UserError, match=rf"restore --experiment-id {number}` restores it"):
        run_pipeline(CONFIG)
    assert called == []
    run_pipeline(CONFIG, "encode")  # needs no experiment
    client.restore_experiment(number)
    check_experiment(CONFIG, root)


def test_no_store_and_no_server_are_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    check_experiment(CONFIG, tmp_path)
    assert not (tmp_path / "mlflow").exists()
    down = CONFIG.model_copy(update={"registry": RegistryConfig(tracking_uri="http://127.0.0.1:9")})
    check_experiment(down, tmp_path)


# ---- what the page shows ------------------------------------------------------------------------


def test_a_failed_start_is_no_mlflow_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "INTERVAL", 0.02)
    path = start_run(root)
    with mirror.mirror(RunFolder(path)):
        pass
    client = connect(store_uri(root))
    assert not (path / "mlflow.json").exists()
    assert client.get_experiment_by_name(CONFIG.model_name) is None
    with mirror.mirror(RunFolder(path)):
        write_journal(path, step_events(1, 3))
    assert (path / "mlflow.json").exists()


def test_an_mlflow_run_that_is_deleted_meanwhile_is_sent_anew_whole(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 5))
    run_mirror = mirror.RunMirror(RunFolder(path), None)
    run_mirror.client.delete_run(run_mirror.send())
    write_journal(path, step_events(6, 8))
    history = run_mirror.client.get_metric_history(run_mirror.send(), "train_loss")
    assert [point.step for point in history] == list(range(1, 9))


def test_an_experiment_carries_the_view_of_its_training_runs(root: Path) -> None:
    client = connect(store_uri(root))
    client.create_experiment(CONFIG.model_name)  # by an earlier version, without the view
    number = experiment_id(client, CONFIG, root)
    view = client.get_experiment(number).tags[f"mlflow.sharedViewState.{pages.VIEW}"]
    assert len(view) < 5000
    state = json.loads(json.loads(view)["state"])
    assert state["selectedColumns"] == list(pages.COLUMNS)
    own = json.dumps({"name": "mine", "createdAt": 1, "state": "{}"})
    client.set_experiment_tag(number, f"mlflow.sharedViewState.{pages.VIEW}", own)
    experiment_id(client, CONFIG, root)
    kept = client.get_experiment(number).tags[f"mlflow.sharedViewState.{pages.VIEW}"]
    assert kept == own  # what a person changed stays
    assert training_page(CONFIG, root) is None  # a store has no page


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_fresh_browser_shows_the_training_runs(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    config = CONFIG.model_copy(update={"registry": RegistryConfig(tracking_uri=address)})
    command = [
        "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        f"--backend-store-uri=sqlite:///{tmp_path}/server.db", "--no-serve-artifacts",
    ]  # fmt: skip
    with running(command, f"{address}/health", tmp_path):
        path = start_run(tmp_path / "data", config)
        write_journal(path, step_events(1, 20))
        mirror.sync(RunFolder(path))
        page = training_page(config, tmp_path / "data")
        assert page is not None
        shown = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
             f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=60000",
             "--window-size=2400,900", page],
            capture_output=True, text=True, timeout=200, check=True,
        ).stdout  # fmt: skip
    for text in (path.name, "Training runs", "train_loss", "val_bpb", "learning_rate"):
        assert text in shown, text
    assert "No data available for the selected time range" not in shown
