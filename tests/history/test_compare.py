"""Comparing runs: what differs is named, and no interval is given for unlike documents."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from tiny_run import copy_run, shards_of

from slm import storage
from slm.errors import CorruptionError
from slm.evaluation.evaluate import evaluate
from slm.history.compare import at_equal_tokens, compare_pair, config_differences
from slm.history.runs import list_runs
from slm.records import Evaluation
from slm.run_folder import JOURNAL, RunFolder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of two runs on the same shards, the second at a higher learning rate."""
    return copy_run(tmp_path / "data"), copy_run(tmp_path / "data", learning_rate=3e-3)


def write_samples(run: Path, *completions: tuple[str, float, str]) -> None:
    (run / "report").mkdir()
    rows = [
        {"prompt": prompt, "temperature": heat, "top_k": 10, "completion": text}
        for prompt, heat, text in completions
    ]
    (run / "report" / "samples.json").write_text(json.dumps(rows))


def test_two_runs_compared(pair: tuple[Path, Path]) -> None:
    a, b = pair
    write_samples(a, ("Once", 0.5, " a cat"), ("Once", 0.8, " a dog"))
    write_samples(b, ("Once", 0.8, " an owl"), ("One", 0.8, " day"))
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    assert comparison.config == {"train.learning_rate": (6e-4, 3e-3)}
    ours, theirs = (json.loads((r / "evaluation" / "record.json").read_bytes()) for r in pair)
    assert comparison.figures["val_bpb"] == (ours["val_bpb"], theirs["val_bpb"])
    assert comparison.figures["tokens"] == (512, 512)
    assert [tokens for tokens, _ in comparison.curves[0]] == [256, 512]
    assert [row[0] for row in comparison.at_equal_tokens] == [256, 512]
    assert [(s.prompt, s.temperature, s.a, s.b) for s in comparison.samples] == [
        ("Once", 0.8, " a dog", " an owl")
    ]


def test_the_difference_has_its_interval(pair: tuple[Path, Path]) -> None:
    a, b = pair
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    figures = comparison.figures["val_bpb"]
    assert comparison.interval is not None
    assert figures[0] is not None
    assert figures[1] is not None
    assert comparison.interval.difference == pytest.approx(figures[1] - figures[0])
    assert comparison.interval.low < comparison.interval.difference < comparison.interval.high < 0
    assert comparison.interval.sentence.startswith("B is better")
    other = compare_pair(RunFolder(b), RunFolder(a)).interval
    assert other is not None
    assert other.sentence.startswith("A is better")
    same = compare_pair(RunFolder(a), RunFolder(a)).interval
    assert same is not None
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert same.sentence.startswith("no difference is shown")


def test_only_documents_that_both_were_scored_on_count(pair: tuple[Path, Path]) -> None:
    a, b = pair
    config, run = RunFolder(b).config, RunFolder(b).verified_record
    assert run is not None
    fewer = config.evaluate.model_copy(update={"documents": 3})
    other = evaluate(config.model_copy(update={"evaluate": fewer}), run, shards_of(run))
    shutil.rmtree(b / "evaluation")
    other.path.rename(b / "evaluation")
    interval = compare_pair(RunFolder(a), RunFolder(b)).interval
    assert interval is not None
    assert interval.documents == 3


def rewrite_documents(run: Path, change: int) -> None:
    """Other documents, each longer by some bytes, in an evaluation that is valid in itself."""
    folder = run / "evaluation"
    details = json.loads((folder / "evaluation.json").read_bytes())
    details["documents"] = [[n, t, size + change] for n, t, size in details["documents"]]
    (folder / "evaluation.json").write_text(json.dumps(details))
    record = storage.read_record(folder, Evaluation, verify=False)
    assert record is not None
    files = storage.describe_files(folder, [folder / "evaluation.json"])
    storage.write_record(folder, record.model_copy(update={"files": files}))


def test_no_interval_without_the_same_documents(pair: tuple[Path, Path]) -> None:
    a, b = pair
    rewrite_documents(b, 1)
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    assert comparison.interval is None
    assert comparison.no_interval == "they were scored on other documents"
    shutil.rmtree(b / "evaluation")
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    assert comparison.interval is None
    assert f"slm evaluate {b.name}" in str(comparison.no_interval)
    assert comparison.figures["val_bpb"][1] is not None  # of the training itself


def test_an_unfinished_run_lacks_figures_and_another_folder_is_an_error(
    pair: tuple[Path, Path],
) -> None:
    a, b = pair
    (b / "record.json").unlink()
    shutil.rmtree(b / "evaluation")
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    assert comparison.figures["parameters"][1] is None
    assert comparison.at_equal_tokens
    with pytest.raises(CorruptionError, match=r"config\.json cannot be read"):
        compare_pair(RunFolder(a), RunFolder(a.parent))


