from dataclasses import replace
from pathlib import Path

import pytest

from slm.evaluation.baselines import FIVE_GRAM, XZ, Baseline
from slm.evaluation.text_quality import Quality
from slm.report.summary import (
    Check,
    Finding,
    Searched,
    headline,
    percent,
    quality_checks,
    summarise,
    training_findings,
)
from slm.report.write import escape_markdown

HUMAN = Quality(loops=0.0, repeated=0.02, distinct=0.7, unknown=0.01, likeness=0.05, names=0.6)
REFERENCES = {
    XZ: Baseline(XZ, 2.3, "nothing"),
    FIVE_GRAM: Baseline(FIVE_GRAM, 1.2, "counts of 3,000 of its tokens"),
}
COPIES = [9, 12, 15, 10]


def checks(
    samples: Quality = HUMAN,
    ended: float = 0.5,
    copied: list[int] = COPIES,
    grammar: tuple[float, float] | None = (0.01, 0.005),
) -> list[Check]:
    searched = Searched(9_000, 2_000)
    return quality_checks(samples, HUMAN, (ended, 0.6), (copied, COPIES), grammar, searched)


def falling(*losses: float) -> list[dict[str, float]]:
    return [{"step": 100.0 * (i + 1), "val_loss": loss} for i, loss in enumerate(losses)]


HEALTHY = training_findings(falling(3, 2.5, 2.2, 2.1, 2.09), 500, 2.05, 2.1, 0.9, REFERENCES)


def test_a_healthy_model_is_called_sound() -> None:
    summary = summarise(checks(), HEALTHY, 0.9)
    assert summary.sentence.startswith("A sound model: every check passed")
    assert {finding.level for finding in summary.findings} == {"good"}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"loops": 0.5}, "it loops"),
        ({"repeated": 0.4}, "it repeats itself"),
        ({"distinct": 0.2}, "its words vary little"),
        ({"unknown": 0.2}, "it makes up words"),
        ({"likeness": 0.6}, "its samples are alike"),
    ],
)
def test_samples_far_from_held_out_text_are_called_out(
    changes: dict[str, float], fault: str
) -> None:
    summary = summarise(checks(replace(HUMAN, **changes)), HEALTHY, 0.9)
    assert summary.sentence == f"Not a sound model: {fault}, at 0.900 bits per byte."
    assert summary.findings[0].level == "bad"


def test_a_model_that_recites_its_data_is_called_out() -> None:
    summary = summarise(checks(copied=[90, 14, 120, 77]), HEALTHY, 0.9)
    assert "it copies its training documents" in summary.sentence
    overfitted = training_findings(falling(3, 2, 1.9, 2.2, 2.6), 500, 0.4, 2.6, 1.1, REFERENCES)
    summary = summarise(checks(copied=[90, 14, 120, 77]), overfitted, 1.1)
    faults = "it overfits and it copies its training documents"
    assert summary.sentence == f"Not a sound model: {faults}, at 1.100 bits per byte."


def test_what_came_after_the_checkpoint_is_a_note() -> None:
    curve = falling(1.2, 1.0, 1.15, 1.3)
    summary = summarise(checks(), training_findings(curve, 200, 0.95, 1.0, 0.9, REFERENCES), 0.9)
    assert summary.sentence.startswith("A sound model")
    assert summary.findings[0].level == "note"
    assert "rose by 30 % from step 200 to step 400" in summary.findings[0].text
    at_the_end = summarise(checks(), training_findings(curve, 400, 0.9, 1.3, 0.9, REFERENCES), 0.9)
    assert at_the_end.sentence.startswith("Not a sound model: it overfits")


