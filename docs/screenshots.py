"""Make the pictures of the documentation from a real, small run: `make screenshots`.

It starts `slm up` on free ports, runs `quickstart` and a sweep in small, and photographs their
pages with a headless Chromium, light and dark. All of it is on this machine alone. What the data
folder has already is reused.

    python docs/screenshots.py [FOLDER [pages|servers]]   # of the data; default: build/screenshots
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console, RenderableType
from rich.text import Text
from websockets.sync.client import ClientConnection, connect

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
MAX_BYTES = 2_000_000  # all pictures together
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (1280, 800)
SMALL = ("--set", "data.documents=3000", "--set", "train.threads=1")
RUN = ("run", "quickstart", "--set", "train.max_steps=60", *SMALL)
SWEEP = (
    "sweep", "quickstart", "--name", "shown", "--space", "train.learning_rate=log:1e-3:1e-2",
    "--space", "model.n_layer=2,3,4", "--trials", "4", "--set", "train.max_steps=30", *SMALL,
)  # fmt: skip
PATIENCE_SECONDS = 600
WRITE = "document.querySelector('#write')?.click()"  # on the page of `slm serve`
DARK_MLFLOW = """
localStorage.setItem('_mlflow_dark_mode_toggle_enabled', '{}');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""  # without its assistant, which opens by itself once
DARK_PREFECT = "localStorage.setItem('color-scheme', JSON.stringify({} ? 'dark' : 'light'))"
WATCHED = (
    "train", "quickstart", "--name", "watched", "--set", "train.seed=2", "--set",
    "train.max_steps=120", "--set", "train.evaluate_every=10", *SMALL,
)  # fmt: skip
COLUMNS = 80  # of the terminal


class Commands:
    """`slm` on a data folder, and on the servers of `slm up`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.environment = {**os.environ, "SLM_DATA": str(data)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "slm.cli.main", *arguments]

    def slm(self, *arguments: str) -> str:
        """Its output, in which no folder of this machine is."""
        print("slm", *arguments, flush=True)
        done = subprocess.run(
            self.command(*arguments), env=self.environment, text=True, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        for path in (str(self.data), os.path.relpath(self.data)):
            done.stdout = done.stdout.replace(path, "data")
        return done.stdout

    @contextmanager
    def server(self, *arguments: str, ready: Callable[[], bool]) -> Iterator[None]:
        """A server that runs until the end of the block."""
        print("slm", *arguments, flush=True)
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                self.command(*arguments), env=self.environment, stdout=log, stderr=log
            )
            try:
                begin = time.monotonic()
                while not ready():
                    if process.poll() is not None or time.monotonic() - begin > PATIENCE_SECONDS:
                        log.seek(0)
                        sys.exit(f"slm {' '.join(arguments)}: {log.read().decode()[-2000:]}")
                    time.sleep(0.5)
                yield
            finally:
                process.terminate()
                process.wait()


# ---- the browser ------------------------------------------------------------------------------


class Browser:
    """A page of a headless Chromium, driven by its own protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.number = connection, 0

    def send(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.connection.send(json.dumps(message))
        while True:
            answer = json.loads(self.connection.recv())
            if answer.get("id") == self.number:
                return answer.get("result", {})

    def picture(
        self, name: str, address: str, *, wait: float = 1.0, script: str = "", before: str = ""
    ) -> None:
        """Photograph a page in light and in dark.

        Args:
            wait: seconds until the page has drawn itself.
            script: run on the page once it is there; then it is waited again.
            before: run before the page's own, with `true` for dark in the place of `{}`.
        """
        for mode in ("light", "dark"):
            self.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": mode}],
            )
            source = before.replace("{}", str(mode == "dark").lower())
            added = self.send("Page.addScriptToEvaluateOnNewDocument", source=source)
            self.send("Page.navigate", url="about:blank")
            self.send("Page.navigate", url=address)
            time.sleep(wait)
            if script:
                self.send("Runtime.evaluate", expression=script)
                time.sleep(wait)
            shot = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
            self.send("Page.removeScriptToEvaluateOnNewDocument", **added)
            file = IMAGES / f"{name}-{mode}.webp"
            Image.open(io.BytesIO(shot)).convert("RGB").save(file, quality=80, method=6)
            print(f"{file.relative_to(DOCS.parent)}  {file.stat().st_size:,} bytes", flush=True)


def find_browser() -> str:
    """The command of a Chromium; exits with 2 where there is none."""
    names = (os.environ.get("CHROMIUM", ""), *BROWSERS)
    if program := next(filter(None, map(shutil.which, filter(None, names))), None):
        return program
    print(
        f"error: no Chromium: install one ({', '.join(BROWSERS)}), or name it in CHROMIUM",
        file=sys.stderr,
    )
    sys.exit(2)


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
             "--remote-debugging-port=0", f"--user-data-dir={profile}",
             f"--window-size={SIZE[0]},{SIZE[1]}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            note = Path(profile, "DevToolsActivePort")
            while not (note.is_file() and note.read_text()):
                time.sleep(0.1)
            port = note.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = json.load(answer)
            page = next(each for each in pages if each["type"] == "page")
            with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
                opened = Browser(connection)
                opened.send("Page.enable")
                opened.send(
                    "Emulation.setDeviceMetricsOverride", width=SIZE[0], height=SIZE[1],
                    deviceScaleFactor=1, mobile=False,
                )  # fmt: skip
                yield opened
        finally:
            process.terminate()
            process.wait()


