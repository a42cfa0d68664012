"""What a person sees while stages run: a live bar on a terminal, now and then a line elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from slm.records import Progress, Record, Version

LINE_SECONDS = 10.0  # between two progress lines, where there is no live bar

logger = logging.getLogger("slm.stages")  # below `slm`, so that its lines reach the Prefect page
R = TypeVar("R", bound=Record)


class Display:
    """Runs stages, shows how they go, and remembers how long each took and which were reused.

    Args:
        write: takes one finished line.
        console: where a live bar may be drawn; without one, progress comes as lines.
    """

    def __init__(self, write: Callable[[str], None], console: Console | None = None) -> None:
        self.write = write
        self.console = console
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []

    def stage(self, name: str, work: Callable[[Progress], R]) -> R:
        """The record that `work` returns; it is given the progress callback to report to."""
        started = time.monotonic()
        with self.progress(name) as progress:
            record = work(progress)
        self.seconds[name] = round(time.monotonic() - started, 3)
        if record.reused:
            self.reused.append(name)
        word = "reused" if record.reused else "done"
        self.write(f"{name:<9} {word:<7} {_place(record)}   {self.seconds[name]:.1f} s")
        return record

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        if self.console is None or not self.console.is_terminal:
            yield _lines(name, self.write)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<9}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Bar(*columns, console=self.console, transient=True) as bar:
            row = bar.add_task("", total=None, stage=name)
            yield lambda what, done, total: bar.update(
                row, description=what, completed=done, total=total
            )


def _lines(name: str, write: Callable[[str], None]) -> Progress:
    """A progress callback that writes a line every `LINE_SECONDS`."""
    last = time.monotonic()

    def progress(what: str, done: float, total: float | None) -> None:
        nonlocal last
        if time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        part = f"{done / total:4.0%}" if total else f"{done:,.0f}"
        write(f"{name:<9} {part}  {what}")

    return progress


def _place(record: Record) -> str:
    if isinstance(record, Version):
        aliases = f" ({', '.join(record.aliases)})" if record.aliases else ""
        return f"{record.uri}{aliases}"
    return shorten(record.path)


def shorten(path: Path) -> str:
    """A path as a person in the working folder would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# ---- the display in use -----------------------------------------------------------------------

_current: ContextVar[Display | None] = ContextVar("display", default=None)


def current() -> Display:
    """The display that is in use, else a new one that writes to the log."""
    return _current.get() or Display(logger.info)


@contextmanager
def showing(display: Display) -> Iterator[Display]:
    """Makes a display the one in use."""
    token = _current.set(display)
    try:
        yield display
    finally:
        _current.reset(token)


@contextmanager
def showing_on(console: Console) -> Iterator[Display]:
    """Shows the stages that run inside on `console`, and the library's warnings with them."""

    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    warnings = _Warnings(write)
    library = logging.getLogger("slm")
    library.addHandler(warnings)
    try:
        with showing(Display(write, console)) as display:
            yield display
    finally:
        library.removeHandler(warnings)


class _Warnings(logging.Handler):
    """Writes the library's warnings as lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        self.write(f"{record.levelname.lower()}: {record.getMessage()}")
