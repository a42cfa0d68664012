"""What is shown while stages run: a live bar on a terminal or in a notebook, elsewhere lines."""

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, SpinnerColumn, Task
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from slm.progress import Pace, Progress, automatic, clock, notebook, share
from slm.records import Record, Shards, ShardsPart, Source, Version

LINE_SECONDS = 10.0  # between two progress lines, where there is no live bar
BAR_WIDTH = 20
MIN_WIDTH_FOR_BAR, MIN_WIDTH_FOR_ELAPSED = 120, 90  # characters of the terminal

logger = logging.getLogger("slm.stages")  # below `slm`, so that its lines reach the Prefect page
P = ParamSpec("P")
R = TypeVar("R")


def outcome_of_record(record: Record) -> tuple[str, str]:
    """What the line of a stage shows of its record: whether it was reused, and its place."""
    word = "pulled" if record.pulled else "reused" if record.reused else "done"
    if isinstance(record, Version):
        aliases = f" ({', '.join(record.aliases)})" if record.aliases else ""
        return word, f"{record.uri}{aliases}"
    return word, shorten(record.path)


def details(result: object) -> list[str]:
    """The lines below a stage's own: how much of a dataset or of shards is train, and is val."""
    if isinstance(result, Shards) and result.parts:
        return [_of_part(name, part) for name, part in result.parts.items()]
    if isinstance(result, Shards):
        return [
            f"{split:<7} {_documents(part.documents)}, {part.tokens:,} tokens"
            for split, part in result.splits.items()
        ]
    if not isinstance(result, Source) or not result.origin:  # generated: there was no choice
        return []
    lines = []
    for split, part in result.splits.items():
        of = f" of {result.inputs[split]}" if split in result.inputs else ""
        lines.append(f"{split:<7} {_documents(part.documents)}{of}")
    if "val" not in result.splits:
        lines.append(f"{'val':<7} no split of its own: documents of train are held out")
    return lines


def _of_part(name: str, part: ShardsPart) -> str:
    """What of one source of a mixture is trained on, held out, and left out."""
    left_out = "".join(f"; {count:,} left out: {why}" for why, count in part.excluded.items())
    return (
        f"{name:<7} {_documents(part.train.documents)}, {part.train.tokens:,} tokens, "
        f"{part.val.documents:,} held out{left_out}"
    )


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


class Display:
    """Runs stages, shows their progress, and keeps how long each took and which were reused.

    Args:
        write: takes one finished line.
        console: where a live bar may be drawn; without one, progress comes as lines.
    """

    def __init__(self, write: Callable[[str], None], console: Console | None = None) -> None:
        self.write = write
        self.console = console
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.pulled: list[str] = []  # of them, those that came from a store

    def stage(
        self,
        name: str,
        work: Callable[[Progress], R],
        outcome: Callable[[Any], tuple[str, str]] = outcome_of_record,
    ) -> R:
        """The result of `work`, which is passed the progress callback; timed, and shown as a line.

        `outcome`: the word and the text that the line shows of the result.
        """
        started = time.monotonic()
        with self.progress(name) as progress:
            result = work(progress)
        seconds = time.monotonic() - started
        # A stage may run several times: for each source of a mixture, and for all of them.
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)
        for names, holds in ((self.reused, "reused"), (self.pulled, "pulled")):
            _keep(names, name, isinstance(result, Record) and getattr(result, holds))
        word, text = outcome(result)
        self.write(f"{name:<9} {word:<7} {text}   {seconds:.1f} s")
        for line in details(result):
            self.write(f"{'':<9} {line}")
        return result

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        """The callback that shows the progress of what runs inside."""
        if self.console is None or not self.console.is_terminal:
            yield automatic if notebook() else _lines(name, self.write)
            return
        with LiveBar(self.console) as bar:
            yield bar.begin(name)


def _keep(names: list[str], name: str, holds: bool) -> None:
    """Have a name in a list as what its last result says."""
    if holds and name not in names:
        names.append(name)
    elif not holds and name in names:
        names.remove(name)


