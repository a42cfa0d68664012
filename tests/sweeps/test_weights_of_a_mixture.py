"""A sweep over the weights of a mixture: whatever they are, nothing is encoded again."""

import json
from pathlib import Path

import pytest
import yaml
from mixtures import write_sources
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.orchestration.sweep_outline import prepare, with_inputs
from slm.planning.sweep import plan_of_sweep
from slm.run_folder import DataRoot
from slm.sweeps.definition import define_sweep

WEIGHT = "data.sources.a.weight"


@pytest.fixture
def recipe(project: Path) -> str:
    """A recipe of a mixture in the project."""
    paths = write_sources(project / "in")
    sources = {name: {"source": "files", "path": str(path)} for name, path in paths.items()}
    tiny = yaml.safe_load((project / "pipelines.yaml").read_text())["recipes"]["tiny"]
    tiny |= {"data": {"vocab_size": 300, "sources": sources}}
    tiny["model"]["seq_len"] = 16
    tiny["report"]["prompts"] = ["a"]
    (project / "pipelines.yaml").write_text(yaml.safe_dump({"recipes": {"mixed": tiny}}))
    return "mixed"


def made(kind: str) -> dict[str, int]:
    """The folders of a kind, and when each was written."""
    return {
        path.name: (path / "record.json").stat().st_mtime_ns for path in DataRoot().results(kind)
    }


KINDS = ("sources", "tokenizers", "shards")


def test_all_weights_have_the_same_shards(recipe: str) -> None:
    sweep = define_sweep(recipe, {WEIGHT: "0.2:0.8"}, trials=3)
    shards = prepare(sweep)
    before = {kind: made(kind) for kind in KINDS}
    assert [len(before[kind]) for kind in KINDS] == [3, 1, 3]
    planned = plan_of_sweep(sweep)
    assert {stage.action for stage in planned.shared} == {"reused"}
    assert [trial.action for trial in planned.trials] == ["to run"] * 3
    weights = {trial.values[WEIGHT] for trial in planned.trials if trial.values}
    assert len(weights) > 1
    assert all(0.2 <= weight <= 0.8 for weight in weights)
    assert prepare(sweep).key == shards.key
    assert {kind: made(kind) for kind in KINDS} == before


def test_another_function_of_one_source_is_another_sweep(recipe: str, project: Path) -> None:
    functions = project / "functions.py"
    functions.write_text("def keep(text):\n    return True\n")
    of_b = {"data.sources.b.clean.filter": f"{functions}:keep"}
    sweep = define_sweep(recipe, {WEIGHT: "0.2:0.8"}, trials=3, overrides=of_b)
    before = with_inputs(sweep).key
    assert with_inputs(sweep).key == before
    functions.write_text("def keep(text):\n    return len(text) > 1\n")
    assert with_inputs(sweep).key != before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_with_other_weights_train_on_the_same_shards(recipe: str) -> None:
    prepare(define_sweep(recipe, {WEIGHT: "0.2:0.8"}, trials=1))
    before = {kind: made(kind) for kind in KINDS}
    done = CliRunner().invoke(
        app, ["sweep", recipe, "--space", f"{WEIGHT}=0.2:0.8", "--trials", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    trials = json.loads(done.stdout.splitlines()[-1])["trials"]
    runs = [slm.open_run(trial["run"]) for trial in trials]
    assert len({run.config.data.sources["a"].weight for run in runs}) == 2
    assert len({run.name for run in runs}) == 2
    assert len({run.settings.shards_key for run in runs}) == 1
    assert {kind: made(kind) for kind in KINDS} == before
