"""An address that is wrong, or of a server that is gone: one sentence, before any work."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from slm.errors import UserError
from slm.orchestration import addresses
from slm.orchestration.stack import services
from slm.storage import lock

Command = Callable[..., Any]
Serve = Callable[[dict[str, tuple[int, bytes]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that gives fixed answers; returns its address."""
    servers: list[HTTPServer] = []

    def start(answers: dict[str, tuple[int, bytes]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content = answers.get(self.path, answers.get("*", (404, b"")))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dead() -> str:
    """An address of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_address_of_the_pages_is_not_that_of_the_api(serve: Serve) -> None:
    page = serve({"*": (200, b"<!doctype html>"), "/api/health": (200, b"true")})
    with pytest.raises(UserError, match=f"its API is at {page}/api: set it to that"):
        addresses.check_prefect(page)
    addresses.check_prefect(f"{page}/api")
    addresses.check_prefect(f"{page}/api/")


def test_a_server_that_asks_for_a_password_answers(serve: Serve) -> None:
    guarded = serve({"*": (401, b"")})
    addresses.check_prefect(f"{guarded}/api")
    addresses.check_mlflow(guarded)


def test_dead_servers_are_named_without_passwords(dead: str) -> None:
    secret = dead.replace("http://", "http://ann:secret@")
    for check in (addresses.check_prefect, addresses.check_mlflow):
        with pytest.raises(UserError, match="does not answer") as error:
            check(secret)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("uri", ["", "sqlite:///x.db", "postgresql://127.0.0.1:1/x", "databricks"])
def test_addresses_that_are_no_servers_are_mlflows_own_business(uri: str) -> None:
    addresses.check_mlflow(uri)


@pytest.mark.parametrize("command", ["run", "retrain"])
def test_a_run_does_not_begin_without_its_tracking_server(
    slm_here: Command, data_root: Path, dead: str, command: str
) -> None:
    done = slm_here(command, "tiny", MLFLOW_TRACKING_URI=dead)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"the MLflow server at MLFLOW_TRACKING_URI={dead} does not answer" in done.stderr
    assert not (data_root / "runs").exists()
    assert not (data_root / "prefect").exists()  # no server was started for it


def test_a_run_with_the_address_of_the_pages_is_one_sentence(
    slm_here: Command, serve: Serve
) -> None:
    page = serve({"*": (200, b"<!doctype html>")})
    done = slm_here("run", "tiny", PREFECT_API_URL=page)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"PREFECT_API_URL={page} is not the address of a Prefect API" in done.stderr


def test_a_stack_does_not_start_with_a_dead_tracking_server(
    project: Path, data_root: Path, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    lines: list[str] = []
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI={dead} does not answer"):
        services.up(write=lines.append)
    assert not lines
    assert not (data_root / "logs").exists()


# ---- the stack that is up ---------------------------------------------------------------------


def test_prefects_command_finds_the_stack_that_is_up(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no stack is up on .*: start it with `slm up`"):
        addresses.prefect_environment()
    noted = {"PREFECT_API_URL": "http://127.0.0.1:4242/api", "MLFLOW_TRACKING_URI": "http://m"}
    with lock(addresses.stack_lock()):
        addresses.note_stack(noted)
        environment = addresses.prefect_environment()
        assert environment["PREFECT_API_URL"] == noted["PREFECT_API_URL"]
    with pytest.raises(UserError, match="no stack is up"):  # it has ended
        addresses.prefect_environment()


def test_an_address_that_is_set_comes_before_the_stack(
    data_root: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = serve({"*": (200, b"true")})
    monkeypatch.setenv("PREFECT_API_URL", api)
    assert addresses.prefect_environment()["PREFECT_API_URL"] == api


def test_prefects_command_writes_nothing_into_the_home_folder(
    project: Path, data_root: Path, tmp_path: Path, serve: Serve
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    api = serve({"*": (200, b"true")})
    answers: dict[str, str] = {"PREFECT_HOME": f"{data_root}/prefect", "PREFECT_API_URL": api}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "slm.cli.main", "prefect", "config", "view", "--show-sources"],
        cwd=project,
        env={**environment, "HOME": str(home), "PREFECT_API_URL": api},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, value in answers.items():
        assert f"{name}='{value}' (from env)" in done.stdout
    assert list(home.iterdir()) == []
