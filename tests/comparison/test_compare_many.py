"""Any number of runs: who is grouped, who is ranked with whom, and what is shown of the rest."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from many_runs import held_out_sizes, make_run

import slm
from slm import storage
from slm.cli.main import app
from slm.comparison.page import headline
from slm.comparison.results import Comparison
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.history.compare import compare_pair
from slm.recipes import load_recipe
from slm.records import Benchmarks, TaskScore
from slm.run_folder import RunFolder
from slm.sweeps.definition import define_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, Trial

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"


def config(**changed: Any) -> PipelineConfig:
    """Of `quickstart`; `changed`: settings by dotted keys with `__` for the dot."""
    overrides = {name.replace("__", "."): value for name, value in changed.items()}
    return load_recipe("quickstart", {"train.max_steps": 60, **overrides}, path=PIPELINES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two seeds at a depth, one at another, a run that stopped, and one without an evaluation."""
    make_run(tmp_path, config(model__n_layer=4, train__seed=1), 0.80)
    make_run(tmp_path, config(model__n_layer=4, train__seed=2), 0.81)
    make_run(tmp_path, config(model__n_layer=2), 0.95)
    make_run(tmp_path, config(model__n_layer=6, train__seed=3), 0.70, state="stopped")
    make_run(tmp_path, config(model__n_layer=8, train__seed=4), 0.60, state="finished")
    return tmp_path


def compare(root: Path, *references: str) -> Comparison:
    return slm.compare(*(references or ("quickstart-*",)), root=root)


def test_runs_that_differ_in_the_seed_alone_are_one_group(root: Path) -> None:
    (ranking,) = compare(root).rankings
    best, other = ranking.groups
    assert best.seeds == [1, 2]
    assert best.val_bpb == pytest.approx(0.805)
    assert best.low < 0.8 < 0.81 < best.high  # so few seeds show little
    assert best.settings == {"model.n_layer": 4}
    assert other.settings == {"model.n_layer": 2}
    assert other.seeds == [1337]


def test_the_difference_from_the_best_is_that_of_the_pair(root: Path) -> None:
    """Of two groups of one run each: as wide as by resampling, but for a few hundredths."""
    runs = sorted((root / "runs").glob("*"), key=lambda p: RunFolder(p).config.model.n_layer)
    a, b = RunFolder(runs[0]), RunFolder(runs[1])
    compared = slm.compare(a, b, root=root)
    pair = compare_pair(b, a).interval
    assert compared.pair == compare_pair(a, b)
    assert pair is not None
    to_best = compared.rankings[0].groups[1].to_best
    assert to_best is not None
    width = pair.high - pair.low
    assert to_best.model_dump() == pytest.approx(
        pair.model_dump(exclude={"documents"}), abs=0.1 * width
    )


def test_more_comparisons_need_more(tmp_path: Path) -> None:
    for i, bpb in enumerate((0.80, 0.8045, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95)):
        make_run(tmp_path, config(train__warmup=0.01 * i), bpb, noise=0.012)
    names = [group.runs[0] for group in compare(tmp_path).rankings[0].groups]
    alone = compare(tmp_path, *names[:2]).rankings[0].groups[1].to_best
    among = compare(tmp_path).rankings[0]
    assert alone is not None
    assert (second := among.groups[1].to_best) is not None
    assert second.difference == pytest.approx(alone.difference)
    assert second.high - second.low > 1.2 * (alone.high - alone.low)
    assert among.comparisons == 7
    assert among.matrix is not None
    assert (upper := among.matrix[0][1]) is not None
    assert (lower := among.matrix[1][0]) is not None
    assert (upper.difference, upper.low) == (-lower.difference, -lower.high)
    assert lower.high - lower.low > second.high - second.low  # of 28 pairs


