"""`slm watch`: lines, lines of JSON, the view of a terminal, and its exit code."""

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import CONFIG, finish_run, start_run, write_journal

from slm.cli import main
from slm.cli.watch import bars, view
from slm.records import source_bpb
from slm.run_folder import LOCK, LOG, RunFolder
from slm.storage import lock
from slm.training.observe import Observer, RunState

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Invoke]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(data_root: Path) -> Path:
    """A run of 20 steps so far, a second each, whose process ended without a word."""
    path = start_run(data_root)
    now = time.time()
    for step in range(1, 21):
        entry = {
            "event": "step", "step": step, "time": now - 20 + step, "train_loss": 5 - step / 5,
            "tok_per_sec": 128.0, "tokens": 128 * step, "memory_bytes": 1_500_000_000,
        }  # fmt: skip
        write_journal(path, [entry])
    write_journal(path, [{"event": "evaluate", "step": 20, "time": now, "val_bpb": 1.25}])
    return path


def test_a_run_that_failed_is_a_line_and_exits_with_1(run: Path, invoke: Invoke) -> None:
    (run / LOG).write_text("slm ended with 1: the loss is not finite\n")
    for arguments in ((run.name,), ("latest",)):
        code, out, _ = invoke("watch", *arguments)
        assert (code, out) == (1, f"{run.name}  failed at step 20 of 60: the loss is not finite\n")
    code, out, _ = invoke("watch")
    assert out.splitlines()[0] == "nothing is in training (--wait waits for it); the newest run:"
    assert code == 1


def test_a_run_that_was_stopped_names_the_command_that_resumes_it(
    run: Path, invoke: Invoke
) -> None:
    (run / LOG).write_text("slm ended with 130: stopped after step 20\n")
    code, out, _ = invoke("watch", run.name)
    assert code == 0
    assert out.endswith(f"stopped at step 20 of 60: `slm train {run.name}` resumes it\n")


def test_json_has_a_line_per_entry_and_then_the_result(run: Path, invoke: Invoke) -> None:
    finish_run(run)
    code, out, _ = invoke("watch", run.name, "--json")
    assert code == 0
    *entries, result = map(json.loads, out.splitlines())
    assert [each["run"] for each in entries] == [run.name] * 22
    assert [e["step"] for e in entries if e["event"] == "step"] == list(range(1, 21))
    assert (result["state"], result["val_bpb"], result["best_step"]) == ("finished", 1 / 60, 20)
    assert result["sentence"].startswith("finished at step 20: val_bpb 0.017")
    assert "losses" not in result


def test_bad_input_is_one_message(data_root: Path, invoke: Invoke) -> None:
    code, out, err = invoke("watch")
    assert (code, out) == (2, "")
    assert "there are none in" in err
    start_run(data_root)
    code, _, err = invoke("watch", "nothing")
    assert code == 2
    assert "unknown run 'nothing'" in err


def test_ctrl_c_ends_the_watching_alone(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slm.training.observe.time.sleep", interrupt)
    with lock(run / LOCK):
        code, out, _ = invoke("watch", run.name)
        assert RunFolder(run).is_training
    assert code == 130
    first, last = out.splitlines()
    assert re.fullmatch(rf"{run.name}  step 20 of 60  loss .* 1.5 GB  0:\d\d left", first)
    assert last == "no longer watched; the training continues"


# ---- the view of a terminal ------------------------------------------------------------------


def drawn(states: list[RunState], width: int) -> list[str]:
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(view(states, width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_one_run_is_shown_with_its_curves(run: Path, width: int) -> None:
    with lock(run / LOCK):
        state = Observer(RunFolder(run)).look()
    head, loss, score, rate = drawn([state], width)
    assert head.startswith(run.name)
    assert re.match(r"loss      \d\.\d+ +█[▁-█]+▁", loss)
    assert score.startswith("val_bpb   1.250    ▁")
    assert rate.startswith("rate      128 tokens/s  1.5 GB")
    if width == 200:
        assert re.search(r"step 20 of 60  33%  0:\d\d left$", head)
        assert score.endswith("best 1.250 at step 20")
    assert max(map(len, (head, loss, score, rate))) <= width


def test_a_mixture_is_shown_with_each_source(run: Path, invoke: Invoke) -> None:
    now = time.time()
    for step, (code, wiki) in {22: (1.2, 0.9), 24: (1.1, 0.95)}.items():
        by_source = {source_bpb("code"): code, source_bpb("wiki"): wiki}
        entry = {"event": "evaluate", "step": step, "time": now, "val_bpb": 1.0, **by_source}
        write_journal(run, [entry])
    with lock(run / LOCK):
        state = Observer(RunFolder(run)).look()
        _, _, score, *sources, rate = drawn([state], 80)
    assert score.startswith("val_bpb   1.000")
    assert sources == ["  code    1.100    █▁", "  wiki    0.950    ▁█"]
    assert rate.startswith("rate")
    assert "  val_bpb 1.000  128 tokens/s  1.5 GB  (code 1.100, wiki 0.950)  " in state.line
    many = {f"s{i}": 1.0 for i in range(30)}
    curves = {name: (value,) for name, value in many.items()}
    crowded = state.model_copy(update={"source_bpb": many, "source_scores": curves})
    assert "  and 22 more sources" in drawn([crowded], 80)
    finish_run(run)
    code, out, _ = invoke("watch", run.name, "--json")
    shown = json.loads(out.splitlines()[-1])
    assert (code, shown["source_bpb"]) == (0, {"code": 1.1, "wiki": 0.95})
    assert "source_scores" not in shown


def test_how_a_run_ended_is_shown_whole_in_a_narrow_terminal(run: Path) -> None:
    (run / LOG).write_text("slm ended with 130: stopped after step 20\n")
    stopped = Observer(RunFolder(run)).look()
    lines = drawn([stopped], 50)
    assert (
        "".join(lines)
        .replace(" ", "")
        .startswith(f"{run.name}stoppedatstep20of60:`slmtrain{run.name}`resumesit")
    )
    assert max(map(len, lines)) <= 50
    finished = stopped.model_copy(update={"state": "finished", "best_bpb": 1.2, "best_step": 10})
    head, _, score, _ = drawn([finished], 80)
    assert head == f"{run.name}  finished at step 20"
    assert "best 1.200 at step 10" in score  # once, and not in the head too


def test_several_runs_are_a_line_each(run: Path, data_root: Path) -> None:
    other = start_run(data_root, CONFIG.model_copy(update={"recipe": "other"}), "c" * 64)
    states = [Observer(RunFolder(path)).look() for path in (run, other)]
    lines = drawn(states, 100)
    assert [line.split()[0] for line in lines] == [run.name, other.name]


@pytest.mark.parametrize(
    ("values", "shown"), [((3.0, 2.0, 1.0), "█▅▁"), ((2.0, 2.0), "▁▁"), ((), "")]
)
def test_a_curve_is_drawn_between_its_lowest_and_its_highest_value(
    values: tuple[float, ...], shown: str
) -> None:
    assert bars(values, 10) == shown
