"""The charts of a comparison: the runs' curves, together and by setting, and scores by setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.comparison.drawing import LOG_RATIO, Line, Scale, chart, scale_of
from slm.comparison.naming import short_names, shown_value
from slm.comparison.results import ComparedRun, Difference, Group, Ranking
from slm.figures import count, counted
from slm.report.plots import short

AXES = {"tokens": 0, "seconds": 1, "FLOPs": 2}  # of a curve → where its points have it
UNITS = {"tokens": "tokens of training", "seconds": "seconds of training", "FLOPs": "FLOPs"}
MAX_OWN_COLOURS = 8  # groups that each have a colour of their own
MAX_PANELS = 6  # values of a setting: with a chart of the curves each
SHOWN = 0.85  # the share of all scores that the curves' axis has; what is above is cut off
MAX_NAME = 10  # characters of a value below an axis
SPREAD = 0.5  # of the width of a value, over which its groups are spread


@dataclass(frozen=True)
class Drawn:
    """A run that is drawn: how its line is coloured, and what is at its end."""

    run: ComparedRun
    classes: str
    label: str = ""

    def points(self, axis: str) -> list[tuple[float, float]]:
        """The run's curve over an axis; none where it is not known."""
        points = ((point[AXES[axis]], point[-1]) for point in self.run.curve)
        return [(x, y) for x, y in points if x]


@dataclass(frozen=True)
class Panels:
    """The charts of one setting."""

    name: str
    by_value: str  # the groups' scores over the setting's values
    curves: list[tuple[str, dict[str, str]]]  # value, axis → chart of the runs of that value


def colours(ranking: Ranking) -> list[str]:
    """The classes of each group: a colour of its own where there are few, else by its standing."""
    own = len(ranking.groups) <= MAX_OWN_COLOURS
    kinds = [standing(group) for group in ranking.groups]
    return [f"g{i} {f'own-{i}' if own else kind}" for i, kind in enumerate(kinds, 1)]


def standing(group: Group) -> str:
    """`best`, `tied` (not distinguishable from it) or `worse`."""
    if group.to_best is None:
        return "best"
    return "worse" if group.is_distinguishable else "tied"


