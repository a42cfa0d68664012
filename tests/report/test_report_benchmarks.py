"""Benchmarks in the report, the model card and what else lists a run's results."""

import json
import re
from pathlib import Path

import pytest
from scored import add_scores, task_of
from tiny_run import copy_run, shards_of
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config import PipelineConfig
from slm.evaluation.benchmark.items import Task
from slm.records import Benchmarks, Evaluation, Run, TaskScore
from slm.report.benchmarks import findings, tasks
from slm.report.identity import report_folder, report_key
from slm.report.write import write_report
from slm.run_folder import RunFolder

SHORT = {"prompts": ("Once",), "temperatures": (0.8,), "top_ks": (10,), "max_new_tokens": 4}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(copy_run(tmp_path / "data"))


def parts(run: RunFolder) -> tuple[PipelineConfig, Run, Evaluation]:
    """What a short report is written from."""
    record, evaluation = run.record, run.evaluation
    assert record
    assert evaluation
    report = run.config.report.model_copy(update=SHORT)
    return run.config.model_copy(update={"report": report}), record, evaluation


def score(accuracy: float, stderr: float, name: str = "t", chance: float = 0.5) -> TaskScore:
    return TaskScore(
        name=name, kind="minimal_pairs", source=name, sha256="a" * 64, items=1000,
        accuracy=accuracy, stderr=stderr, chance=chance,
        distinguishable=abs(accuracy - chance) > 2 * stderr,
    )  # fmt: skip


def of(*scores: TaskScore) -> Benchmarks:
    return Benchmarks(key="b" * 64, run="r", checkpoint="c", weights_sha256="w", tasks=scores)


def test_a_page_shows_each_paradigm_next_to_chance(run: RunFolder) -> None:
    config, record, evaluation = parts(run)
    right = [number % 2 == 0 or number < 100 for number in range(200)]  # all; half
    add_scores(record, task_of(200, source="<b>"), right)
    benchmarks = run.benchmarks_of(evaluation.weights_sha256)
    report = write_report(config, record, evaluation, shards_of(record), benchmarks)
    page = (report.path / "index.html").read_text()
    assert '<h2 id="benchmarks">Benchmarks</h2>' in page
    assert "pairs: 75.0 % right, above chance" in page
    assert "200 minimal pairs, of which guessing has 50.0 % right" in page
    assert re.search(r"100 items, not distinguishable from chance.*?50\.0 %", page)
    assert 'aria-label="Accuracy on pairs, chance 50.0 %: all 75.0 %, agreement 100.0 %' in page
    assert "pronoun &lt;case&gt;" in page
    assert "<case>" not in page
    assert "Benchmark pairs: 75.0 % right (95 %: 70.1 % to 79.9 %), above chance." in page
    for name in ("report.md", "README.md"):
        text = (report.path / name).read_text()
        assert "| pairs | 75.0 % | 70.1 % to 79.9 % | 50.0 % | above chance |" in text
        assert "| 100 | 50.0 % |" in text
    card = (report.path / "README.md").read_text()
    assert "type: accuracy" in card
    assert "name: pairs" in card


def test_a_report_without_benchmarks_has_the_key_and_the_page_that_it_had(run: RunFolder) -> None:
    config, record, evaluation = parts(run)
    assert report_key(config, record, evaluation, ()) == report_key(config, record, evaluation)
    page = (write_report(config, record, evaluation, None).path / "index.html").read_text()
    assert "Benchmarks" not in page


def test_scores_make_a_report_of_their_own(run: RunFolder) -> None:
    config, record, evaluation = run.config, *parts(run)[1:]
    before = report_key(config, record, evaluation)
    own = add_scores(record, task_of(20), [True] * 20)
    key = report_key(config, record, evaluation, [own])
    assert key != before
    assert report_folder(config, record, evaluation, key, [own]).name == "report"
    name = f"benchmarks-{'c' * 12}"  # of other tasks than the run's own
    other = add_scores(record, task_of(30, "more"), [True] * 30, name, key="c" * 64)
    both = run.benchmarks_of(evaluation.weights_sha256)
    assert both == (own, other)
    with_both = report_key(config, record, evaluation, both)
    assert with_both not in (key, before)
    folder = report_folder(config, record, evaluation, with_both, both)
    assert folder.name == f"report-{with_both[:12]}"


@pytest.mark.parametrize(
    ("accuracy", "words", "level"),
    [
        (0.8, "above chance", "good"),
        (0.51, "not distinguishable from chance", "note"),
        (0.3, "below chance", "note"),
    ],
)
def test_words_for_chance(accuracy: float, words: str, level: str) -> None:
    (finding,) = findings(tasks([of(score(accuracy, 0.015))]))
    assert words in finding.text
    assert finding.level == level


def test_where_all_are_right_the_items_are_what_limits_the_interval() -> None:
    whole = tasks([of(score(1.0, 0.0))])[0].whole
    assert (whole.low, whole.high, whole.above) == (pytest.approx(0.997), 1.0, True)


def test_a_task_that_two_results_have_is_shown_once() -> None:
    shown = tasks([of(score(0.8, 0.01)), of(score(0.7, 0.01), score(0.6, 0.01, "other"))])
    assert [(task.name, task.whole.accuracy) for task in shown] == [("t", 0.8), ("other", 0.6)]


def test_the_list_of_runs_and_a_comparison_have_the_tasks(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunFolder(copy_run(tmp_path / "data", learning_rate=3e-3))
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "data"))
    task = task_of(400)
    for folder, share in ((run, 300), (other, 360)):
        assert folder.record
        add_scores(folder.record, task, [number < share for number in range(400)])
    facts = command("runs")["runs"]
    assert {f["run"]: f["benchmarks"]["pairs"] for f in facts} == {
        run.name: pytest.approx(0.75),
        other.name: pytest.approx(0.9),
    }
    compared = command("compare", run.name, other.name)
    (row,) = compared["benchmarks"]
    assert (row["task"], row["items"]) == ("pairs", 400)
    assert row["difference"] == pytest.approx(0.15)
    assert 0.1 < row["low"] < row["difference"] < row["high"] < 0.2
    shown = CliRunner().invoke(app, ["compare", run.name, other.name]).stdout
    assert "B is better: 75.0 % and 90.0 % right" in " ".join(shown.split())


def test_results_on_other_items_are_not_compared(run: RunFolder, tmp_path: Path) -> None:
    from slm.history.compare import compare_pair

    other = RunFolder(copy_run(tmp_path / "data", learning_rate=3e-3))
    counts: list[tuple[RunFolder, Task]] = [(run, task_of(20)), (other, task_of(22))]
    for folder, task in counts:
        assert folder.record
        add_scores(folder.record, task, [True] * len(task.items))
    comparison = compare_pair(run, other)
    assert comparison.benchmarks == []
    assert comparison.not_compared == {"pairs": "they were scored on other items"}


def command(*arguments: str) -> dict[str, list[dict[str, object]]]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return result