def test_a_loss_that_still_falls_is_reported_with_its_steps_and_no_advice() -> None:
    """The learning rate falls at the end of every schedule, and the loss with it."""
    curve = [{"step": step, "val_loss": loss} for step, loss in ((10, 3), (50, 2), (79, 1.5))]
    curve += [{"step": 95, "val_loss": 1.4}, {"step": 100, "val_loss": 1.2}]
    (finding,) = training_findings(curve, 100, 1.2, 1.2, 0.9, {})
    assert finding == Finding("note", "Held-out loss still fell by 20 % from step 79 to step 100.")
    (earlier,) = training_findings(curve[:-1], 95, 1.4, 1.4, 0.9, {})
    assert "30 % from step 50 to step 95" in earlier.text


def test_a_model_worse_than_a_file_compressor_is_called_out() -> None:
    (finding,) = training_findings([], 9, 5, 5, 3.0, {XZ: REFERENCES[XZ]})
    assert finding.fault == "it predicts worse than a file compressor"
    assert summarise([], [finding], 3.0).sentence.startswith("Not a sound model: it predicts worse")


@pytest.mark.parametrize(("bpb", "level"), [(0.9, "good"), (1.25, "note"), (1.5, "warn")])
def test_a_model_that_counting_beats_is_called_out(bpb: float, level: str) -> None:
    (finding,) = training_findings([], 9, 2, 2, bpb, {FIVE_GRAM: REFERENCES[FIVE_GRAM]})
    assert finding.level == level
    assert "counts of 3,000 of its tokens" in finding.text
    assert ("counting phrases predicts better" in summarise([], [finding], bpb).sentence) == (
        level == "warn"
    )


def test_what_is_noticeable_is_a_reservation() -> None:
    summary = summarise(checks(replace(HUMAN, loops=0.2, names=0.1)), HEALTHY, 0.9)
    assert summary.sentence == (
        "A model with reservations: it loops and it forgets its characters, at 0.900 bits per byte."
    )


def test_without_samples_or_evaluations_the_loss_decides() -> None:
    assert summarise([], [], 1.5).sentence == "A sound model, by its loss, at 1.500 bits per byte."
    assert training_findings([], 9, 2, 2.1, 1.0, {}) == []


def test_the_worst_comes_first() -> None:
    findings = [Finding("good", "a"), Finding("bad", "b", "x"), Finding("warn", "c", "y")]
    assert [f.level for f in summarise([], findings, 1).findings] == ["bad", "warn", "good"]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.004, "0.4 %"), (0.0999, "10 %"), (0.5, "50 %"), (1, "100 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("ours", "level"), [(0.005, "good"), (0.02, "good"), (0.04, "warn"), (0.2, "bad")]
)
def test_grammar_counts_compared_with_held_out_text(ours: float, level: str) -> None:
    (check,) = [c for c in checks(grammar=(ours, 0.005)) if "grammar" in c.name]
    assert check.level == level
    assert len(checks(grammar=None)) == len(checks()) - 1


def test_the_figures_say_how_much_was_searched() -> None:
    meanings = " ".join(check.meaning for check in checks())
    assert "first 9,000 characters" in meanings
    assert "first 2,000 training tokens" in meanings


def test_texts_without_names_are_not_reported_to_forget_them() -> None:
    named = [c.name for c in checks()]
    assert "names that return" in named
    nobody = checks(replace(HUMAN, names=None))
    assert [c.name for c in nobody] == [name for name in named if name != "names that return"]
    assert summarise(nobody, HEALTHY, 0.9).level == "good"


def test_a_note_is_shown_and_changes_no_level() -> None:
    note = Finding("note", "The previous run: this run is worse.")
    summary = summarise(checks(), [*HEALTHY, note], 0.9)
    assert summary.level == "good"
    assert summary.findings[0] is note
    assert summary.sentence.startswith("A sound model")


def test_the_headline_is_read_from_the_report(tmp_path: Path) -> None:
    sentence = "A model with reservations: it loops & (xz -9) repeats, at 1.234 bits per byte."
    text = f"# quickstart\\_run, step 20\n\n**{escape_markdown(sentence)}**\n\n- **other**\n"
    (tmp_path / "report.md").write_text(text)
    assert headline(tmp_path) == sentence
    (tmp_path / "report.md").write_text("# a report\n")
    assert headline(tmp_path) == ""
