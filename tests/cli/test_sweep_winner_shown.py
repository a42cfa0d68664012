"""What the terminal shows of a winner."""

from pathlib import Path

import pytest
from swept import run_trials, tiny_sweep

from slm.cli.sweep import promotion
from slm.cli.winner import show_winner
from slm.sweeps.winner import choose

pytestmark = pytest.mark.usefixtures("project")


def test_the_table_marks_what_is_not_distinguishable(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tiny_sweep(trials=5, batch=5, seeds=2)
    scores = [(0.802, 0.81), (0.80, 0.803), (0.95, 0.951), (), (0.93, 0.929)]
    folder = run_trials(data_root, sweep, scores)
    show_winner(folder, choose(folder))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:5]}
    assert list(rows) == ["1", "0", "4", "2"]
    assert [" = " in rows[number] for number in rows] == [False, True, False, False]
    assert "learning_rate=" in rows["1"]
    assert "failed    3" in lines
    assert lines[-1].startswith("best      trial 1: 0.8015 bits per byte (95 %: ")
    assert lines[-1].endswith(", as settings not distinguishable from 1 other: 0")


def test_the_line_of_the_gate_says_what_does_not_count_there() -> None:
    result = {"version": "models:/slm/3", "champion": True, "verdict": "better"}
    assert promotion({**result, "distinguishable": True}) == "models:/slm/3: champion, better"
    doubtful = promotion({**result, "champion": False, "distinguishable": False})
    assert doubtful.startswith("models:/slm/3: refused, better; that the winner is not disting")