def test_runs_without_an_evaluation_are_shown_and_never_ranked(root: Path) -> None:
    compared = compare(root)
    ranked = {
        run for ranking in compared.rankings for group in ranking.groups for run in group.runs
    }
    stopped, finished = sorted(compared.not_ranked, key=lambda run: run.settings["model.n_layer"])
    assert ranked == {r.run for r in compared.runs} - {stopped.run, finished.run}
    assert (stopped.state, stopped.step, stopped.val_bpb) == ("stopped", 30, None)
    assert f"slm train {stopped.run}" in str(stopped.not_ranked)
    assert stopped.last_slice_val_bpb is not None
    assert stopped.tokens == 30 * config().train.tokens_per_step
    assert f"slm evaluate {finished.run}" in str(finished.not_ranked)


def test_a_damaged_run_leaves_the_others(root: Path) -> None:
    runs = sorted((root / "runs").glob("*"))
    evaluated = [run for run in runs if (run / "evaluation").exists()]
    (evaluated[0] / "evaluation" / "evaluation.json").write_text("{}")
    compared = compare(root)
    (damaged,) = (run for run in compared.runs if run.state == "damaged")
    assert damaged.run == evaluated[0].name
    assert "evaluation.json" in str(damaged.not_ranked)
    assert sum(len(group.runs) for group in compared.rankings[0].groups) == 2
    with pytest.raises(CorruptionError):
        compare(root, evaluated[0].name, evaluated[1].name)  # two are compared in detail


@pytest.mark.parametrize(
    ("held_out", "reason"),
    [
        ({"sizes": held_out_sizes(40)[:20]}, "the first 20 of the 40 documents above"),
        ({"sizes": held_out_sizes(40, data_seed=5)}, "data.seed=7 instead of 1337"),
        ({"fingerprint": 1.6}, "data.seed=7 instead of 1337"),  # as long, and another text
    ],
)
def test_what_was_scored_on_other_text_is_ranked_apart(
    root: Path, held_out: dict[str, Any], reason: str
) -> None:
    other = make_run(root, config(data__seed=7), 0.5, **held_out)
    first, second = compare(root).rankings
    assert other.name not in {run for group in first.groups for run in group.runs}
    assert [group.runs for group in second.groups] == [[other.name]]
    assert first.why_apart is None
    assert reason in str(second.why_apart)


def test_one_result_under_two_names_counts_once(root: Path) -> None:
    run = next(p for p in sorted((root / "runs").glob("*")) if (p / "evaluation").exists())
    shutil.copytree(run, run.with_name(f"again-{run.name[-12:]}"))
    compared = compare(root, "*")
    assert len(compared.runs) == 5
    assert "the same result as" in compared.notes[0]


def add_task(run: Path, accuracy: float, weights: str) -> None:
    score = TaskScore(
        name="pairs", kind="minimal_pairs", source="pairs.jsonl", sha256="1" * 64, items=20,
        accuracy=accuracy, stderr=0.1, chance=0.5, distinguishable=True,
    )  # fmt: skip
    (run / "benchmarks").mkdir()
    record = Benchmarks(
        key="b" * 64, run=run.name, checkpoint="c", weights_sha256=weights, tasks=(score,)
    )
    storage.write_record(run / "benchmarks", record)


def test_tasks_are_those_of_the_weights_that_were_evaluated(root: Path) -> None:
    best, other = compare(root).rankings[0].groups
    for name, accuracy in zip(best.runs, (0.7, 0.8), strict=True):
        run = RunFolder(root / "runs" / name)
        add_task(run.path, accuracy, run.settings.key)
    add_task(root / "runs" / other.runs[0], 0.9, "0" * 64)
    best, other = compare(root).rankings[0].groups
    assert best.benchmarks == pytest.approx({"pairs": 0.75})
    assert other.benchmarks == {}


def sweep_of(root: Path, runs: list[str]) -> SweepFolder:
    sweep = define_sweep(
        "quickstart", {"model.n_layer": "2,4,6"}, name="depths", sampler="grid", trials=3
    )
    folder = SweepFolder.of(sweep, root)
    with folder.locked():
        folder.write_sweep(sweep, {})
        for number, run in enumerate(runs):
            seed = SeedRun(seed=1, state="finished", run=run, val_bpb=1.0)
            values = {"model.n_layer": number}
            folder.write_trial(
                Trial(number=number, batch=0, values=values, overrides=values, seeds=(seed,))
            )
    return folder


