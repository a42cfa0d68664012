"""`slm watch`: what trains, live."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from slm.cli.completion import run_references
from slm.cli.options import REFERENCE, console, show_line
from slm.errors import Interrupted
from slm.figures import count, size
from slm.progress import clock
from slm.registry.opening import open_run
from slm.run_folder import DataRoot
from slm.storage import to_json
from slm.training.observe import RunState, curve, observe
from slm.training.status import last_step

LINE_SECONDS = 10.0  # between two lines of a run, where no live view can be drawn
MIN_CURVE, MAX_CURVE = 8, 60  # characters
BARS = "▁▂▃▄▅▆▇█"

AsJsonLines = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print each entry of the journal, and each change of state, as a line of JSON.",
    ),
]


def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help=f"{REFERENCE} Without it, what is in training now, else the newest run.",
            autocompletion=run_references,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Without RUN: wait for a training that is yet to begin.")
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Follow a training live, in whichever process it is. Ctrl-C ends the watching alone.

    Exits when the training ends: 0, or 1 where it failed.

    Examples: slm watch · slm watch quickstart-3693316e0b15
    """
    passes = observe(open_run(run) if run else None, DataRoot(), wait=wait)
    show_passes = _as_json if as_json else _live if sys.stdout.isatty() else _lines
    try:
        last = show_passes(_noting(passes, noted=run is not None or as_json))
    except KeyboardInterrupt:
        if not as_json:
            show_line("no longer watched; what trains goes on")
        raise typer.Exit(Interrupted.exit_code) from None
    if any(state.state == "failed" for state in last):
        raise typer.Exit(1)


Passes = Iterator[list[RunState]]


def _noting(passes: Passes, *, noted: bool) -> Passes:
    """The passes; first a line where nothing is in training, and the newest run is shown."""
    for states in passes:
        if not noted and all(state.has_ended for state in states):
            show_line("nothing is in training (--wait waits for it); the newest run:")
        noted = True
        yield states


def _as_json(passes: Passes) -> list[RunState]:
    """Print entries and changes of state as lines of JSON; return the last states."""
    before: dict[str, str] = {}
    states: list[RunState] = []
    for states in passes:
        for state in states:
            for entry in state.entries:
                print(to_json({"run": state.run, **entry}, ensure_ascii=False))
            if before.get(state.run) != state.state:
                before[state.run] = state.state
                shown = state.model_dump(exclude={"entries", "losses", "scores"})
                print(to_json({**shown, "sentence": state.sentence}, ensure_ascii=False))
        sys.stdout.flush()
    return states


def _lines(passes: Passes) -> list[RunState]:
    """Print a line of a run at every change of state, and at times."""
    before: dict[str, tuple[str, float]] = {}
    states: list[RunState] = []
    for states in passes:
        for state in states:
            known, printed = before.get(state.run, ("", 0.0))
            due = bool(state.entries) and time.monotonic() - printed > LINE_SECONDS
            if state.state != known or due:
                before[state.run] = state.state, time.monotonic()
                show_line(f"{state.run}  {state.sentence}")
        sys.stdout.flush()
    return states


def _live(passes: Passes) -> list[RunState]:
    """Show the runs in place: one with its curves, several with a line each."""
    states: list[RunState] = []
    screen = console()
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        for states in passes:
            live.update(view(states, screen.width), refresh=True)
    for state in states:
        show_line(f"{state.run}  {state.sentence}")
    return states


def view(states: Sequence[RunState], width: int) -> Group:
    """What a terminal of so many columns shows."""
    lines = (
        _one(states[0], width) if len(states) == 1 else [f"{s.run}  {s.sentence}" for s in states]
    )
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _one(state: RunState, width: int) -> list[str]:
    """A run in a few lines: its step, two curves, rate and memory."""
    doing = reached(state) if state.state == "training" else state.sentence
    lines = [f"{state.run}  {doing}"]
    points = max(MIN_CURVE, min(MAX_CURVE, width - 60))
    if state.train_loss is not None:
        lines.append(f"{'loss':<9} {state.train_loss:<8.3f} {bars(state.losses, points)}")
    if state.val_bpb is not None:
        best = f"  best {state.best_bpb:.3f} at step {state.best_step:,}" if state.best_step else ""
        lines.append(f"{'val_bpb':<9} {state.val_bpb:<8.3f} {bars(state.scores, points)}{best}")
    rest = [f"{state.tok_per_sec:,.0f} tokens/s"] if state.tok_per_sec is not None else []
    rest += [size(state.memory_bytes)] if state.memory_bytes else []
    rest += [f"{count(state.tokens)} tokens"] if state.tokens else []
    return [*lines, f"{'rate':<9} {'  '.join(rest)}"] if rest else lines


def reached(state: RunState) -> str:
    """`step 120 of 400  30%  0:42 left`."""
    last = state.max_steps or state.expected_steps
    parts = [last_step(state.step, state.max_steps, state.expected_steps)]
    parts += [f"{state.step / last:.0%}"] if last else []
    parts += [f"{clock(state.seconds_left)} left"] if state.seconds_left is not None else []
    return "  ".join(parts)


def bars(values: Sequence[float], points: int) -> str:
    """A curve in one line, its lowest value as the lowest bar: (3, 2, 1) is `█▅▁`."""
    means = curve(values, points)
    if not means:
        return ""
    low, high = min(means), max(means)
    top = len(BARS) - 1
    return "".join(BARS[round((v - low) / (high - low) * top) if high > low else 0] for v in means)
