"""`slm watch`: what trains, live."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from slm.cli.completion import run_references
from slm.cli.options import REFERENCE, console, show_line
from slm.errors import Interrupted
from slm.figures import count, size
from slm.progress import clock
from slm.run_folder import DataRoot, RunFolder
from slm.storage import to_json
from slm.training.observe import RunState, curve, observe
from slm.training.status import last_step

if TYPE_CHECKING:
    from slm.sweeps.folder import SweepFolder
    from slm.sweeps.records import Trial
    from slm.sweeps.watch import SweepState

LINE_SECONDS = 10.0  # between two lines of a run, where no live view can be drawn
MIN_CURVE, MAX_CURVE = 8, 60  # characters
MAX_SOURCES = 8  # of a mixture, with a curve each
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
            metavar="RUN|SWEEP",
            help=f"{REFERENCE} Or a sweep. Without it, what is in training now, else the newest "
            "run.",
            autocompletion=run_references,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Without RUN: wait for a training that is yet to begin.")
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Follow a training or a sweep live, in whichever process it is.

    Exits when it ends: 0, or 1 where a training failed. Ctrl-C ends the watching alone.

    Examples: slm watch · slm watch quickstart-3693316e0b15
    """
    from slm.sweeps.stop import run_or_sweep

    given = run_or_sweep(run) if run else None
    show_passes = _as_json if as_json else _live if sys.stdout.isatty() else _lines
    try:
        if given is not None and not isinstance(given, RunFolder):
            _show_sweep(given, as_json)
            return
        passes = observe(given, DataRoot(), wait=wait)
        last = show_passes(_noting(passes, noted=run is not None or as_json))
    except KeyboardInterrupt:
        if not as_json:
            show_line("no longer watched; the training continues")
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
                shown = state.model_dump(exclude={"entries", "losses", "scores", "source_scores"})
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
    """What a terminal of so many columns shows; of one run, how it ended is never cut."""
    if len(states) > 1:
        lines = [f"{s.run}  {s.sentence}" for s in states]
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))
    head, *rest = _one(states[0], width)
    wraps = states[0].state != "training"
    first = Text(head, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    return Group(first, *(Text(line, no_wrap=True, overflow="ellipsis") for line in rest))


def _one(state: RunState, width: int) -> list[str]:
    """A run in a few lines: its step, its curves, rate and memory."""
    doing = {
        "training": reached(state),
        "finished": f"finished at step {state.step:,}",  # its scores are below
    }.get(state.state, state.sentence)
    lines = [f"{state.run}  {doing}"]
    points = max(MIN_CURVE, min(MAX_CURVE, width - 60))
    if state.train_loss is not None:
        lines.append(f"{'loss':<9} {state.train_loss:<8.3f} {bars(state.losses, points)}")
    if state.val_bpb is not None:
        best = f"  best {state.best_bpb:.3f} at step {state.best_step:,}" if state.best_step else ""
        lines.append(f"{'val_bpb':<9} {state.val_bpb:<8.3f} {bars(state.scores, points)}{best}")
    for name, values in list(state.source_scores.items())[:MAX_SOURCES]:
        lines.append(f"  {name:<7} {state.source_bpb[name]:<8.3f} {bars(values, points)}")
    if (more := len(state.source_scores) - MAX_SOURCES) > 0:
        lines.append(f"  and {more} more sources")
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


# ---- a sweep ----------------------------------------------------------------------------------


def _show_sweep(folder: "SweepFolder", as_json: bool) -> None:
    from slm.sweeps.watch import observe_sweep

    states = observe_sweep(folder)
    if as_json:
        _sweep_as_json(states)
    elif sys.stdout.isatty():
        _sweep_live(states)
    else:
        _sweep_lines(states)


def _sweep_as_json(states: "Iterator[SweepState]") -> None:
    """A line of JSON per trial, and one per change of the sweep."""
    before = None
    for state in states:
        for trial in state.trials:
            shown = {**trial.model_dump(mode="json"), "state": trial.state}
            print(to_json({"sweep": state.sweep, "trial": shown, "val_bpb": trial.val_bpb}))
        seen = state.state, [run.run for run in state.running], state.done
        if seen != before:
            before = seen
            shown = state.model_dump(mode="json", exclude={"trials", "running"})
            running = [run.run for run in state.running]
            print(to_json({**shown, "running": running, "sentence": state.sentence}))
        sys.stdout.flush()


def _sweep_lines(states: "Iterator[SweepState]") -> None:
    before = None
    for state in states:
        for trial in state.trials:
            show_line(trial_line(trial))
        if state.trials or state.state != before:
            before = state.state
            show_line(f"{state.sweep}  {state.sentence}")
        sys.stdout.flush()


def _sweep_live(states: "Iterator[SweepState]") -> None:
    screen = console()
    last = None
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        for last in states:
            for trial in last.trials:
                live.console.print(trial_line(trial), soft_wrap=True)
            lines = [f"{last.sweep}  {last.sentence}"]
            lines += [f"  {run.run}  {run.sentence}" for run in last.running]
            shown = (Text(line, no_wrap=True, overflow="ellipsis") for line in lines)
            live.update(Group(*shown), refresh=True)
    if last:
        show_line(f"{last.sweep}  {last.sentence}")


def trial_line(trial: "Trial") -> str:
    """`trial 7  val_bpb 0.9131  12.3 s  train.learning_rate=0.0031`."""
    came = trial.reason if trial.val_bpb is None else f"val_bpb {trial.val_bpb:.4f}"
    values = "  ".join(f"{name}={value}" for name, value in trial.values.items())
    return f"trial {trial.number}  {came}  {trial.seconds:.1f} s  {values}"
