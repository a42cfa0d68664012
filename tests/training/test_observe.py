"""Trainings seen from outside: by the folder of the run alone, while another process writes it."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import run_folders
from run_folders import finish_run, start_run, write_journal

import slm
from slm.config import PipelineConfig
from slm.run_folder import LOCK, LOG, DataRoot, RunFolder
from slm.storage import lock, lock_of
from slm.training.observe import Observer, being_made, curve, in_training, observe
from slm.training.tail import Tail

CONFIG = run_folders.CONFIG
LIMITED = CONFIG.model_copy(
    update={"train": CONFIG.train.model_copy(update={"max_steps": None, "max_seconds": 60.0})}
)
SECOND = 0.05  # between two looks


def steps(first: int, last: int, ended: float, each: float = 0.5) -> list[dict[str, object]]:
    """A line per step, the last one so many seconds ago; every tenth with a score."""
    entries: list[dict[str, object]] = []
    for step in range(first, last + 1):
        at = time.time() - ended - each * (last - step)
        entries.append({
            "event": "step", "step": step, "time": at, "train_loss": 4 / step, "lr": 1e-3,
            "tok_per_sec": 256.0, "tokens": 128 * step, "memory_bytes": 1_200_000_000,
        })  # fmt: skip
        if step % 10 == 0:
            entries.append({"event": "evaluate", "step": step, "time": at, "val_bpb": 2 / step})
    return entries


def begin(event: str, step: int, ago: float) -> dict[str, object]:
    return {"event": event, "step": step, "time": time.time() - ago}


def age(run: Path, seconds: float) -> None:
    """Let a folder be so many seconds older."""
    for path in (run / "config.json", run / LOG):
        if path.exists():
            os.utime(path, (time.time() - seconds,) * 2)


def state_of(path: Path, *, held: bool) -> Any:
    with lock(path / LOCK) if held else nullcontext():
        return Observer(RunFolder(path)).look()


def test_a_run_in_training_has_figures_and_the_time_left(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 30), *steps(1, 20, ended=0)])
    state = state_of(path, held=True)
    assert (state.state, state.step, state.max_steps, state.tokens) == ("training", 20, 60, 2560)
    assert state.seconds_left == pytest.approx(20, abs=1)  # 40 steps of half a second
    assert (state.val_bpb, state.best_bpb, state.best_step) == (0.1, 0.1, 20)
    assert state.memory_bytes == 1_200_000_000
    assert state.tok_per_sec == pytest.approx(256)
    assert 4 / 20 < state.train_loss < 4 / 5  # smoothed
    assert state.losses[-1] == 4 / 20
    assert state.scores == (0.2, 0.1)
    assert state.sentence.startswith("step 20 of 60  loss ")
    assert state.sentence.endswith(" left")
    assert len(state.entries) == 24


def test_the_time_left_of_a_limit_in_seconds_is_that_of_the_clock(tmp_path: Path) -> None:
    path = start_run(tmp_path, LIMITED)
    plan = run_folders.PLAN.model_copy(update={"cooldown_by_clock": True, "max_steps": 100})
    RunFolder(path).write_plan(plan)
    journal = [{**entry, "seconds": 12.0} for entry in steps(1, 20, ended=0)]
    write_journal(path, [begin("start", 0, 30), *journal])
    state = state_of(path, held=True)
    assert (state.max_steps, state.expected_steps) == (None, 100)
    assert state.seconds_left == pytest.approx(48, abs=1)
    assert "step 20 of about 100" in state.sentence


def test_what_a_resumed_run_repeats_is_no_stall(tmp_path: Path) -> None:
    """The journal has those lines: nothing is written until the first step beyond them."""
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 90), *steps(1, 39, 60), begin("resume", 20, 2)])
    state = state_of(path, held=True)
    assert (state.state, state.step, state.repeats_until) == ("repeating", 20, 39)
    assert "repeats steps 21 to 39" in state.sentence
    assert state.seconds_left == pytest.approx(40 * 0.5 - 2, abs=1)
    write_journal(path, steps(40, 40, ended=0))
    assert state_of(path, held=True).state == "training"


def test_a_run_without_an_entry_for_long_is_stalled_since_then(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 700), *steps(1, 20, ended=600)])
    state = state_of(path, held=True)
    assert state.state == "stalled"
    assert not state.has_ended
    assert state.since == pytest.approx(time.time() - 600, abs=5)
    at = time.strftime("%H:%M:%S", time.localtime(state.since))
    assert f"no entry since {at}" in state.sentence
    assert "10 min" in state.sentence


def test_slow_steps_are_no_stall(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 900), *steps(1, 20, ended=80, each=40)])
    assert state_of(path, held=True).state == "training"


def test_after_the_last_step_the_final_weights_are_scored(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 90), *steps(1, 60, ended=0)])
    assert state_of(path, held=True).state == "scoring"
    finish_run(path)
    state = state_of(path, held=True)
    assert (state.state, state.seconds_left) == ("finished", None)
    assert state.val_bpb == 1 / 60
    assert state.sentence.startswith("finished at step 60: val_bpb 0.017")


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    (path / "metrics.jsonl").unlink()
    assert state_of(path, held=True).state == "starting"
    assert state_of(path, held=False).state == "starting"  # its process is about to be
    age(path, 100)
    state = state_of(path, held=False)
    assert state.state == "not begun"
    assert f"`slm train {path.name}` begins" in state.sentence


def test_a_run_without_a_plan_is_probing_where_seconds_limit_it(tmp_path: Path) -> None:
    path = start_run(tmp_path, LIMITED)
    (path / "metrics.jsonl").unlink()
    (path / "plan.json").unlink()
    assert state_of(path, held=True).state == "probing"


@pytest.mark.parametrize(
    ("log", "state", "message"),
    [
        ("slm ended with 130: stopped after step 20; its checkpoint is saved", "stopped", ""),
        ("slm ended with 1: the loss is not finite", "failed", "the loss is not finite"),
        ("INFO starting", "failed", "as one that is killed"),
        ("Traceback\nRuntimeError: CUDA error", "failed", "RuntimeError: CUDA error"),
        (None, "failed", "as one that is killed"),
    ],
)
def test_a_run_that_no_process_trains_says_how_it_ended(
    tmp_path: Path, log: str | None, state: str, message: str
) -> None:
    path = start_run(tmp_path)
    write_journal(path, [begin("start", 0, 90), *steps(1, 20, ended=60)])
    if log:
        (path / LOG).write_text(f"slm ended with 130: earlier\n{log}\n")
    seen = state_of(path, held=False)
    assert (seen.state, seen.step) == (state, 20)
    assert seen.has_ended
    assert message in seen.message


def test_the_last_words_of_an_earlier_process_are_not_those_of_a_killed_one(
    tmp_path: Path,
) -> None:
    path = start_run(tmp_path)
    (path / LOG).write_text("slm ended with 130: stopped\n")
    age(path, 100)
    write_journal(path, [*steps(1, 20, ended=150), begin("resume", 20, 90), *steps(21, 30, 60)])
    assert state_of(path, held=False).state == "failed"


# ---- while another process writes -------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from slm.run_folder import LOCK, LOG, JOURNAL, RunFolder
from slm.storage import lock
from slm.training.journal import Journal

run = RunFolder(Path(sys.argv[1]))
def step(journal, number, loss):
    journal.write("step", step=number, train_loss=loss, tok_per_sec=100.0)
    time.sleep(0.05)

with lock(run.path / LOCK):
    print("held", flush=True)
    with Journal(run) as journal:
        for number in range(1, 6):
            step(journal, number, 4.0)
    line = '{"event": "step", "step": 6, "time": %r, "train_loss": 4.0, "tok_per_sec": 9.0}'
    line = line % time.time()
    with (run.path / JOURNAL).open("a") as file:  # torn, for a while
        file.write(line[:30])
        file.flush()
        time.sleep(0.2)
        file.write(line[30:] + chr(10))
    with Journal(run) as journal:
        journal.write("resume", step=2)
        step(journal, 3, 4.0)  # repeated exactly: no new line
        step(journal, 4, 5.0)  # otherwise: the lines from there on are forgotten
        step(journal, 5, 5.0)
    (run.path / LOG).write_text("slm ended with 130: stopped after step 5" + chr(10))
"""


