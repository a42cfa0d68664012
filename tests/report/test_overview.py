"""What is above the fold: one plot with the baselines in it, and two samples."""

import re

from slm.records import Evaluation
from slm.report.overview import examples, overview_plot
from slm.report.plots import Curves

EVALUATION = Evaluation(
    key="e" * 64, run="r", checkpoint="c", weights_sha256="w", documents=8, tokens=1000, bytes=4000,
    val_loss=2.0, val_bpb=1.0,
)  # fmt: skip
CURVES = Curves(
    [{"step": i, "tokens": 100.0 * i, "train_loss": 8 / i} for i in range(1, 9)],
    [{"step": 8, "tokens": 800.0, "val_loss": 2.0}],
)


def references(**bpb: float) -> dict[str, object]:
    names = {"xz": "xz -9", "five": "5-gram"}
    rows = [{"name": names.get(k, k), "bpb": v, "is_model": False} for k, v in bpb.items()]
    return {"rows": rows}


def label(plots: list[str]) -> str:
    (plot,) = plots
    match = re.search('aria-label="([^"]*)"', plot)
    assert match
    return match[1]


def test_the_plot_has_the_model_and_the_baselines() -> None:
    compared = references(xz=3.0, unigram=2.0, five=0.5)
    assert label(overview_plot(CURVES, EVALUATION, compared)) == (
        "Bits per byte over tokens: held-out text 1.000, xz -9 3.00, 5-gram 0.50, unigram 2.00."
    )
    assert label(overview_plot(CURVES, EVALUATION, None)).endswith("held-out text 1.000.")


def test_of_baselines_that_are_close_together_one_is_drawn() -> None:
    compared = references(xz=2.05, unigram=2.0, five=0.5)
    assert "unigram" not in overview_plot(CURVES, EVALUATION, compared)[0]
    assert "unigram" in overview_plot(CURVES, EVALUATION, references(xz=3.0, unigram=2.0))[0]


def test_a_run_without_a_journal_has_the_baselines_as_bars() -> None:
    compared = references(xz=3.0, unigram=2.0)
    assert label(overview_plot(Curves(), EVALUATION, compared)) == (
        "Bits per byte: xz -9 3.00, unigram 2.00."
    )
    assert overview_plot(Curves(), EVALUATION, None) == []


def test_the_examples_have_the_same_settings() -> None:
    """Two prompts at three temperatures: those in the middle, whatever they are like."""
    shown = [{"prompt": p, "temperature": t} for t in (0.5, 0.8, 1.0) for p in "ab"]
    assert examples(shown, 2) == [{"prompt": p, "temperature": 0.8} for p in "ab"]
    three = [{"prompt": p, "temperature": t} for t in (0.5, 1.0) for p in "abc"]
    assert examples(three, 3) == [{"prompt": p, "temperature": 1.0} for p in "ab"]
    assert examples(shown[::2], 1) == [{"prompt": "a", "temperature": 0.8}]
    assert examples([], 0) == []
