"""The drawings of a ladder: bits per byte over compute, by size, with the frontier and its band."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from slm.figures import count
from slm.report.plots import FIRST, INK, MUTED, SECOND, as_svg, blank_axes
from slm.size import MAX_PASSES
from slm.sizing.best import Shape, predicted, trusted
from slm.sizing.law import CONFIDENCE
from slm.sizing.result import FURTHER, LadderResult
from slm.sizing.sentences import headline, sentences

Axis = Literal["flops", "seconds"]
TITLES = {"flops": "FLOPs of a training", "seconds": "seconds on this machine"}
CURVE = 60  # points of a line
MARKS = "osD^vP*X"
SIZE = (4.4, 3.2)  # inches: narrow, so that the letters stay readable on a phone
CSS = Path(__file__).parents[1] / "report" / "page.css"


def cost(shape: Shape, axis: Axis) -> float | None:
    """What a token costs a shape; None where that is not known."""
    if axis == "flops":
        return shape.flops_per_token
    return 1 / shape.tok_per_sec if shape.tok_per_sec else None


def compute_plot(result: LadderResult, axis: Axis) -> str | None:
    """Bits per byte over compute, as an `<svg>`; None where the speeds are not known.

    A mark per run, a thin line per size, the lowest of all sizes as a thick one with its band,
    both up to ten times the compute of the largest run.
    """
    if any(cost(shape, axis) is None for shape in result.shapes):
        return None
    figure, axes = blank_axes(TITLES[axis], "bits per byte, held-out", SIZE)
    axes.set_xscale("log")
    spent = [rung.tokens * _known(rung.shape, axis, result) for rung in result.rungs]
    low, high = min(spent), FURTHER * max(spent)
    _draw_sizes(axes, result, axis, spent)
    xs = np.geomspace(low, high, CURVE)
    values, bands = frontier(result, axis, xs)
    axes.fill_between(xs, bands[0], bands[1], color=SECOND, alpha=0.16, lw=0)
    axes.plot(xs, values, color=SECOND, lw=2, label="best size")
    axes.axvline(max(spent), color=MUTED, lw=1, ls=(0, (4, 3)))
    axes.set_xlim(low / 1.4, high * 1.15)
    axes.minorticks_off()
    figure.legend(
        loc="outside lower left", ncols=5, frameon=False, labelcolor=INK, fontsize=8,
        handletextpad=0.3, columnspacing=1.0,
    )  # fmt: skip
    alt = (
        f"Bits per byte over {TITLES[axis]}: the best size from {values[0]:.3f} to "
        f"{values[-1]:.3f}, of which the last tenfold is extrapolated."
    )
    return as_svg(figure, f"ladder-{axis}", alt)


def _draw_sizes(axes: Any, result: LadderResult, axis: Axis, spent: Sequence[float]) -> None:
    """The runs of each size, and what the law predicts for it."""
    sizes = list(dict.fromkeys(rung.size for rung in result.rungs))
    for number, size in enumerate(sizes):
        chosen = [i for i, rung in enumerate(result.rungs) if rung.size == size]
        shape = result.rungs[chosen[0]].shape
        own = [spent[i] for i in chosen]
        passes = MAX_PASSES * result.unique_tokens * _known(shape, axis, result)
        xs = np.geomspace(min(own), max(max(own), min(FURTHER * max(own), passes)))
        tokens = xs / _known(shape, axis, result)
        n = shape.parameters[result.fit.counted]
        ys = result.fit.law.bpb(n, tokens, result.unique_tokens)
        axes.plot(xs, ys, color=FIRST, lw=1, alpha=0.7)
        axes.plot(
            own,
            [result.rungs[i].val_bpb for i in chosen],
            MARKS[number % len(MARKS)],
            ms=4.5, mfc="none", mec=FIRST, mew=1.2, label=size,
        )  # fmt: skip


def _known(shape: Shape, axis: Axis, result: LadderResult) -> float:
    """What a token of a measured shape costs; the speed is that of the nearest shape considered.

    A run that was trained elsewhere has no speed of its own here.
    """
    known = cost(shape, axis)
    if known is None:
        nearest = min(
            result.shapes, key=lambda s: abs(math.log(s.flops_per_token / shape.flops_per_token))
        )
        known = cost(nearest, axis)
    assert known is not None
    return known


def frontier(result: LadderResult, axis: Axis, xs: Any) -> tuple[Any, Any]:
    """The lowest bits per byte of trusted shapes at each compute, and the band, (2, points)."""
    lowest = []
    for x in xs:
        tokens = np.array([x / _known(shape, axis, result) for shape in result.shapes])
        losses = predicted(result.fit, result.shapes, tokens, result.unique_tokens)
        lowest.append(losses[:, trusted(tokens, result.unique_tokens)].min(1))
    values = np.stack(lowest, 1)  # (1 + resamples, points)
    tail = (1 - CONFIDENCE) / 2
    band = np.quantile(values[1:], (tail, 1 - tail), axis=0)
    return values[0], np.stack([np.minimum(band[0], values[0]), np.maximum(band[1], values[0])])


def residual_plot(result: LadderResult) -> str:
    """How far each run is from the law, over its compute."""
    figure, axes = blank_axes(TITLES["flops"], "measured over fitted, %", SIZE)
    axes.set_xscale("log")
    axes.axhline(0, color=MUTED, lw=1, ls=(0, (4, 3)))
    sizes = list(dict.fromkeys(rung.size for rung in result.rungs))
    pairs = list(zip(result.rungs, result.fit.residuals, strict=True))
    for number, size in enumerate(sizes):
        chosen = [(rung.flops, 100 * math.expm1(r)) for rung, r in pairs if rung.size == size]
        axes.plot(*zip(*chosen, strict=True), MARKS[number % len(MARKS)], ms=4.5, mfc="none",
                  mec=FIRST, mew=1.2)  # fmt: skip
    axes.minorticks_off()
    worst = 100 * max(map(abs, result.fit.residuals))
    return as_svg(figure, "ladder-residuals", f"Runs are at most {worst:.2f} % from the law.")


# ---- files ------------------------------------------------------------------------------------


def standalone(svg: str) -> str:
    """A drawing as a file of its own: with its name space and with the colours of the page."""
    colours = CSS.read_text("utf-8").split("* {")[0]
    style = f"<style>{colours} svg {{ background: var(--page); font-family: sans-serif; }}</style>"
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def page(result: LadderResult) -> str:
    """The page of a ladder: one file, without scripts and without anything from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    plots = [compute_plot(result, "flops"), compute_plot(result, "seconds"), residual_plot(result)]
    return environment.get_template("page.html.j2").render(
        css=Markup(CSS.read_text("utf-8")),
        result=result,
        headline=headline(result),
        sentences=sentences(result),
        plots=[Markup(plot) for plot in plots if plot],
        rungs=[
            (rung, 100 * math.expm1(r))
            for rung, r in zip(result.rungs, result.fit.residuals, strict=True)
        ],
        count=count,
    )
