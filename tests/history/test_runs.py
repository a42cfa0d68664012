"""The list of runs: which, in which order, and the settings in which they differ."""

from pathlib import Path
from typing import Any

import pytest
from run_folders import start_run, step_events, write_journal

import slm
from slm.history.runs import differences, list_runs
from slm.recipes import load_recipe

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"


def make(root: Path, recipe: str, key: str, started: float, steps: int, **changed: Any) -> str:
    """A run that was interrupted; `changed`: its settings by dotted keys with `__` for the dot."""
    overrides = {name.replace("__", "."): value for name, value in changed.items()}
    config = load_recipe(recipe, overrides, path=PIPELINES)
    run = start_run(root, config, key * 64)
    (run / "metrics.jsonl").unlink()
    write_journal(run, step_events(1, steps, started))
    return run.name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path, "quickstart", "a", 300, 9, model__n_layer=2, registry__max_bpb=3.0)
    make(tmp_path, "quickstart", "b", 100, 5, model__n_layer=6, train__warmup=0.5)
    make(tmp_path, "quickstart", "c", 200, 7, train__checkpoint_every=7)
    make(tmp_path, "gpt2-124m", "d", 50, 3)
    return tmp_path


def keys(root: Path, *arguments: Any, **options: Any) -> str:
    """The first digit of each key: a run of key aaaa… is a."""
    return "".join(facts.run[-1] for facts in list_runs(root, *arguments, **options))


def test_the_newest_is_first_and_any_figure_sorts(root: Path) -> None:
    assert keys(root) == "acbd"
    assert keys(root, order="name") == "dabc"
    assert keys(root, order="step") == "acbd"
    assert keys(root, order="val_bpb") == "acbd"  # nothing is scored yet: the newest first
    with pytest.raises(slm.UserError, match="unknown order 'stp': did you mean 'step'"):
        keys(root, order="stp")


def test_runs_are_filtered_by_name_and_recipe(root: Path) -> None:
    assert keys(root, "quickstart-*") == "acb"
    assert keys(root, "quickstart-a") == "a"
    assert keys(root, "*-b*") == "b"
    assert keys(root, recipe="gpt2-124m") == "d"
    assert keys(root, "nothing*") == ""


def test_the_settings_that_differ_are_those_among_the_runs_of_a_recipe(root: Path) -> None:
    facts = {each.run[-1]: each for each in list_runs(root)}
    assert facts["a"].differs == {"model.n_layer": 2, "train.warmup": 0.05}
    assert facts["b"].differs == {"model.n_layer": 6, "train.warmup": 0.5}
    assert facts["c"].differs == {"model.n_layer": 4, "train.warmup": 0.05}
    assert facts["d"].differs == {}  # the only one of its recipe
    assert {each.recipe for each in facts.values()} == {"quickstart", "gpt2-124m"}


def test_a_run_whose_settings_cannot_be_read_is_listed_without_them(root: Path) -> None:
    (root / "runs" / f"quickstart-{'a' * 12}" / "config.json").write_text("{")
    facts = {each.run[-1]: each for each in list_runs(root)}
    assert (facts["a"].recipe, facts["a"].differs) == (None, {})
    assert facts["b"].differs == {"model.n_layer": 6, "train.warmup": 0.5}


def test_runs_without_a_setting_differ_in_nothing() -> None:
    assert differences([]) == []
    assert differences([{}, {}]) == [{}, {}]
