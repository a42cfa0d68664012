"""The journal: no step missing, none doubled, whatever tore it."""

import json
import math
from pathlib import Path

import pytest
from faults import fork, wait

from slm.run_folder import JOURNAL, RunFolder
from slm.training import supervisor
from slm.training.journal import Journal


def steps(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["train_loss"]) for e in RunFolder(run).journal if e["event"] == "step"]


def write(run: Path, first: int, last: int) -> None:
    with Journal(RunFolder(run)) as journal:
        for step in range(first, last + 1):
            journal.write("step", step=step, train_loss=1 / step)


def test_steps_that_are_repeated_are_written_once(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    before = (tmp_path / JOURNAL).read_bytes()
    write(tmp_path, 3, 7)
    assert (tmp_path / JOURNAL).read_bytes().startswith(before)
    assert steps(tmp_path) == [(i, 1 / i) for i in range(1, 8)]


@pytest.mark.parametrize(
    "torn", [b'{"event": "st', b"\0" * 40, b"\0" * 9 + b"\n", b"garbage\n", b"[1]\n", b"\xff\n"]
)
def test_a_torn_end_is_cut_and_written_anew(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, 1, 3)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(torn)
    write(tmp_path, 3, 5)
    assert steps(tmp_path) == [(i, 1 / i) for i in range(1, 6)]


def test_every_length_that_a_kill_may_leave(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    whole = (tmp_path / JOURNAL).read_bytes()
    for length in range(len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:length])
        assert steps(tmp_path) == [(i, 1 / i) for i in range(1, whole[:length].count(b"\n") + 1)]
        write(tmp_path, 1, 3)
        assert steps(tmp_path) == [(i, 1 / i) for i in range(1, 4)]


def test_another_loss_is_logged_once_and_replaces_what_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, 5)
    with Journal(RunFolder(tmp_path)) as journal:
        for step in range(3, 6):
            journal.write("step", step=step, train_loss=2 / step)
    assert steps(tmp_path) == [(1, 1.0), (2, 0.5), (3, 2 / 3), (4, 2 / 4), (5, 2 / 5)]
    assert [e["step"] for e in RunFolder(tmp_path).journal if e["event"] == "diverged"] == [3]
    assert caplog.text.count("another machine") == 1


def test_another_evaluation_leaves_the_line_of_its_step(tmp_path: Path) -> None:
    def train(val_loss: float) -> None:
        with Journal(RunFolder(tmp_path)) as journal:
            for step in range(1, 5):
                journal.write("step", step=step, train_loss=1 / step)
                journal.write("evaluate", step=step, val_loss=val_loss if step == 3 else 1.0)

    train(2.0)
    train(2.5)
    assert steps(tmp_path) == [(i, 1 / i) for i in range(1, 5)]
    scores = [e["val_loss"] for e in RunFolder(tmp_path).journal if e["event"] == "evaluate"]
    assert scores == [1.0, 1.0, 2.5, 1.0]


@pytest.mark.parametrize("fault", ["write:1:kill", "fsync:1:kill", "rename:1:kill"])
def test_a_kill_while_it_is_cut_back_loses_nothing(tmp_path: Path, fault: str) -> None:
    write(tmp_path, 1, 5)

    def diverge() -> None:
        with Journal(RunFolder(tmp_path)) as journal:
            journal.write("step", step=3, train_loss=9.0)

    assert wait(fork(diverge, fault=fault)) < 0
    assert steps(tmp_path) == [(i, 1 / i) for i in range(1, 6)]
    diverge()
    assert steps(tmp_path) == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """JSON has no number for it; other programs read the journal too."""
    with Journal(RunFolder(tmp_path)) as journal:
        journal.write("step", step=1, train_loss=1.0, grad_norm=math.inf, lr=0.5)
    line = json.loads((tmp_path / JOURNAL).read_text(), parse_constant=pytest.fail)
    assert (line["grad_norm"], line["lr"]) == (None, 0.5)


def test_an_older_journal_with_infinity_is_read_and_rewritten(tmp_path: Path) -> None:
    old = {"event": "step", "time": 0.0, "step": 1, "train_loss": 1.0, "grad_norm": math.inf}
    (tmp_path / JOURNAL).write_text(json.dumps(old) + "\n")
    with Journal(RunFolder(tmp_path)) as journal:
        journal.write("step", step=1, train_loss=1.0)
        journal.write("step", step=2, train_loss=0.5)
    with Journal(RunFolder(tmp_path)) as journal:
        journal.write("step", step=2, train_loss=0.25)
    assert steps(tmp_path) == [(1, 1.0), (2, 0.25)]
    assert "Infinity" not in (tmp_path / JOURNAL).read_text()


def test_a_journal_that_is_cut_back_does_not_confuse_its_reader(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    followed = supervisor.follow(path)
    assert next(followed) == []
    write(tmp_path, 1, 3)
    assert [event["step"] for event in next(followed)] == [1, 2, 3]
    path.write_text("".join(json.dumps({"event": "step", "step": i}) + "\n" for i in (1, 2)))
    assert next(followed) == []
    with path.open("a") as file:
        file.write(json.dumps({"event": "step", "step": 9}) + '\n{"event"')
    assert [event["step"] for event in next(followed)] == [9]


def test_only_one_of_several_processes_writes(tmp_path: Path) -> None:
    with Journal(RunFolder(tmp_path), enabled=False) as journal:
        journal.write("step", step=1, train_loss=1.0)
        journal.sync()
    assert not (tmp_path / JOURNAL).exists()
