"""Progress of long stages: the callback that they report to, the time left, a notebook's bar."""

import html
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

# Called with (what is being done, how much is done, how much there is or None).
Progress = Callable[[str, float, float | None], None]

UPDATE_SECONDS = 0.2  # between two updates of a notebook's bar


class Pace:
    """Estimates the time left of a task from its progress since the first call.

    So what a resumed training had done before is progress, and no measure of speed.
    """

    def __init__(self) -> None:
        self._task: tuple[float, float, float | None] | None = None  # first time, done, total

    def left(self, done: float, total: float | None) -> float | None:
        """Seconds until the end; None where there is no estimate yet, or nothing left."""
        now = time.monotonic()
        if self._task is None or self._task[2] != total or done < self._task[1]:
            self._task = (now, done, total)
        began, first, _ = self._task
        if total is None or done <= first or done >= total:
            return None
        return (total - done) * (now - began) / (done - first)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours too: 75 → 1:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def share(done: float, total: float | None) -> str:
    """How much is done, as a percentage, or as a count where the end is not known.

    What has only begun has no count: "0 duplicates" would read as a result.
    """
    if total:
        return f"{done / total:.0%}"
    return f"{done:,.0f}" if done else "…"


def silent(what: str, done: float, total: float | None) -> None:
    """Show nothing."""


def automatic(what: str, done: float, total: float | None) -> None:
    """Show a bar in a Jupyter kernel, and nothing elsewhere: the default of the library's stages.

    Each cell has one bar, updated in place; a stage that begins later in the cell takes it over,
    and where the cell ends, it ends.
    """
    if shell := notebook():
        cell = shell.execution_count
        if _bar.get("cell") != cell:
            _bar.clear()
            _bar.update(cell=cell, handle=None, due=0.0, pace=Pace())
            shell.events.register("post_run_cell", _end)
        _bar["last"] = what, done, total
        now, left = time.monotonic(), _bar["pace"].left(done, total)
        if now >= _bar["due"] or (total is not None and done >= total):
            _bar["due"] = now + UPDATE_SECONDS
            _show(what if left is None else f"{what}  {clock(left)} left", done, total)


def notebook() -> Any:
    """The shell of the Jupyter kernel that this process is; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


# Of the cell that runs: its number, display handle, next update, pace, and what was reported last.
_bar: dict[str, Any] = {}


def _end(result: Any) -> None:
    """Fill the bar of a cell that has ended; of one that failed, stop it where it was.

    Else a stage that reports no end would seem to run for ever.
    """
    notebook().events.unregister("post_run_cell", _end)
    what, done, total = _bar["last"]
    if result.success:
        _show(what, 1, 1)
    else:
        _show(what, done, total or max(1, 2 * done))


def _show(what: str, done: float, total: float | None) -> None:
    ipython = import_module("IPython.display")
    value = f' value="{done:g}" max="{total:g}"' if total else ""
    content = ipython.HTML(f"<progress{value}></progress> {share(done, total)} {html.escape(what)}")
    if _bar["handle"] is None:
        _bar["handle"] = ipython.display(content, display_id=True)
    else:
        _bar["handle"].update(content)