class Charts:
    """The charts of a ranking, all over the same axes.

    Args:
        unranked: runs that are drawn too, as far as they came.
    """

    def __init__(
        self, ranking: Ranking, runs: Mapping[str, ComparedRun], unranked: Sequence[ComparedRun]
    ) -> None:
        self._ranking = ranking
        self._classes = colours(ranking)
        labelled = len(ranking.groups) <= MAX_OWN_COLOURS
        drawn = [Drawn(run, "open") for run in unranked]
        for i in reversed(range(len(ranking.groups))):  # the best last, above the others
            label = str(i + 1) if labelled else ""
            for name in ranking.groups[i].runs:
                drawn.append(Drawn(runs[name], self._classes[i], label))
                label = ""  # one of a group's lines has it
        self.drawn = [each for each in drawn if each.run.curve]
        scores = [point[-1] for each in self.drawn for point in each.run.curve]
        self._y = _curve_scale(scores) if scores else None
        self._x = {
            axis: scale for axis in AXES if (scale := _across(e.points(axis) for e in self.drawn))
        }

    @property
    def axes(self) -> list[str]:
        """What the curves can be drawn over."""
        return list(self._x)

    @property
    def curves(self) -> dict[str, str]:
        """Of each axis the chart of all runs."""
        return self._curves(self.drawn, "Held-out bits per byte in training")

    def _curves(self, drawn: Sequence[Drawn], title: str, *, small: bool = False) -> dict[str, str]:
        if self._y is None or not drawn:
            return {}
        lowest = min(point[-1] for each in drawn for point in each.run.curve)
        number = counted(len(drawn), "run")
        return {
            axis: chart(
                f"{title}, over {axis}: {number}, down to {lowest:.4f}.",
                [
                    Line(each.points(axis), f"c {each.classes}", "" if small else each.label)
                    for each in drawn
                ],
                x,
                self._y,
                x_name="" if small else UNITS[axis],
                format_x=_short_flops if axis == "FLOPs" else short,
                tick_count=3 if small else 5,
            )
            for axis, x in self._x.items()
        }

    def panels(self, settings: Sequence[str]) -> list[Panels]:
        """The charts of each setting in which the groups differ."""
        groups, names = self._ranking.groups, short_names(settings)
        panels = []
        for key in settings:
            values = sorted_values([group.settings.get(key) for group in groups])
            if len(values) < 2:
                continue
            curves = []
            for value in values if len(values) <= MAX_PANELS else []:
                chosen = [e for e in self.drawn if e.run.settings.get(key) == value]
                title = f"{names[key]} = {shown_value(value)}"
                if charts := self._curves(chosen, title, small=True):
                    curves.append((title, charts))
            panels.append(Panels(key, self._by_value(key, names[key], values), curves))
        return panels

    def _by_value(self, key: str, name: str, values: Sequence[Any]) -> str:
        """What each group has above the best, with its interval, over the setting's value."""
        groups = self._ranking.groups
        is_axis = all(map(_is_number, values)) and len(values) > MAX_PANELS
        if is_axis:
            x = scale_of([float(value) for value in values], margin=0.06)
        else:
            x = Scale(-0.5, len(values) - 0.5)
        above = [g.to_best or Difference(difference=0, low=0, high=0) for g in groups]
        ends = [end for each in above for end in each.ends]
        gap = 0.05 * (max(ends) - min(ends)) or 0.001
        lines = []
        for i in reversed(range(len(groups))):
            value: Any = groups[i].settings.get(key)
            (low, high), difference = above[i].ends, above[i].difference
            # Groups of a value are next to each other, by the fractions of the golden ratio.
            aside = SPREAD * ((0.618 * (i + 1)) % 1 - 0.5)
            at = float(value) if is_axis else values.index(value) + aside
            lines.append(Line([(at, low), (at, high)], f"c i {self._classes[i]}"))
            lines.append(Line([(at, difference)], f"c p {self._classes[i]}"))
        best = shown_value(groups[0].settings.get(key))
        return chart(
            f"Bits per byte above the best group over {name}, a dot per group with its interval; "
            f"the best has {name} {best}.",
            lines,
            x,
            Scale(min(ends) - gap, max(ends) + gap),
            x_ticks=None if is_axis else [(i, _cut(shown_value(v))) for i, v in enumerate(values)],
            format_x=lambda value: f"{value:.3g}",
            tick_count=4,
        )


def _cut(text: str) -> str:
    """A name below an axis, where it must not cover the next one."""
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"


def sorted_values(values: Sequence[Any]) -> list[Any]:
    """The values, each once: numbers by size, others by their text."""
    once: list[Any] = []
    for value in values:
        if value not in once:
            once.append(value)
    return sorted(once) if all(map(_is_number, once)) else sorted(once, key=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve_scale(scores: Sequence[float]) -> Scale:
    """From the lowest score to that below which most are: the first scores of a training are far
    above all others.
    """
    ordered = sorted(scores)
    low, high = ordered[0], ordered[math.ceil(SHOWN * len(ordered)) - 1]
    gap = 0.04 * (high - low) or 0.05 * abs(low) or 1.0
    return Scale(low - gap, high + gap)


def _across(curves: Any) -> Scale | None:
    """The axis of some curves; logarithmic where their ends are far apart."""
    known = [points for points in curves if points]
    if not known:
        return None
    ends = [points[-1][0] for points in known]
    if max(ends) > LOG_RATIO * min(ends):
        return scale_of([x for points in known for x, _ in points])
    return Scale(0.0, max(ends))


def _short_flops(value: float) -> str:
    """2e13 is 20T."""
    return count(value).replace(" ", "").replace(".0", "")
