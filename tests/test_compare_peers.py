"""`make compare-peers`: what is made of trainings that were killed, and the page."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from wheels import ROOT

SCRIPT, PAGE = ROOT / "benchmarks" / "compare_peers.py", ROOT / "docs" / "compare-peers.md"
STEPS, EVERY, KILLED_AT = 8, 3, 5


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module("compare_peers")
    monkeypatch.delitem(sys.modules, "compare_peers")
    return module


def lines(steps: Iterable[int], rows: str = "rows of step", shift: float = 0.0) -> list[Any]:
    """What a peer notes at some steps."""
    return [
        {"event": "step", "step": s, "loss": 1 / s + shift, "rows": f"{rows} {s}", "time": 1.0 * s}
        for s in steps
    ]


def training(script: ModuleType, before: list[Any], after: list[Any], **changed: Any) -> Any:
    fields = {"restarted": 1.0, "weights": "a", "val_bpb": 1.0, "sample": "."}
    return script.Training(before=before, after=after, **{**fields, **changed})


@pytest.fixture
def whole(script: ModuleType) -> Any:
    return training(script, [], lines(range(1, STEPS + 1)))


def test_a_resume_that_repeats_the_rest_exactly(script: ModuleType, whole: Any) -> None:
    before = lines(range(1, KILLED_AT + 1))
    after = before + lines(range(EVERY + 1, STEPS + 1))
    resume = script.resume_of(whole, training(script, before, after), KILLED_AT)
    assert (resume.resumed_from, resume.again) == (EVERY, KILLED_AT - EVERY)
    assert (resume.same_losses, resume.compared, resume.largest_difference) == (5, 5, 0.0)
    assert (resume.same_weights, resume.twice, resume.missed) == (True, 0, 0)
    assert resume.seconds_lost == KILLED_AT - 1.0


def test_a_resume_that_draws_its_rows_anew(script: ModuleType, whole: Any) -> None:
    before = lines(range(1, KILLED_AT + 1))
    new = lines(range(EVERY + 1, STEPS + 1), shift=0.25)
    for line in new:
        line["rows"] = f"rows of step {line['step'] - EVERY}"  # from the first on
    resume = script.resume_of(whole, training(script, before, before + new, weights="b"), KILLED_AT)
    assert (resume.same_weights, resume.same_losses, resume.compared) == (False, 0, 5)
    assert resume.largest_difference == pytest.approx(0.25)
    assert (resume.twice, resume.missed) == (3, 3)  # steps 1 to 3 again, 6 to 8 never


def test_a_training_that_begins_anew(script: ModuleType, whole: Any) -> None:
    before = lines(range(1, KILLED_AT + 1))
    began_anew = training(script, before, before + lines(range(1, STEPS + 1)), error="damaged")
    resume = script.resume_of(whole, began_anew, KILLED_AT)
    assert (resume.resumed_from, resume.again, resume.compared) == (0, KILLED_AT, STEPS)
    assert (resume.same_weights, resume.twice, resume.error) == (True, 0, "damaged")


def test_a_journal_that_names_its_start_and_no_rows(script: ModuleType) -> None:
    """Ours: steps repeated are noted once; equal losses at each step show equal rows."""

    def noted(shift: float = 0.0) -> list[Any]:
        steps = lines(range(1, STEPS + 1), shift=shift)
        return [{k: line[k] for k in ("event", "step", "loss", "time")} for line in steps]

    def at(event: str, step: int) -> dict[str, Any]:
        return {"event": event, "step": step, "loss": None, "time": 0.0}

    whole = training(script, [], [at("start", 0), *noted()])
    before = [at("start", 0), *noted()[: KILLED_AT - 1]]
    after = [*before, at("resume", EVERY), *noted()[KILLED_AT - 1 :]]
    resume = script.resume_of(whole, training(script, before, after), KILLED_AT)
    assert (resume.resumed_from, resume.same_losses, resume.compared) == (EVERY, 5, 5)
    assert (resume.twice, resume.missed) == (0, 0)
    others = [*before, at("resume", EVERY), *noted(0.1)[KILLED_AT - 1 :]]
    resume = script.resume_of(whole, training(script, before, others), KILLED_AT)
    assert (resume.twice, resume.missed) == (None, None)


def test_the_table_says_what_was_compared(script: ModuleType, whole: Any) -> None:
    schedule = script.Schedule(steps=STEPS, every=EVERY, kill_at=KILLED_AT, kill_in_save=KILLED_AT)
    before = lines(range(1, KILLED_AT + 1))
    same = training(script, before, before + lines(range(EVERY + 1, STEPS + 1)))
    anew = training(script, before, before + lines(range(1, STEPS + 1)), error="damaged")
    peers = {
        "slm": asdict(script.compare("slm", whole, same, same, schedule)),
        "notebook": asdict(script.compare("notebook", whole, same, anew, schedule)),
    }
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in script.table(peers, asdict(schedule))
    ]
    assert {len(cells) for cells in table} == {3}
    assert table[0][1:] == ["slm", "a notebook's loop"]
    rows = {cells[0]: cells[1:] for cells in table[2:]}
    assert rows["steps after the resume with the same loss"] == ["5 of 5", "5 of 5"]
    assert rows["resumes by itself"] == ["yes", "no"]
    assert rows["from step"] == ["3", "0, once the checkpoint is deleted by hand"]


def test_the_page_is_one_of_the_script(script: ModuleType) -> None:
    check_page(PAGE.read_text("utf-8"), script)


def check_page(text: str, script: ModuleType) -> None:
    assert f"| | {' | '.join(script.TITLES.values())} |" in text
    rows = [line for line in text.splitlines() if "bit for bit" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["**yes**", "**yes**"]
    [by_itself] = [line for line in text.splitlines() if "resumes by itself" in line]
    assert by_itself.split("|")[2].strip() == "yes"
    for named in ("GFLOP/s", "transformers", "accelerate", "make compare-peers"):
        assert named in text
    assert not re.search(r"/(tmp|home|work|root)/", text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_three_are_killed_and_resumed(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    page = tmp_path / "page.md"
    sizes = "--steps 12 --every 4 --kill-at 6 --kill-in-save 8 --threads 1 --documents 400"
    done = subprocess.run(
        [sys.executable, SCRIPT, *sizes.split(), "--json", "--page", page],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    check_page(page.read_text("utf-8"), script)
    assert set(result["peers"]) == set(script.NAMES)
    for name, peer in result["peers"].items():
        assert peer["killed"]["resumed_from"] == 4, name
        assert peer["killed"]["again"] == 2, name
    ours = result["peers"]["slm"]
    for resume in (ours["killed"], ours["in_save"]):
        assert (resume["same_weights"], resume["error"], resume["resumed_from"]) == (True, "", 4)
        assert resume["same_losses"] == resume["compared"] == 8
