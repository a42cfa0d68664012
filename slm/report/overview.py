"""What a reader sees before scrolling: one plot that has the whole training next to the baselines,
and two samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slm.evaluation.baselines import FIVE_GRAM, UNIGRAM, XZ
from slm.records import Evaluation
from slm.report.plots import (
    FIRST,
    INK,
    MUTED,
    SECOND,
    Curves,
    as_svg,
    blank_axes,
    points,
    reference_plot,
    short,
    thinned,
)

MAX_EXAMPLES = 2  # samples
SIZE = (4.6, 3.1)  # inches
TICKS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10)  # bits per byte
BASELINES = (XZ, FIVE_GRAM, UNIGRAM)  # the first of those that would overlap is drawn
MIN_RATIO = 1.12  # between two labels, so that they do not overlap


def overview_plot(
    curves: Curves, evaluation: Evaluation, references: Mapping[str, Any] | None
) -> list[str]:
    """Bits per byte over the tokens of training, with baselines on the same text as dashed lines.

    The loss in training is known in nats per token alone; it is drawn at the bytes per token of the
    held-out text. A run without a journal has the baselines as bars, or nothing.

    Args:
        references: as of `evidence.references`.
    """
    to_bpb = evaluation.val_bpb / evaluation.val_loss if evaluation.val_loss else 0.0
    tokens, losses = thinned(*points(curves.steps, "tokens", "train_loss"))
    if not losses or not to_bpb > 0:
        return reference_plot(references)
    figure, axes = blank_axes("tokens", "bits per byte: lower is better", SIZE)
    axes.plot(tokens, [loss * to_bpb for loss in losses], color=FIRST, lw=1.6, label="train")
    held_out = points(curves.evaluations, "tokens", "val_loss")
    scores = [loss * to_bpb for loss in held_out[1]]
    axes.plot(held_out[0], scores, color=SECOND, lw=1.6, marker="o", ms=3, label="held-out")
    alt = f"Bits per byte over tokens: held-out text {evaluation.val_bpb:.3f}"
    for name, bpb in _baselines(references):
        axes.axhline(bpb, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            f"{name} {bpb:.2f}", (1, bpb), (0, 2), color=MUTED, fontsize=8, ha="right",
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
        alt += f", {name} {bpb:.2f}"
    _logarithmic(axes)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper center", ncols=2)
    return [as_svg(figure, "overview", f"{alt}.")]


def _baselines(references: Mapping[str, Any] | None) -> list[tuple[str, float]]:
    """Those that are drawn: none so near to another one that their labels overlap."""
    rows = {row["name"]: row["bpb"] for row in references["rows"]} if references else {}
    chosen: list[tuple[str, float]] = []
    for name in BASELINES:
        bpb = rows.get(name, 0.0)
        near = (max(bpb, other) < MIN_RATIO * min(bpb, other) for _, other in chosen)
        if bpb > 0 and not any(near):
            chosen.append((name, bpb))
    return chosen


def _logarithmic(axes: Any) -> None:
    """A logarithmic axis, with as many ticks of round values as are within it."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    high *= 1.15  # room for the legend
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: short(value))


def examples(shown: Sequence[dict[str, Any]], prompts: int) -> list[dict[str, Any]]:
    """Two samples by the same settings, those in the middle of the report's list.

    `shown` has the samples of all prompts by the first settings, then those by the next. Of three
    prompts at temperatures 0.5, 0.8 and 1.0: the first two at 0.8. Of one prompt only one sample.
    """
    if not shown:
        return []
    first = len(shown) // prompts // 2 * prompts
    return list(shown[first : first + min(prompts, MAX_EXAMPLES)])