def test_a_journal_is_followed_while_another_process_writes_and_forgets(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        states = list(slm.watch(path, seconds=0.01))
    seen = [(e["event"], e.get("step"), e.get("train_loss")) for s in states for e in s.entries]
    assert seen == [
        ("start", None, None),
        *[("step", number, 4.0) for number in range(1, 7)],
        ("resume", 2, None),
        ("diverged", 4, None), ("step", 4, 5.0), ("step", 5, 5.0),
    ]  # fmt: skip
    last = states[-1]
    assert (last.state, last.step, last.losses) == ("stopped", 5, (4.0, 4.0, 4.0, 5.0, 5.0))
    assert last.message == "stopped after step 5"


def test_a_tail_reads_what_is_new_and_notices_what_was_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    tail = Tail(path)
    assert tail.read() == ([], False)
    first, second, third = ({"event": "step", "time": float(n)} for n in range(3))
    text = json.dumps(first) + "\n"
    path.write_text(text + '{"event"')
    assert tail.read() == ([first], False)
    path.write_text(text + json.dumps(second) + "\nnonsense\n")
    assert tail.read() == ([second], False)
    path.write_text(text + json.dumps(third) + "\n")
    assert tail.read() == ([first, third], True)
    path.write_text("")
    assert tail.read() == ([], True)


# ---- a data folder ----------------------------------------------------------------------------


def changed(name: str) -> PipelineConfig:
    return CONFIG.model_copy(update={"recipe": name})


def test_without_a_name_all_that_are_in_training_are_watched(tmp_path: Path) -> None:
    paths = [
        start_run(tmp_path, changed(name), key * 64) for name, key in zip("xyz", "123", strict=True)
    ]
    for path in paths:
        write_journal(path, [begin("start", 0, 30), *steps(1, 5, ended=0)])
        age(path, 100)
    root = DataRoot(tmp_path)
    with lock(paths[0] / LOCK), lock(paths[1] / LOCK):
        assert [run.path for run in in_training(root)] == paths[:2]
        states = next(observe(None, root, seconds=SECOND))
    assert [state.run for state in states] == [path.name for path in paths[:2]]
    assert {state.state for state in states} == {"training"}


def test_without_a_training_the_newest_run_is_shown(tmp_path: Path) -> None:
    old, new = (start_run(tmp_path, changed(n), k * 64) for n, k in ("x1", "y2"))
    for path, ago in ((old, 500.0), (new, 50.0)):
        (path / "metrics.jsonl").unlink()
        write_journal(path, [begin("start", 0, ago)])
        age(path, 100)
    (states,) = observe(None, DataRoot(tmp_path), seconds=SECOND)
    assert [(state.run, state.state) for state in states] == [(new.name, "failed")]
    with pytest.raises(slm.UserError, match="there are none"):
        next(observe(None, DataRoot(tmp_path / "empty"), seconds=SECOND))


@pytest.mark.parametrize(
    ("kind", "word", "sentence"),
    [
        ("tokenizers", "making a vocabulary", "makes a vocabulary, since"),
        ("shards", "encoding", "encodes, since"),
    ],
)
def test_before_a_training_the_data_that_are_made_are_shown(
    tmp_path: Path, kind: str, word: str, sentence: str
) -> None:
    shards = tmp_path / kind / "notes-0123456789ab"
    shards.with_name(f"{shards.name}.tmp").mkdir(parents=True)
    root = DataRoot(tmp_path)
    assert being_made(root) == []  # left by a process that was killed
    with lock(lock_of(shards)):
        watching = observe(None, root, seconds=SECOND)
        (state,) = next(watching)
        assert (state.run, state.state) == ("notes-0123456789ab", word)
        assert sentence in state.sentence
    path = start_run(tmp_path)
    age(path, 100)
    write_journal(path, steps(1, 5, ended=0))
    with lock(path / LOCK):
        ((then,),) = islice(watching, 1)
        with lock(lock_of(shards)):  # of another recipe
            assert next(slm.watch(root=tmp_path, wait=True)).run == path.name
    assert (then.run, then.state) == (path.name, "training")


def test_a_reference_is_that_of_any_command(data_root: Path, tmp_path: Path) -> None:
    path = start_run(data_root)
    finish_run(path)
    for reference in (path.name, path.name[-6:], "latest", str(path), RunFolder(path)):
        (state,) = slm.watch(reference)
        assert (state.run, state.state) == (path.name, "finished")
    with pytest.raises(slm.UserError, match="unknown run 'nothing'"):
        slm.watch("nothing")
    with pytest.raises(slm.UserError, match="seconds=0"):
        slm.watch(path.name, seconds=0)


@pytest.mark.parametrize(
    ("values", "points", "means"),
    [((), 3, ()), ((1.0, 2.0), 3, (1.0, 2.0)), ((1.0, 3.0, 5.0, 7.0), 2, (2.0, 6.0))],
)
def test_a_curve_has_the_means_of_equal_parts(
    values: tuple[float, ...], points: int, means: tuple[float, ...]
) -> None:
    assert curve(values, points) == means
