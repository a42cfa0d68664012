"""Charts of many lines: SVG that stretches with the page, and its numbers as HTML next to it.

So the letters keep their size from a phone to a wide screen, and 200 lines take milliseconds, where
the report's plots take a quarter of a second each. Colours are the page's, by the classes of the
lines. Everything is a function of its arguments: the same runs give the same bytes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from slm.report.plots import short

SIDE = 1000  # units of a chart's width and height
MAX_CHART_POINTS = 12_000  # of all lines of a chart
MIN_LINE_POINTS, MAX_LINE_POINTS = 12, 400
LOG_RATIO = 8  # of the largest to the smallest value, from which an axis is logarithmic
MIN_LABEL_GAP = 0.055  # between two labels, as a share of the height
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high one."""
        if self.is_log:
            low, high, at = (math.log(max(v, 1e-300)) for v in (self.low, self.high, value))
        else:
            low, high, at = self.low, self.high, value
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int) -> list[float]:
        """Round values along the axis, about so many of them."""
        if self.is_log:
            return _log_ticks(self.low, self.high, count)
        rough = (self.high - self.low) / count or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(ticks) <= count + 1:
            return ticks
    return ticks[:: math.ceil(len(ticks) / count)]


def scale_of(values: Sequence[float], *, margin: float = 0.0) -> Scale:
    """The axis of some values; logarithmic where they are positive and far apart."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_RATIO:
        spread = (high / low) ** margin
        return Scale(low / spread, high * spread, is_log=True)
    gap = (high - low) * margin or (abs(high) * 0.05 if high == low else 0.0)
    return Scale(low - gap, high + gap)


@dataclass(frozen=True)
class Line:
    """One line of a chart, or one dot where it has a single point."""

    points: Points
    classes: str  # by which the page colours it
    label: str = ""  # at its end


def thinned(points: Points, most: int) -> Points:
    """At most so many of the points: the first, the last, the lowest, the others evenly spaced."""
    if len(points) <= most:
        return points
    last = len(points) - 1
    kept = {round(i * last / (most - 2)) for i in range(most - 1)}
    kept.add(min(range(len(points)), key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def line_points(lines: int) -> int:
    """How many points a line of a chart may have, where there are so many lines."""
    return max(MIN_LINE_POINTS, min(MAX_LINE_POINTS, MAX_CHART_POINTS // max(1, lines)))


def chart(
    alt: str,
    lines: Sequence[Line],
    x: Scale,
    y: Scale,
    *,
    x_name: str = "",
    x_ticks: Sequence[tuple[float, str]] | None = None,
    format_x: Callable[[float], str] = short,
    tick_count: int = 5,
) -> str:
    """Lines over common axes, as HTML.

    Args:
        alt: what the chart shows, for who does not see it.
        x_ticks: values and texts, for an axis of names; None: round numbers.
        format_x: of a tick's value.
    """
    most = line_points(len(lines))
    paths = [_path(line, thinned(line.points, most), x, y) for line in lines if line.points]
    grid = "".join(
        f'<path class="grid-line" d="M0 {_down(y, tick)}H{SIDE}"/>' for tick in y.ticks(tick_count)
    )
    across = x_ticks or [(tick, format_x(tick)) for tick in x.ticks(tick_count)]
    return (
        f'<div class="chart{" labelled" if any(line.label for line in lines) else ""}">'
        f'<div class="y-ticks" aria-hidden="true">{_y_ticks(y, tick_count)}</div>'
        f'<div class="area"><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(alt, quote=True)}">{grid}{"".join(paths)}</svg>'
        f"{_end_labels(lines, x, y)}</div>"
        f'<div class="x-ticks" aria-hidden="true">{_x_ticks(x, across)}</div>'
        f'<div class="x-name" aria-hidden="true">{escape(x_name)}</div></div>'
    )


def _down(y: Scale, value: float) -> int:
    """From the top, in units; what is far above is cut off not far above."""
    return round(SIDE * (1 - min(1.5, y.place(value))))


def _path(line: Line, points: Points, x: Scale, y: Scale) -> str:
    """`M0 100L500 300`; a single point is a line of no length, whose round ends are a dot."""
    places = [f"{round(SIDE * x.place(a))} {_down(y, b)}" for a, b in points]
    places = list(dict.fromkeys(places))
    drawn = "M" + "L".join(places) + ("h0" if len(places) == 1 else "")
    return f'<path class="{line.classes}" d="{drawn}"/>'


def _y_ticks(y: Scale, count: int) -> str:
    return "".join(
        f'<span style="top:{100 * (1 - y.place(tick)):.1f}%">{tick:.4g}</span>'
        for tick in y.ticks(count)
    )


def _x_ticks(x: Scale, ticks: Sequence[tuple[float, str]]) -> str:
    return "".join(
        f'<span style="left:{100 * x.place(value):.1f}%">{escape(text)}</span>'
        for value, text in ticks
    )


def _end_labels(lines: Sequence[Line], x: Scale, y: Scale) -> str:
    """The labels at the lines' ends; of lines that end together they are moved apart."""
    columns: dict[int, list[tuple[float, Line]]] = defaultdict(list)
    for line in lines:
        if line.label and line.points:
            across, score = line.points[-1]
            down = 1 - min(1.0, max(0.0, y.place(score)))
            columns[round(100 * x.place(across))].append((down, line))
    labels = []
    for left, column in columns.items():
        column.sort(key=lambda end: end[0])
        places = apart([down for down, _ in column])
        labels += [
            f'<span class="end {line.classes}" style="left:{left}%;top:{100 * place:.1f}%" '
            f'aria-hidden="true">{escape(line.label)}</span>'
            for place, (_, line) in zip(places, column, strict=True)
        ]
    return "".join(labels)


def apart(places: Sequence[float]) -> list[float]:
    """Places from 0 to 1, in order, each at least MIN_LABEL_GAP below the one before.

    >>> apart([0.5, 0.5, 0.9])
    [0.5, 0.555, 0.9]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + MIN_LABEL_GAP) if moved else place)
    limit = 1.0
    for i in reversed(range(len(moved))):  # up again from the bottom
        moved[i] = min(moved[i], limit)
        limit = moved[i] - MIN_LABEL_GAP
    return moved