def test_runs_are_named_in_any_way_and_each_counts_once(root: Path) -> None:
    names = [run.run for run in compare(root).runs]
    assert [run.run for run in compare(root, names[0], "quickstart-*").runs] == names
    assert [run.run for run in compare(root, names[1][-12:-4], names[0]).runs] == names[1::-1]
    path = str(root / "runs" / names[2])
    assert [run.run for run in compare(root, path, names[0]).runs] == [names[2], names[0]]


def test_how_little_the_intervals_show_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, config(model__n_layer=4), 0.7)
    make_run(tmp_path, config(model__n_layer=2), 0.9)
    compared = compare(tmp_path)
    (ranking,) = compared.rankings
    shown = "as a model better than the other one; as settings not known: one seed each"
    assert headline(compared).endswith(shown)
    assert not ranking.distinguishable
    assert not ranking.tied  # as models
    make_run(tmp_path, config(model__n_layer=4, train__seed=2), 0.71)
    assert headline(compare(tmp_path)).endswith("as settings better than the other one")
    assert compare(tmp_path).rankings[0].distinguishable
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    app(["compare", "quickstart-*", "--json"], standalone_mode=False)
    (shown_ranking,) = json.loads(capsys.readouterr().out)["rankings"]
    assert shown_ranking["distinguishable"]
    assert shown_ranking["verdict"] == "as settings better than the other one"
    app(["compare", "quickstart-*"], standalone_mode=False)
    assert "best      rank 1: 0.7" in capsys.readouterr().out


def test_few_documents_show_an_order_alone(tmp_path: Path) -> None:
    for layers in (2, 4, 6):
        make_run(tmp_path, config(model__n_layer=layers), layers / 10, sizes=[100] * 19)
    compared = slm.compare("*", html=tmp_path / "page.html", root=tmp_path)
    (ranking,) = compared.rankings
    assert ranking.groups[0].settings == {"model.n_layer": 2}
    assert ranking.groups[0].low is None
    assert ranking.groups[1].to_best is not None
    assert ranking.groups[1].to_best.low is None
    assert len(ranking.tied) == 2
    assert headline(compared).endswith("is not known: 19 held-out documents are too few")
    assert "no interval" in (tmp_path / "page.html").read_text("utf-8")


def test_a_sweep_is_the_runs_of_its_trials(root: Path) -> None:
    names = [run.run for run in compare(root).runs]
    sweep = sweep_of(root, [names[2], names[0], "quickstart-000000000000"])  # of which one is gone
    for reference in ("depths", sweep.name, str(sweep.path), sweep.key[:6]):
        assert [run.run for run in compare(root, reference).runs] == [names[2], names[0]]
    assert len(compare(root, "depths", names[1]).runs) == 3


def test_runs_are_listed_with_their_sweep(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [run.run for run in compare(root).runs]
    sweep = sweep_of(root, names[:2])
    (sweep.path.with_name("broken-0123456789ab")).mkdir()
    (sweep.path.with_name("broken-0123456789ab") / "sweep.json").write_text("{torn")
    monkeypatch.setenv("SLM_DATA", str(root))
    app(["runs", "--json"], standalone_mode=False)
    listed = {run["run"]: run["sweep"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert {run for run, name in listed.items() if name == sweep.name} == set(names[:2])
    assert [listed[name] for name in names[2:]] == [None, None, None]
    app(["runs"], standalone_mode=False)
    assert sweep.name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (["foo-*"], "no run has a name like 'foo-\\*': `slm runs` lists the 5 of"),
        (["quickstart-*", "quikstart-1"], "unknown run 'quikstart-1'"),
        (["quickstart"], "the names of 5 runs begin so: 'quickstart\\*'"),
        (["latest"], "takes two or more runs, and that is only quickstart-"),
        ([], "takes two or more runs, and that is no run"),
    ],
)
def test_what_names_no_runs_is_one_message(root: Path, references: list[str], message: str) -> None:
    with pytest.raises(slm.UserError, match=message):
        slm.compare(*references, root=root)
    with pytest.raises(slm.UserError, match="there are none in"):
        slm.compare("a*", root=root / "empty")
