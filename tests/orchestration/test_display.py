"""What a display shows of stages, and the decorator that makes them."""

import inspect
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slm.orchestration import display
from slm.orchestration.display import Display, current, showing, showing_on, stage
from slm.progress import Progress
from slm.records import Record, Shards, ShardSplit, Source, SourceSplit
from slm.training.status import Status

DONE = Source(key="k", dataset="stories", revision="1", splits={})


def test_a_stage_is_a_line_and_is_remembered() -> None:
    lines: list[str] = []
    shown = Display(lines.append)
    assert shown.stage("download", lambda progress: DONE) is DONE
    shown.stage("encode", lambda progress: DONE.model_copy(update={"reused": True}))
    assert lines[0].split()[:2] == ["download", "done"]
    assert lines[1].split()[:2] == ["encode", "reused"]
    assert list(shown.seconds) == ["download", "encode"]
    assert shown.reused == ["encode"]


def lines_below(record: Record) -> list[str]:
    """The lines that follow the line of the stage."""
    shown: list[str] = []
    Display(shown.append).stage("download", lambda progress: record)
    return shown[1:]


def test_the_documents_and_tokens_of_shards_are_lines() -> None:
    splits = {
        "train": ShardSplit(files=[], documents=2000, tokens=30_000, bytes=0),
        "val": ShardSplit(files=[], documents=1, tokens=9, bytes=0),
    }
    shards = Shards(
        key="k", source_key="s", tokenizer_sha256="t", vocab_size=257, eot=256, splits=splits
    )
    assert lines_below(shards) == [
        "          train   2,000 documents, 30,000 tokens",
        "          val     1 document, 9 tokens",
    ]


def test_the_documents_of_each_split_are_lines_also_of_a_reused_source() -> None:
    def lines(**fields: Any) -> list[str]:
        return lines_below(DONE.model_copy(update=fields))

    train = SourceSplit(files=[], documents=6000, bytes=0)
    val = SourceSplit(files=[], documents=1, bytes=0)
    read = {"origin": {"a.txt": "0", "b.txt": "0"}, "reused": True}
    inputs = {"train": "1 file: a.txt", "val": "1 file: b.txt"}
    assert lines(splits={"train": train, "val": val}, inputs=inputs, **read) == [
        "          train   6,000 documents of 1 file: a.txt",
        "          val     1 document of 1 file: b.txt",
    ]
    assert lines(splits={"train": train}, **read) == [
        "          train   6,000 documents",
        "          val     no split of its own: documents of train are held out",
    ]
    assert lines(splits={"train": train}) == []  # generated: there was nothing to choose


def test_a_failed_stage_leaves_no_line() -> None:
    lines: list[str] = []

    def fail(progress: Progress) -> Source:
        raise ZeroDivisionError

    shown = Display(lines.append)
    with pytest.raises(ZeroDivisionError):
        shown.stage("download", fail)
    assert not lines
    assert not shown.seconds


def test_progress_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    lines: list[str] = []

    def work(progress: Progress) -> Source:
        for step in range(25):
            clock[0] += 1
            progress(f"loss {step}", step, 100)
        progress("never", 1, None)
        return DONE

    Display(lines.append).stage("train", work)
    assert lines[:2] == ["train       9%  loss 9  1:31 left", "train      19%  loss 19  1:21 left"]
    assert len(lines) == 3  # and the stage's own


def test_a_terminal_gets_a_bar() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)

    def work(progress: Progress) -> Source:
        progress("loss 2.5", 30, 100)
        return DONE

    with showing_on(console) as shown:
        shown.stage("train", work)
    assert "loss 2.5" in text.getvalue()
    assert "30%" in text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_time_left_survives_a_narrow_terminal_and_the_bar_goes_first(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("slm.progress.time.monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    bar = display.LiveBar(console)
    progress = bar.begin("train")
    text = "step 1,210 of 12,000  loss 2.312  val_bpb 0.913  6,400 tokens/s  1.2 GB"
    progress(text, 1200, 12_000)  # resumed: what was done before is no speed
    clock[0] += 10
    progress(text, 1210, 12_000)
    with console.capture() as captured:
        console.print(*bar.get_renderables())
    (line,) = captured.get().splitlines()
    assert len(line.rstrip()) <= width
    assert " 10%" in line
    assert "2:59:50 left step 1,210 of 12,000" in line
    assert ("━" in line) == (width >= 120)
    assert ("1.2 GB" in line) == (width == 160)


def test_a_line_off_a_terminal_has_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    status = Status([{"event": "evaluate", "time": 0, "step": 0, "val_bpb": 1.25}])

    def work(progress: Progress) -> Source:
        for step in range(1, 26):
            clock[0] += 1
            status.add(
                {
                    "event": "step", "time": 0, "step": step, "train_loss": 2.0,
                    "tok_per_sec": 1000.0, "memory_bytes": 1_200_000_000,
                }
            )  # fmt: skip
            progress(status.line(100), step, 100)
        return DONE

    Display(lines.append).stage("train", work)
    assert lines[0] == (
        "train      10%  step 10 of 100  loss 2.000  val_bpb 1.250  1,000 tokens/s  1.2 GB  "
        "1:30 left"
    )


def test_loss_and_rate_are_smoothed_without_a_bias_of_the_start() -> None:
    status = Status()
    for step, loss in enumerate([4.0, 2.0] * 100, 1):
        status.add(
            {"event": "step", "time": 0, "step": step, "train_loss": loss, "tok_per_sec": 50.0}
        )
        if step == 1:
            assert status.line(None, 9) == "step 1 of about 9  loss 4.000  50 tokens/s"
    assert abs(status.loss.value - 3.0) < 0.05
    assert status.line(200).startswith("step 200 of 200  loss 2.9")


def test_a_path_is_relative_where_that_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert display.shorten(tmp_path / "a" / "data" / "runs") == "data/runs"
    assert display.shorten(tmp_path / "data") == "../data"
    assert display.shorten(Path("/x")) == "/x"
    assert display.shorten(Path("data")) == "data"


def test_warnings_of_the_library_are_shown() -> None:
    text = io.StringIO()
    with showing_on(Console(file=text, width=200)):
        logging.getLogger("slm.storage").warning("%s quarantined", "data/x")
    assert text.getvalue() == "warning: data/x quarantined\n"
    logging.getLogger("slm.storage").warning("nobody looks")
    assert "nobody" not in text.getvalue()


def test_the_display_in_use() -> None:
    mine = Display(print)
    with showing(mine):
        assert current() is mine
    assert current() is not mine


def test_a_stage_is_called_without_its_progress() -> None:
    @stage("encode", lambda documents: ("counted", f"{documents} documents"))
    def count(progress: Progress, texts: list[str], more: int = 0) -> int:
        """Count documents."""
        progress("counting", 1, None)
        return len(texts) + more

    lines: list[str] = []
    with showing(Display(lines.append)) as shown:
        assert count(["a", "b"], more=1) == 3
    assert lines[0].split()[:4] == ["encode", "counted", "3", "documents"]
    assert list(shown.seconds) == ["encode"]
    assert (count.__name__, count.__doc__) == ("count", "Count documents.")
    assert list(inspect.signature(count).parameters) == ["texts", "more"]
