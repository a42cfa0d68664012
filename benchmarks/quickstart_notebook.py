"""Executes docs/quickstart.ipynb in an empty folder, and keeps its outputs in it: `make notebook`.

Prints the seconds that it took, by cell. Of the report's page, a frame that no website shows, the
Markdown is kept; nothing that names a folder of this machine, and no more than `MAX_BYTES`.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"
MAX_BYTES = 300_000
MAX_CELL_SECONDS = 600
FRAME = "<iframe"
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(tmp|home|root|work|opt|usr|var|mnt|Users)/")
HOMES = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def execute(path: Path, folder: Path) -> dict[str, float]:
    """Run a notebook's cells in a kernel of this Python that works in a folder; keep the outputs.

    Returns the seconds of each cell, by its id. Raises nbclient's CellExecutionError.
    """
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    os.environ.update({name: str(home / name.lower()) for name in HOMES[1:]})
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    began, seconds = 0.0, {}

    def on_start(cell: Any, cell_index: int) -> None:
        nonlocal began
        began = time.monotonic()

    def on_end(cell: Any, cell_index: int, execute_reply: Any) -> None:
        seconds[cell["id"]] = time.monotonic() - began
        print(f"{cell['id']:10} {seconds[cell['id']]:6.1f} s", file=sys.stderr)

    client = NotebookClient(
        notebook,
        timeout=MAX_CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=on_start,
        on_cell_executed=on_end,
    )
    environment = {key: value for key, value in os.environ.items() if key != "SLM_DATA"}
    client.execute(env={**environment, "HOME": str(home), "HF_HUB_OFFLINE": "1"})
    text = as_text(notebook)
    check(text)
    path.write_text(text, encoding="utf-8")
    return seconds


def as_text(notebook: Any) -> str:
    """The notebook's file: without frames, and with nothing of the kernel but its language."""
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.get("text/html", "").startswith(FRAME):
                del data["text/html"]
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def check(text: str) -> None:
    """Raises ValueError for what a notebook that is published must not have."""
    if named := MACHINE_PATH.search(text):
        raise ValueError(f"it names a folder of this machine: {text[named.start() :][:100]!r}")
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"{len(text.encode()):,} bytes with its outputs: {MAX_BYTES:,} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, help="another notebook")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import limits  # which needs PyTorch; the rest does not

    with TemporaryDirectory() as folder:
        seconds = execute(options.notebook, Path(folder))
    rows = [limits.row(cell, "time", spent, "s") for cell, spent in seconds.items()]
    rows.append(limits.row("all cells", "time", sum(seconds.values()), "s"))
    result = {"machine": limits.machine(), "rows": rows}
    if options.json:
        print(json.dumps(result))
    else:
        limits.show(result)


if __name__ == "__main__":
    main()
