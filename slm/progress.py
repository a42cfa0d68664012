"""Progress of long stages: the callback that they report to, and the bar of a notebook."""

import html
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

# Called with (what is being done, how much is done, how much there is or None).
Progress = Callable[[str, float, float | None], None]

UPDATE_SECONDS = 0.2  # between two updates of a notebook's bar


def silent(what: str, done: float, total: float | None) -> None:
    """Show nothing."""


def automatic(what: str, done: float, total: float | None) -> None:
    """Show a bar in a Jupyter kernel, and nothing elsewhere: the default of the library's stages.

    Each cell has one bar, updated in place; a stage that begins later in the cell takes it over.
    """
    if shell := notebook():
        cell = shell.execution_count
        if _bar.get("cell") != cell:
            _bar.clear()
            _bar.update(cell=cell, handle=None, due=0.0)
        now = time.monotonic()
        if now >= _bar["due"] or (total is not None and done >= total):
            _bar["due"] = now + UPDATE_SECONDS
            _show(what, done, total)


def notebook() -> Any:
    """The shell of the Jupyter kernel that this process is; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


_bar: dict[str, Any] = {}  # of the cell that runs: its number, display handle and next update


def _show(what: str, done: float, total: float | None) -> None:
    ipython = import_module("IPython.display")
    value = f' value="{done:g}" max="{total:g}"' if total else ""
    part = f"{done / total:.0%}" if total else f"{done:,.0f}"
    content = ipython.HTML(f"<progress{value}></progress> {part} {html.escape(what)}")
    if _bar["handle"] is None:
        _bar["handle"] = ipython.display(content, display_id=True)
    else:
        _bar["handle"].update(content)