def test_settings_that_differ_are_listed_by_their_dotted_keys(pair: tuple[Path, Path]) -> None:
    config = RunFolder(pair[0]).config
    train = config.train.model_copy(update={"seed": 3})
    clean = config.data.clean.model_copy(update={"max_chars": 9})
    data = config.data.model_copy(update={"clean": clean})
    other = config.model_copy(update={"train": train, "data": data})
    assert config_differences(config, other) == {
        "data.clean.max_chars": (None, 9),
        "train.seed": (config.train.seed, 3),
    }


def test_a_score_that_is_not_finite_is_left_out_of_the_curve(pair: tuple[Path, Path]) -> None:
    a, b = pair
    lines = [json.loads(line) for line in (b / JOURNAL).read_text().splitlines()]
    first = next(line for line in lines if line["event"] == "evaluate")
    first["val_bpb"] = first["val_loss"] = None
    (b / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = compare_pair(RunFolder(a), RunFolder(b))
    assert [len(curve) for curve in comparison.curves] == [2, 1]
    assert all(facts.val_bpb is not None for facts in list_runs(a.parents[1]))


def test_curves_are_compared_where_both_were_scored() -> None:
    a, b = [(0, 4.0), (100, 2.0)], [(50, 5.0), (150, 3.0)]
    assert at_equal_tokens(a, b) == [(50, 3.0, 5.0), (100, 2.0, 4.0)]
    assert at_equal_tokens(a, [(200, 1.0)]) == []
    assert at_equal_tokens(a, []) == []
    long = [(step, 1 / (step + 1)) for step in range(100)]
    thinned = at_equal_tokens(long, long)
    assert len(thinned) == 8
    assert (thinned[0][0], thinned[-1][0]) == (0, 99)


# ---- the list of runs -------------------------------------------------------------------------


def test_runs_are_listed_with_their_state(pair: tuple[Path, Path]) -> None:
    a, b = pair
    facts = {f.run: f for f in list_runs(a.parents[1])}
    assert [facts[run.name].state for run in pair] == ["finished", "finished"]
    assert facts[a.name].step == 4
    assert facts[a.name].val_bpb == compare_pair(RunFolder(a), RunFolder(b)).figures["val_bpb"][0]
    (a / "record.json").unlink()
    with storage.lock(a / "lock"):
        assert RunFolder(a).is_training
        assert {f.state for f in list_runs(a.parents[1]) if f.run == a.name} == {"training"}
    (b / "record.json").write_text("{torn")
    assert {f.run: f.state for f in list_runs(a.parents[1])} == {
        a.name: "stopped",
        b.name: "damaged",
    }
    assert list_runs(a) == []


def test_the_measures_of_a_run_are_not_mixed(pair: tuple[Path, Path]) -> None:
    """On all held-out documents by the evaluation, and on the slice that training scores."""
    a, b = pair
    shutil.rmtree(b / "evaluation")
    facts = {f.run: f for f in list_runs(a.parents[1])}
    slices = {
        run: [e["val_bpb"] for e in RunFolder(run).journal if e["event"] == "evaluate"][-1]
        for run in pair
    }
    evaluation = RunFolder(a).evaluation
    assert evaluation is not None
    assert facts[a.name].val_bpb == evaluation.val_bpb
    assert facts[b.name].val_bpb is None
    assert {run: facts[run.name].slice_val_bpb for run in pair} == slices
    records = [RunFolder(run).record for run in pair]
    bpb = compare_pair(RunFolder(a), RunFolder(b)).figures["val_bpb"]
    assert bpb == tuple(record and record.val_bpb for record in records)  # both of the last weights


def test_a_broken_journal_leaves_other_runs_and_what_was_quarantined_is_no_run(
    pair: tuple[Path, Path],
) -> None:
    a, b = pair
    lines = (b / JOURNAL).read_bytes().splitlines(keepends=True)
    (b / JOURNAL).write_bytes(b"".join([*lines[:3], b"[1]\n", *lines[3:]]))
    shutil.copytree(a, a.with_name(f"{a.name}.corrupt-17"))
    facts = {f.run: f for f in list_runs(a.parents[1])}
    assert {name: f.state for name, f in facts.items()} == {a.name: "finished", b.name: "damaged"}
    assert facts[b.name].started == json.loads(lines[0])["time"]


def test_whether_a_run_is_in_training_can_be_seen_without_a_right_to_write(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch(mode=0o444)
    assert not RunFolder(tmp_path).is_training
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert RunFolder(tmp_path).is_training
