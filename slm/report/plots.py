"""The report's plots: inline SVG that takes its colours from the page, so that they suit light and
dark alike. The same data give the same bytes.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean
from typing import Any

from slm.records import Evaluation, Shards
from slm.run_folder import RunFolder

MAX_POINTS = 400  # in one line of a plot
SIZE = (4.4, 2.7)  # inches: narrow, so that the letters stay readable on a phone

# What matplotlib draws in these colours takes the page's own: the names are CSS variables.
_COLOURS = {
    "#010101": "ink",
    "#020202": "muted",
    "#030303": "line",
    "#040404": "first",
    "#050505": "second",
}
INK, MUTED, LINE, FIRST, SECOND = _COLOURS


# ---- the journal ------------------------------------------------------------------------------


@dataclass
class Curves:
    """A training's journal as rows: what was measured at each step, and at each evaluation.

    Every row has `step`, `tokens` and `seconds`, those of evaluations `val_loss` too; a figure that
    was not finite is left out. Seconds are of training alone, summed over the steps' throughput:
    neither evaluations nor the hours after an interruption count.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def train_loss(self, step: int) -> float | None:
        """The mean over the last tenth of the steps up to `step`; None where there are none."""
        losses = [
            row["train_loss"] for row in self.steps if row["step"] <= step and "train_loss" in row
        ]
        return fmean(losses[-max(1, len(losses) // 10) :]) if losses else None


def read_curves(run: RunFolder) -> Curves:
    """The curves of a run's journal."""
    curves, now = Curves(), {"tokens": 0.0, "seconds": 0.0}
    for event in run.journal:
        row = {
            key: float(value)
            for key, value in event.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if event["event"] == "step":
            tokens = row.get("tokens", now["tokens"])
            speed = row.get("tok_per_sec") or math.inf
            seconds = (tokens - now["tokens"]) / speed
            now = {"tokens": tokens, "seconds": now["seconds"] + seconds}
            curves.steps.append(row | now)
        elif event["event"] == "evaluate" and "val_loss" in row:
            curves.evaluations.append(row | now)
    return curves


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS points: the means of equal stretches.

    With MAX_POINTS of 2, [1, 2, 3, 4, 5] becomes [2, 4.5].
    """
    size = -(-len(xs) // MAX_POINTS)  # rounded up
    stretches = range(0, len(xs), max(1, size))
    return (
        [sum(xs[i : i + size]) / len(xs[i : i + size]) for i in stretches],
        [sum(ys[i : i + size]) / len(ys[i : i + size]) for i in stretches],
    )


# ---- the report's plots -----------------------------------------------------------------------


def training_plots(curves: Curves) -> list[str]:
    """Loss over tokens and over seconds, throughput, learning rate; none without a journal."""
    steps, scores = curves.steps, curves.evaluations
    if not steps:
        return []
    drawn = []
    for axis in ("tokens", "seconds"):
        lines = [Line("train", *points(steps, axis, "train_loss"))]
        held_out = Line("held-out", *points(scores, axis, "val_loss"), SECOND, marked=True)
        alt = f"Loss over {axis}: train {_range(lines[0])} nats"
        if held_out.ys:
            lines.append(held_out)
            alt += f", held-out {_range(held_out)}"
        drawn.append(line_plot(f"loss-{axis}", f"{alt}.", axis, "loss, nats per token", lines))
    speed = Line("", *points(steps, "step", "tok_per_sec"))
    if speed.ys:
        alt = f"Throughput: {fmean(speed.ys):,.0f} tokens/s on average."
        drawn.append(line_plot("speed", alt, "step", "tokens/s", [speed]))
    rate = Line("", *points(steps, "step", "lr"))
    alt = f"Learning rate: at most {max(rate.ys):.2g}, {rate.ys[-1]:.2g} at the end."
    return [*drawn, line_plot("rate", alt, "step", "learning rate", [rate])]


def points(rows: Sequence[Mapping[str, float]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Two columns, of the rows that have both figures."""
    points = [(row[x], row[y]) for row in rows if x in row and y in row]
    return [a for a, _ in points], [b for _, b in points]


def _range(line: "Line") -> str:
    return f"from {line.ys[0]:.2f} to {line.ys[-1]:.2f}" if line.ys else "unknown"


def evaluation_plots(evaluation: Evaluation) -> list[str]:
    """Loss by position in the document and by its length, and calibration, where measured."""
    drawn = []
    ranges = evaluation.details.get("by_position") or []
    if len(ranges) > 1:
        bars = {f"{first}" if first == last else f"{first}–": nats for first, last, nats in ranges}
        alt = (
            f"Loss by position in the document: {ranges[0][2]:.2f} nats at the first token, "
            f"{ranges[-1][2]:.2f} from token {ranges[-1][0]} on."
        )
        title = "loss by position in the document, nats per token"
        drawn.append(bar_plot("by-position", alt, "token, from", title, bars))
    lengths = evaluation.details.get("by_length") or []
    if len(lengths) > 1:
        bars = {f"{first}–{last}": bpb for first, last, _, bpb in lengths}
        alt = "Bits per byte by the document's length: " + ", ".join(
            f"{bpb:.2f} at {first} to {last} tokens ({count:,} documents)"
            for first, last, count, bpb in lengths
        )
        title = "bits per byte by the document's length"
        drawn.append(bar_plot("by-length", f"{alt}.", "tokens of the document", title, bars))
    if calibration := evaluation.details.get("calibration"):
        drawn.append(_calibration_plot(calibration))
    return drawn


def _calibration_plot(calibration: Mapping[str, Any]) -> str:
    _, confidence, accuracy = zip(*calibration["bins"], strict=True)
    lines = [
        Line("perfectly calibrated", (0, 1), (0, 1), MUTED),
        Line("most likely token", confidence, accuracy, marked=True),
    ]
    alt = (
        "Calibration: how often the most likely token is right, over the probability that the "
        f"model gives it; off by {100 * calibration['error']:.1f} % on average."
    )
    return line_plot("calibration", alt, "predicted probability", "share that is right", lines)


def reference_plot(references: Mapping[str, Any] | None) -> list[str]:
    """The model among the references by bits per byte, as of `evidence.references`."""
    if references is None:
        return []
    rows = references["rows"]
    figure, axes = blank_axes("", "bits per byte of the same text: lower is better")
    colours = [SECOND if row["is_model"] else FIRST for row in rows]
    bars = axes.barh(range(len(rows)), [row["bpb"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], color=INK)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)
    alt = "Bits per byte: " + ", ".join(f"{row['name']} {row['bpb']:.2f}" for row in rows)
    return [as_svg(figure, "references", f"{alt}.")]


def data_plots(shards: Shards | None) -> list[str]:
    """The documents by their length."""
    if shards is None or not shards.length_histogram:
        return []
    by_length = sorted((int(tokens), count) for tokens, count in shards.length_histogram.items())
    bars = {f"{tokens:,}": float(count) for tokens, count in by_length}
    alt = f"Lengths of {sum(shards.length_histogram.values()):,} documents, in tokens."
    return [bar_plot("lengths", alt, "tokens, at most", "documents by length", bars)]


# ---- plots ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str = FIRST
    marked: bool = False  # a dot at each point


def line_plot(name: str, alt: str, x: str, y: str, lines: Sequence[Line]) -> str:
    """Lines over a common axis. `name` is unique in the page; `alt` describes the plot."""
    figure, axes = blank_axes(x, y)
    for line in lines:
        xs, ys = thinned(line.xs, line.ys)
        marker = "o" if line.marked else None
        axes.plot(xs, ys, color=line.colour, lw=1.6, marker=marker, ms=3, label=line.label)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return as_svg(figure, name, alt)


def bar_plot(name: str, alt: str, x: str, y: str, bars: Mapping[str, float]) -> str:
    """One bar per key, in the given order."""
    figure, axes = blank_axes(x, y)
    axes.bar(range(len(bars)), list(bars.values()), color=FIRST, width=0.8)
    every = max(1, len(bars) // 8)
    places = range(0, len(bars), every)
    axes.set_xticks(list(places), [list(bars)[i] for i in places])
    return as_svg(figure, name, alt)


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = False  # the one that the others are parts of
    faint: bool = False  # it shows nothing


def dot_plot(
    name: str, alt: str, title: str, dots: Sequence[Dot], line: float, marks: Mapping[str, float]
) -> str:
    """A row per value, from top to bottom, over a dashed line.

    `marks`: further values, of the first row, as small crosses with their names in the legend.
    """
    figure, axes = blank_axes("", title, (SIZE[0], 0.9 + 0.24 * len(dots)))
    axes.axvline(line, color=MUTED, lw=1, ls=(0, (4, 3)))
    for row, dot in enumerate(dots):
        colour = MUTED if dot.faint else SECOND if dot.strong else FIRST
        axes.plot([dot.low, dot.high], [row, row], color=colour, lw=1.6, solid_capstyle="butt")
        face = "none" if dot.faint else colour
        axes.plot([dot.value], [row], "o", ms=5, mec=colour, mfc=face, mew=1.2)
    for shape, (label, value) in zip("x+1234", marks.items(), strict=False):
        axes.plot([value], [0], shape, ms=6, mew=1.4, color=INK, label=label)
    if marks:
        figure.legend(
            loc="outside lower left", ncols=3, frameon=False, labelcolor=INK, fontsize=8,
            handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
    axes.set_yticks(range(len(dots)), [dot.name for dot in dots], color=INK)
    axes.set_ylim(len(dots) - 0.5, -0.5)
    lowest = min([line, *(dot.low for dot in dots), *marks.values()])
    axes.set_xlim(max(0, lowest - 5), 102)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=LINE, lw=0.8)
    return as_svg(figure, name, alt)


def blank_axes(x: str, y: str, size: tuple[float, float] = SIZE) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    figure.patch.set_alpha(0)
    axes.set_xlabel(x, color=MUTED, fontsize=8)
    axes.set_title(y, color=INK, fontsize=9, loc="left")
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    return figure, axes


def as_svg(figure: Any, name: str, alt: str) -> str:
    """The figure as an `<svg>` element for a page."""
    import matplotlib

    settings = {"svg.hashsalt": name, "svg.fonttype": "none", "svg.id": name}
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;]*; |transform=\"rotate\(-0 [^)]*\)\"", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    label = escape(alt, quote=True)
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)
    return re.sub(r"<svg", f'<svg class="plot" role="img" aria-label="{label}"', svg, count=1)


def short(number: float) -> str:
    """Three digits and a letter: 3.28M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
