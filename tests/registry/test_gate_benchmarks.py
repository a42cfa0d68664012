"""Benchmarks in the gate: no challenger that is worse on them than the champion becomes it."""

import json
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    empty_store,
    finish_run,
    start_run,
    step_events,
    write_journal,
)
from scored import add_scores, task_of, write_task
from tiny_run import shards_of
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config import BenchmarkConfig, PipelineConfig, RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.benchmark.benchmark import do_task
from slm.evaluation.benchmark.items import Task
from slm.model.saved import load_model
from slm.records import Run
from slm.registry import gate, register
from slm.registry.assessment import gate_settings
from slm.registry.version import GateDecision
from slm.run_folder import RunFolder
from slm.tracking.server import connect, default_uri
from slm.training.preflight import check_before_download

GATE = RegistryConfig(
    gate_documents=25, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)
COUNT = 400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return empty_store(tmp_path / "data")


def trained(root: Path, key: str, steps: int) -> Run:
    path = start_run(root, key=key * 32)
    write_journal(path, step_events(1, 60))
    run = finish_run(path, key=key * 32, trained=steps)
    add_evaluation(run)
    return run


def add_version(root: Path, run: Run) -> None:
    evaluation = RunFolder.of(run).evaluation
    assert evaluation is not None
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)


def promote(root: Path, version: str, **margins: float) -> GateDecision:
    limits = GATE.model_copy(update={"benchmarks": margins})
    return gate.promote(f"models:/slm/{version}", root=root, thresholds=limits)


def right(share: float) -> list[bool]:
    """Of each paradigm the same share of the items."""
    return [number < share * COUNT for number in range(COUNT)]


def two_versions(root: Path, champion: float | None, challenger: float | None) -> Task:
    """A champion and a challenger that predicts better, with these accuracies on one task."""
    task = write_task(root, task_of(COUNT))
    for key, steps, share in (("aa", 0, champion), ("bb", 30, challenger)):
        run = trained(root, key, steps)
        if share is not None:
            add_scores(run, task, right(share))
        add_version(root, run)
        if key == "aa":
            assert promote(root, "1").decision == "promoted"
    return task


def test_a_challenger_that_predicts_better_is_refused_where_it_is_worse_on_a_task(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(root, champion=0.8, challenger=0.7)
    decision = promote(root, "2", pairs=0.01)
    assert decision.decision == "refused"
    assert decision.high is not None
    assert decision.high < 0  # bits per byte are better
    (task,) = decision.benchmarks
    assert (task.task, task.items) == ("pairs", COUNT)
    assert (task.first, task.second) == (pytest.approx(0.8), pytest.approx(0.7))
    assert task.difference == pytest.approx(-0.1)
    assert task.low < task.difference < task.high < 0
    assert decision.vetoes == [
        f"benchmark pairs: -10.0 points (95 %: {100 * task.low:+.1f} to {100 * task.high:+.1f}) "
        "on the same 400 items, margin 1"
    ]
    assert decision.vetoes[0] in decision.reason
    text = gate.describe(decision)
    assert "Benchmark pairs: 70.0 % right, the champion 80.0 %" in text
    assert decision.limits["benchmarks.pairs"] == 0.01

    entry = connect(default_uri(root)).get_model_version("slm", "2")
    assert "Benchmark pairs" in entry.description
    assert float(entry.tags["slm.benchmark.pairs.accuracy"]) == pytest.approx(0.7)
    assert GateDecision.model_validate_json(entry.tags["slm.verdict"]) == decision
    monkeypatch.setenv("SLM_DATA", str(root))
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)["versions"]
    assert [v["benchmarks"]["pairs"] for v in listed] == [pytest.approx(0.7), pytest.approx(0.8)]

    assert promote(root, "2", pairs=0.2).decision == "promoted"  # a wider margin: assessed anew


@pytest.mark.parametrize("challenger", [0.8, 0.9])
def test_one_that_is_as_good_on_it_is_promoted(root: Path, challenger: float) -> None:
    two_versions(root, champion=0.8, challenger=challenger)
    decision = promote(root, "2", pairs=0.01)
    assert decision.decision == "promoted"
    assert [task.second for task in decision.benchmarks] == [pytest.approx(challenger)]
    assert not decision.vetoes


