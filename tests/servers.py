"""Servers that tests start for themselves on 127.0.0.1: MLflow's own, and Postgres."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], url: str, folder: Path, *, python: Path = Path(sys.executable)
) -> Iterator[None]:
    """A server of mlflow's command line, from when it answers at `url`."""
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "mlflow", *command],
            stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


# ---- Postgres ---------------------------------------------------------------------------------


def postgres_programs() -> Path | None:
    """Where Postgres is installed, if it is: Debian keeps it off the PATH."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """A Postgres with an empty database, removed afterwards; gives its SQLAlchemy address."""
    programs = postgres_programs()
    assert programs is not None
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder, port = Path(mkdtemp(prefix="slm-postgres-", dir="/tmp")), str(free_port())
    if owner:
        shutil.chown(folder, owner)
    create = [programs / "initdb", "-D", folder / "db", "-U", "slm", "-A", "trust", "--no-sync"]
    serve = [
        programs / "postgres", "-D", folder / "db", "-h", "127.0.0.1", "-p", port, "-k", folder,
        "-F",
    ]  # fmt: skip
    ask = [programs / "pg_isready", "-h", "127.0.0.1", "-p", port, "-t", "30"]
    process = None
    try:
        subprocess.run(create, check=True, capture_output=True, user=owner, cwd=folder)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(serve, stdout=log, stderr=log, user=owner, cwd=folder)
        for _ in range(150):
            if subprocess.run(ask, capture_output=True).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql+psycopg2://slm@127.0.0.1:{port}/postgres"
    finally:
        if process:
            process.send_signal(signal.SIGINT)  # a fast shutdown: clients are cut off
            process.wait(20)
        shutil.rmtree(folder)
