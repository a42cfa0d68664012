"""A ladder's definition, and its rungs from the records of a sweep."""

import pytest
from tiny_pipelines import PIPELINES
from tiny_run import make_run, tiny_config, write_documents

from slm.errors import UserError
from slm.machine import cpu_name
from slm.run_folder import DataRoot
from slm.size import parse_size
from slm.sizing.budgets import parse_budgets
from slm.sizing.ladder import define_ladder, ladder_of
from slm.sizing.result import considered, own_shape, rungs_of, size_text, speeds_of
from slm.sweeps.definition import define_sweep
from slm.sweeps.records import SeedRun, Trial

SIZES = ("0.03M", "0.1M", "0.3M")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pipelines.yaml").write_text(PIPELINES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_ladder_is_a_grid_of_sizes_and_limits(project):
    ladder = define_ladder("tiny", parse_budgets("8k,16k,32k"), sizes=SIZES)
    [sweep] = ladder.sweeps()
    assert sweep.sampler == "grid"
    assert sweep.space["size"].choices == SIZES
    assert sweep.space["train.max_tokens"].choices == (8000, 16000, 32000)
    assert (sweep.trials, sweep.seeds) == (9, 2)
    config = sweep.config({"size": "0.1M", "train.max_tokens": 16000})
    assert config.train.max_tokens == 16000
    assert config.train.max_steps is None  # the recipe's own limit
    assert config.model == ladder.config("0.1M").model


def test_the_same_ladder_is_read_back_from_its_sweep(project):
    ladder = define_ladder("tiny", parse_budgets("8s,16s"), sizes=SIZES, name="steps")
    [sweep] = ladder.sweeps()
    assert ladder_of(sweep) == ladder
    assert ladder_of(sweep).sweeps()[0].key == sweep.key


def test_budgets_in_flops_are_as_many_flops_at_every_size(project):
    ladder = define_ladder("tiny", parse_budgets("1e10,4e10"), sizes=SIZES)
    sweeps = ladder.sweeps()
    assert [sweep.name for sweep in sweeps] == [f"tiny-ladder-{size}" for size in SIZES]
    for size, sweep in zip(SIZES, sweeps, strict=True):
        cost = ladder.config(size)
        from slm.training.needs import measure

        flops = [
            tokens * measure(cost).flops_per_token
            for tokens in sweep.space["train.max_tokens"].choices
        ]
        assert flops == pytest.approx([1e10, 4e10], rel=1e-3)


@pytest.mark.parametrize(
    ("budgets", "changed", "message"),
    [
        ("8k", {}, "--budgets"),
        ("8k,16k", {"sizes": ("0.1M",)}, "--sizes"),
        ("8k,16k", {"sizes": ("0.1M", "0.1001M")}, "the same model"),
        ("8k,16k", {"sizes": ("0.1M", "huge")}, "size=huge"),
        ("8k,16k", {"overrides": {"train.max_steps": 3}}, "train.max_steps"),
        ("8k,16k", {"overrides": {"size": "1M"}}, "size"),
    ],
)
def test_what_is_no_ladder_is_refused_before_anything_runs(project, budgets, changed, message):
    with pytest.raises(UserError, match=message):
        define_ladder("tiny", parse_budgets(budgets), **{"sizes": SIZES, **changed})


@pytest.mark.parametrize(
    ("size", "text"), [(25_000, "25K"), (999_999, "1M"), (1.24e6, "1.2M"), (112e6, "110M")]
)
def test_sizes_are_written_as_the_dial_takes_them(size, text):
    assert size_text(size) == text
    assert parse_size(text) == pytest.approx(size, rel=0.05)


def test_another_sweep_is_no_ladder(project):
    sweep = define_sweep("tiny", {"train.learning_rate": [1e-3, 2e-3]}, name="rates")
    with pytest.raises(UserError, match="the sweep rates is no ladder"):
        ladder_of(sweep)


def test_the_rungs_of_a_sweep_have_shapes_speeds_and_data(project, tmp_path):
    run = make_run(tmp_path / "data", tiny_config(write_documents(tmp_path / "docs.jsonl")))
    root = DataRoot(tmp_path / "data")
    ladder = define_ladder("tiny", parse_budgets("8k,16k"), sizes=SIZES[:2])
    [sweep] = ladder.sweeps()
    good = SeedRun(
        seed=1, state="finished", run=run.name, shards_key=run.shards_key, val_bpb=2.0, tokens=8000
    )
    bad = SeedRun(seed=2, state="failed", reason="diverged")
    values = {"size": "0.1M", "train.max_tokens": 8000}
    trial = Trial(number=0, batch=0, values=values, overrides=values, seeds=(good, bad))
    [rung], failed = rungs_of(sweep, [trial], root)
    assert failed == ["size 0.1M, seed 2: diverged"]
    assert rung.budget == ladder.budgets[0]
    assert rung.shape.parameters["non-embedding"] == pytest.approx(1e5, rel=0.2)
    assert rung.unique_tokens == root.shards(run.shards_key).splits["train"].tokens
    assert run.environment["cpu"] == cpu_name()
    assert rung.shape.tok_per_sec == run.tok_per_sec
    speeds = speeds_of([rung])
    shapes = considered(ladder, [rung], speeds)
    totals = [shape.parameters["total"] for shape in shapes]
    assert totals == sorted(set(totals))
    assert totals[0] < rung.shape.parameters["total"] < totals[-1]
    assert own_shape(ladder, speeds).n_embd == 32