# ---- the pictures -----------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def watch(commands: Commands) -> RenderableType:
    """What `slm watch` shows towards the end of a training."""
    from slm.cli.watch import view
    from slm.run_folder import DataRoot
    from slm.training.observe import POLL_SECONDS, observe

    for before in (commands.data / "runs").glob("watched-*"):
        shutil.rmtree(before)  # a finished training shows no progress
    print("slm", *WATCHED, flush=True)
    shown = None
    with subprocess.Popen(
        commands.command(*WATCHED), env=commands.environment, stdout=subprocess.DEVNULL
    ) as training:
        while training.poll() is None:  # a slow machine takes long until it begins
            time.sleep(POLL_SECONDS)
            for states in observe(None, DataRoot(commands.data)):
                if states[0].state == "training" and states[0].step <= 100:
                    shown = view(states, COLUMNS)
    assert shown is not None
    return shown


def terminal(name: str, command: str, output: RenderableType) -> None:
    """A picture of a terminal; its letters are those of the reader's browser."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(output)
    svg = console.export_svg(title="slm", unique_id=name)
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)  # which are on another server
    (IMAGES / f"{name}.svg").write_text(svg.replace("Fira Code", "ui-monospace"), "utf-8")


def last_flow_run(prefect: str) -> str:
    """The page of the flow run that ended last."""
    request = urllib.request.Request(
        f"{prefect}/api/flow_runs/filter",
        json.dumps(
            {
                "sort": "END_TIME_DESC",
                "limit": 1,
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
            }
        ).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        (newest,) = json.load(answer)
    return f"{prefect}/runs/flow-run/{newest['id']}"


def take_pages(commands: Commands, page: Browser) -> None:
    """What needs no servers: the project's own pages, and the terminal."""
    output = commands.slm(*RUN)
    IMAGES.mkdir(exist_ok=True)
    run = run_of(output)
    page.picture("report", (commands.data / "runs" / run / "report/index.html").as_uri())
    commands.slm("report", "--index")
    page.picture("reports", (commands.data / "reports.html").as_uri())
    commands.slm(*SWEEP)
    compared = commands.data / "comparisons" / "shown.html"
    commands.slm("compare", sweep_of(commands).name, "--html", str(compared))
    page.picture("comparison", compared.as_uri())
    port = str(free_port())
    serving = f"http://127.0.0.1:{port}"
    with commands.server("serve", run, "--port", port, ready=lambda: answers(f"{serving}/health")):
        story = "#prompt=Once+upon+a+time&max_tokens=100&seed=1"
        page.picture("serving", f"{serving}/{story}", wait=6, script=WRITE)
    terminal("watch", "slm watch", watch(commands))


def take_servers(commands: Commands, page: Browser) -> None:
    """The pages of Prefect and MLflow, of the same results."""
    prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    ports = [address.rpartition(":")[2] for address in (prefect, mlflow)]
    up = ("up", "--prefect-port", ports[0], "--mlflow-port", ports[1])
    health = (f"{prefect}/api/health", f"{mlflow}/health")
    with commands.server(*up, ready=lambda: all(map(answers, health))):
        commands.environment |= {
            "PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow,
        }  # fmt: skip
        run = run_of(commands.slm(*RUN))
        version = json.loads((commands.data / "runs" / run / "registered.json").read_text())
        models = f"{mlflow}/#/models/{version['model']}/versions/{version['version']}"
        page.picture("prefect", last_flow_run(prefect), wait=8, before=DARK_PREFECT)
        page.picture("mlflow-version", models, wait=8, before=DARK_MLFLOW)
        commands.slm(*SWEEP)
        if coordinates := sweep_page(sweep_of(commands), mlflow):
            page.picture("mlflow-sweep", coordinates, wait=10, before=DARK_MLFLOW)


def run_of(output: str) -> str:
    """The name of the run that `slm run` has printed."""
    return str(re.findall(r"runs/([\w.-]+-[0-9a-f]{12})", output)[-1])


def sweep_of(commands: Commands) -> Path:
    return next((commands.data / "sweeps").glob("shown-*"))


PARTS = {"pages": take_pages, "servers": take_servers}


def sweep_page(sweep: Path, mlflow: str) -> str | None:
    """The address of a sweep's parallel coordinates."""
    from slm.recipes import load_recipe
    from slm.tracking.sweeps import page

    os.environ["MLFLOW_TRACKING_URI"] = mlflow
    return page(sweep, load_recipe("quickstart"))


def main() -> None:
    program = find_browser()
    data = Path(
        sys.argv[1] if len(sys.argv) > 1 else DOCS.parent / "build" / "screenshots"
    ).resolve()
    IMAGES.mkdir(exist_ok=True)
    with browser(program) as page:
        for part in sys.argv[2:] or PARTS:
            PARTS[part](Commands(data), page)
    total = sum(file.stat().st_size for file in IMAGES.iterdir())
    print(f"{total:,} bytes")
    if total > MAX_BYTES:
        sys.exit(f"more than {MAX_BYTES:,} bytes: leave out a picture, or lower the quality")


if __name__ == "__main__":
    main()
