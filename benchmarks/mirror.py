"""What MLflow costs a training: with a server that is well, slow, failing or down, and without.

The recipe `quickstart` with smaller steps, and a fixed number of them, trained as `slm train` does
it: a child process that trains, and the mirror in this one. A server of MLflow's own keeps the runs
in SQLite; a proxy before it makes it slow or failing:

- `slow`: every request waits a second.
- `failing`: of three requests one is answered with a 500, and one is carried out, but its answer
  is lost as the connection is cut.
- `down`: nobody listens.

Every round trains all of them, in an order drawn anew, with the same seed: the same work, bit for
bit. `step` is the median of the step times after the mirror's start: the import of mlflow, which
takes seconds of CPU once per training, is over then. `mean step` is their mean, which includes the
steps during a pass of the mirror, and `mean of all` that of all steps with the start. `mirror's
CPU` is what the launching process used after the start, in thousandths of a core: where step times
are noise, it bounds what the mirror can take from a training. Afterwards each run is synced with
the server itself, and its points are counted: `lost or doubled` must be 0.
"""

import argparse
import http.client
import json
import logging
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, Timer
from typing import Any

import limits

from slm.recipes import load_recipe
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tracking import mirror
from slm.tracking.server import connect
from slm.training import launch
from slm.training.prepare import prepare

SETTINGS = {
    "data.documents": 2000,
    "model.seq_len": 128,
    "train.tokens_per_step": 512,
    "train.evaluate_every": 100_000,
}
DELAY = 1.0  # seconds, of a slow server
STARTED = mirror.INTERVAL + 4.0  # seconds after which a mirror has imported mlflow


def run(rounds: int = 3, seconds: float = 25.0) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    `ratio` is the median over the rounds of a server's step time over that without MLflow.
    `seconds`: of a training, nearly.
    """
    measured: dict[str, list[tuple[float, ...]]] = {}
    wrong: dict[str, int] = {}
    order = random.Random(0)
    with (
        TemporaryDirectory() as folder,
        mlflow_server(Path(folder)) as well,
        proxy(well, delay=DELAY) as slow,
        proxy(well, failing=True) as failing,
    ):
        uris = {"no MLflow": None, "well": well, "slow": slow, "failing": failing}
        uris["down"] = f"http://127.0.0.1:{free_port()}"
        _, [warm, *_] = train(Path(folder) / "warm", 1, 100, None)
        steps = round(1000 * seconds / warm)
        for round_ in range(rounds):
            for name in order.sample(list(uris), len(uris)):
                root, uri = Path(folder) / f"{round_} {name}", uris[name]
                run, times = train(root, round_ + 1, steps, uri)
                shown = "  ".join(f"{ms:.3f}" for ms in times)
                print(f"round {round_ + 1}: {name:12} {shown}", file=sys.stderr)
                measured.setdefault(name, []).append(times)
                if uri:
                    wrong[name] = wrong.get(name, 0) + wrong_points(run, well, steps)
    rows = []
    metrics = {"step": "ms", "mean step": "ms", "mean of all": "ms", "mirror's CPU": "‰"}
    for i, (metric, unit) in enumerate(metrics.items()):
        plain = [times[i] for times in measured["no MLflow"]]
        for name in uris:
            values = [times[i] for times in measured[name]]
            ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
            rows.append(limits.row(name, metric, statistics.median(values), unit, ratio))
    rows += [
        limits.row(name, "lost or doubled", points, "points") for name, points in wrong.items()
    ]
    return {"machine": limits.machine(), "rows": rows}


def train(
    root: Path, seed: int, steps: int, uri: str | None
) -> tuple[RunFolder, tuple[float, ...]]:
    """Train a run; return it and its step times in milliseconds.

    They are the median and the mean of the steps after `STARTED` seconds, and the mean of all; last
    the CPU that this process used after the start, in thousandths of a core.
    """
    config = load_recipe("quickstart", {**SETTINGS, "train.max_steps": steps, "train.seed": seed})
    shards = encode(config, download(config, root=root), root=root)
    run = prepare(config, shards, root=root)
    began, used = time.time(), [0.0]
    clock = Timer(STARTED, lambda: used.append(time.process_time()))
    clock.start()
    with mirror.mirror(run, uri) if uri else nullcontext():
        launch.train(config, shards, root=root)
        cpu = (time.process_time() - used[-1]) / max(time.time() - began - STARTED, 1e-9)
    clock.cancel()
    events = [event for event in run.journal if event["event"] == "step"]
    times = [
        (event["time"] - began, 1000 * config.train.tokens_per_step / event["tok_per_sec"])
        for event in events
    ]
    steady = [ms for at, ms in times if at > STARTED] or [ms for _, ms in times]
    every = statistics.fmean(ms for _, ms in times)
    return run, (statistics.median(steady), statistics.fmean(steady), every, 1000 * cpu)


def wrong_points(run: RunFolder, uri: str, steps: int) -> int:
    """How many points of a run's losses the server lacks, or has twice, after a sync."""
    run_id = mirror.sync(run, tracking_uri=uri)
    history = connect(uri).get_metric_history(run_id, "train_loss")
    recorded = {(e["step"], e["train_loss"]) for e in run.journal if e["event"] == "step"}
    mirrored = {(metric.step, metric.value) for metric in history}
    assert len(recorded) == steps
    return len(recorded ^ mirrored) + len(history) - len(mirrored)


# ---- servers ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server of MLflow's own; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
        *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def proxy(target: str, *, delay: float = 0.0, failing: bool = False) -> Iterator[str]:
    """A proxy that makes a server slow or failing; its address."""
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            fate = next(numbers) % 3 if failing else 0
            time.sleep(delay)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fate == 1:
                self.send_error(500)
                return
            server = http.client.HTTPConnection(target.removeprefix("http://"))
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            server.request(self.command, self.path, body, headers)
            response = server.getresponse()
            answer = response.read()
            if fate == 2:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=25.0, help="of a training, nearly")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("slm").setLevel(logging.ERROR)  # its warnings are expected here
    result = run(arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