def test_no_difference_must_be_shown_to_be_small(root: Path) -> None:
    """Where both err on other items, the interval is wide: the margin must be wider."""
    task = write_task(root, task_of(COUNT))
    for key, steps, wrong in (("aa", 0, range(0, 80)), ("bb", 30, range(200, 280))):
        run = trained(root, key, steps)
        add_scores(run, task, [number not in wrong for number in range(COUNT)])
        add_version(root, run)
        if key == "aa":
            promote(root, "1")
    narrow, wide = (promote(root, "2", pairs=margin) for margin in (0.01, 0.1))
    assert narrow.benchmarks == wide.benchmarks
    assert narrow.benchmarks[0].difference == pytest.approx(0)
    assert -0.1 < narrow.benchmarks[0].low < -0.01
    assert (narrow.decision, wide.decision) == ("refused", "promoted")


def test_a_champion_without_a_score_is_scored_by_the_gate(root: Path) -> None:
    task = two_versions(root, champion=None, challenger=1.0)
    decision = promote(root, "2", pairs=0.01)
    folder = next((root / "runs").glob("tiny-aa*")) / "checkpoints" / "step_000050"
    outcomes = do_task(*load_model(folder, "cpu"), task)
    accuracy = sum(outcome.correct for outcome in outcomes) / COUNT
    assert [t.first for t in decision.benchmarks] == [pytest.approx(accuracy)]
    assert [t.second for t in decision.benchmarks] == [1.0]
    assert decision.decision == "promoted"


def test_scores_on_other_items_are_not_compared(root: Path) -> None:
    task = two_versions(root, champion=None, challenger=1.0)
    write_task(root, task_of(COUNT - 1))
    with pytest.raises(UserError, match=rf"{task.source} has other items of pairs by now"):
        promote(root, "2", pairs=0.01)


def test_a_challenger_without_a_score_is_named_with_the_command(root: Path) -> None:
    two_versions(root, champion=0.8, challenger=None)
    words = (
        r"models:/slm/2 was not scored on pairs.*`slm benchmark tiny-bbbbbbbbbbbb --tasks pairs`"
    )
    with pytest.raises(UserError, match=words):
        promote(root, "2", pairs=0.01)
    assert len((root / "mlflow" / "audit.jsonl").read_text().splitlines()) == 1


def test_a_result_that_was_changed_is_refused(root: Path) -> None:
    two_versions(root, champion=0.8, challenger=0.7)
    items = next((root / "runs").glob("tiny-bb*")) / "benchmarks" / "items.parquet"
    items.write_bytes(items.read_bytes() + b"x")
    with pytest.raises(CorruptionError, match=r"items\.parquet"):
        promote(root, "2", pairs=0.01)


def test_a_first_champion_has_none_to_be_compared_with(root: Path) -> None:
    run = trained(root, "aa", 0)
    add_scores(run, write_task(root, task_of(COUNT)), right(0.5))
    add_version(root, run)
    decision = promote(root, "1", pairs=0.01)
    assert (decision.decision, decision.benchmarks) == ("promoted", ())


def test_decisions_without_benchmarks_have_the_settings_that_they_had() -> None:
    """Else every version would be assessed again."""
    assert not any("benchmark" in name for name in gate_settings(GATE))


def test_a_task_that_is_not_run_is_refused_before_anything_is_downloaded() -> None:
    def config(*tasks: str) -> PipelineConfig:
        registry = GATE.model_copy(update={"benchmarks": {"stories": 0.01}})
        sections = {"registry": registry, "benchmark": BenchmarkConfig(tasks=tasks)}
        return CONFIG.model_copy(update=sections)

    with pytest.raises(UserError, match=r"registry\.benchmarks has stories.*it is empty"):
        check_before_download(config())
    with pytest.raises(UserError, match=r"does not run \(others\)"):
        check_before_download(config("others=./others.jsonl"))
    check_before_download(config("stories"))
