"""The held-out curve of a journal, read without parsing every line."""

import json
from pathlib import Path

import pytest
from tiny_run import copy_run

from slm.history.curves import held_out_curve
from slm.report.plots import read_curves
from slm.run_folder import JOURNAL, RunFolder


def test_the_curve_is_that_of_the_report(tmp_path: Path) -> None:
    run = RunFolder(copy_run(tmp_path))
    curve, rows = held_out_curve(run), read_curves(run).evaluations
    assert list(curve.steps) == [row["step"] for row in rows]
    assert list(curve.val_bpb) == [row["val_bpb"] for row in rows]
    assert curve.seconds == pytest.approx([row["seconds"] for row in rows])
    assert run.record is not None
    assert curve.tokens == run.record.tokens
    assert curve.parameters == run.record.parameters


def test_other_lines_than_the_trainers_give_the_same_curve(tmp_path: Path) -> None:
    run = RunFolder(copy_run(tmp_path))
    expected = held_out_curve(run)
    entries = list(run.journal)
    other = [
        dict(sorted(entry.items())) if entry["event"] == "step" else entry for entry in entries
    ]
    (run.path / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in other))
    assert held_out_curve(run) == expected


def test_what_is_torn_or_not_finite_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert held_out_curve(run).val_bpb == ()
    lines = [
        '{"event": "start", "time": 1, "step": 0, "parameters": 7}',
        '{"event": "step", "time": 2, "step": 1, "tok_per_sec": 10.0, "tokens": 100}',
        '{"event": "evaluate", "time": 2, "step": 1, "val_bpb": 2.0}',
        '{"event": "step", "time": 3, "step": 2, "tok_per_sec": null, "tokens": 200}',
        '{"event": "evaluate", "time": 3, "step": 2, "val_bpb": null}',
        '{"event": "evaluate", "time": 4, "st',
    ]
    (tmp_path / JOURNAL).write_text("\n".join(lines))
    curve = held_out_curve(run)
    assert (curve.steps, curve.seconds, curve.val_bpb) == ((1,), (10.0,), (2.0,))
    assert (curve.tokens, curve.parameters) == (200, 7)