class LiveBar(Bar):
    """A line on a terminal, which always has the share and the time left.

    Where the terminal is narrow, at this moment, the bar goes first, then the time so far, then the
    end of the text.
    """

    def __init__(self, console: Console) -> None:
        self.spinner = SpinnerColumn()
        super().__init__(console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self._line(task, self.console.width)

    def _line(self, task: Task, width: int) -> Table:
        parts: list[RenderableType] = [self.spinner(task), f"{task.fields['stage']:<9}"]
        if width >= MIN_WIDTH_FOR_BAR:
            parts.append(BarColumn(bar_width=BAR_WIDTH)(task))
        parts.append(f"{task.fields['share']:>4}")
        if width >= MIN_WIDTH_FOR_ELAPSED:
            parts.append(f"{clock(task.elapsed or 0):>5}")
        parts.append(f"{task.fields['left']:>10}")
        used = sum(Measurement.get(self.console, self.console.options, p).maximum for p in parts)
        text = Text(task.description, no_wrap=True)
        text.truncate(max(0, width - used - len(parts)), overflow="ellipsis")
        line = Table.grid(*[Column(no_wrap=True) for _ in (*parts, text)], padding=(0, 1))
        line.add_row(*parts, text)
        return line

    def begin(self, name: str) -> Progress:
        """The callback that shows the progress of a stage in this line."""
        row = self.add_task("", total=None, stage=name, share="", left="")
        pace = Pace()

        def progress(what: str, done: float, total: float | None) -> None:
            seconds = pace.left(done, total)
            left = "" if seconds is None else f"{clock(seconds)} left"
            shown: dict[str, Any] = {"share": share(done, total) if done or total else ""}
            self.update(row, completed=done, total=total, description=what, left=left, **shown)

        return progress


def _lines(name: str, write: Callable[[str], None]) -> Progress:
    """A progress callback that writes a line every `LINE_SECONDS`."""
    last, pace = time.monotonic(), Pace()

    def progress(what: str, done: float, total: float | None) -> None:
        nonlocal last
        left = pace.left(done, total)
        if time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        ending = "" if left is None else f"  {clock(left)} left"
        write(f"{name:<9} {share(done, total):>4}  {what}{ending}")

    return progress


def shorten(path: Path) -> str:
    """A path as a person in the working folder would type it, where that is shorter."""
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len) if path.is_absolute() else str(path)


# ---- the display in use -----------------------------------------------------------------------

_current: ContextVar[Display | None] = ContextVar("display", default=None)


def current() -> Display:
    """The display that is in use, else a new one that writes to the log."""
    return _current.get() or Display(logger.info)


def stage(
    name: str, outcome: Callable[[Any], tuple[str, str]] = outcome_of_record
) -> Callable[[Callable[Concatenate[Progress, P], R]], Callable[P, R]]:
    """Make a function a stage: the display in use runs it and passes its progress callback first.

    >>> @stage("encode")
    ... def encode(progress: Progress, config: PipelineConfig, source: Source) -> Shards: ...
    >>> shards = encode(config, source)

    `outcome`: the word and the text that its line shows of its result.
    """

    def decorate(work: Callable[Concatenate[Progress, P], R]) -> Callable[P, R]:
        @functools.wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return current().stage(name, lambda p: work(p, *args, **kwargs), outcome)

        signature = inspect.signature(work)
        _, *parameters = signature.parameters.values()
        vars(call)["__signature__"] = signature.replace(parameters=parameters)
        return call

    return decorate


@contextmanager
def showing(display: Display) -> Iterator[Display]:
    """Make a display the one in use."""
    token = _current.set(display)
    try:
        yield display
    finally:
        _current.reset(token)


@contextmanager
def showing_on(console: Console) -> Iterator[Display]:
    """Show the stages that run inside on `console`, and the library's warnings."""

    def write(line: str) -> None:
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

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
