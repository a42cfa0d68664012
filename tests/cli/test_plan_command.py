"""`slm plan` and `slm run --dry-run`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import finish
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.planning.versions import with_settings

KEYS = {"stage", "action", "key", "nearest", "changed", "seconds", "assumed"}


@pytest.fixture
def made(project: Path, data_root: Path, tiny_config: Callable[..., PipelineConfig]) -> str:
    """The name of a finished run of the recipe with another learning rate."""
    config = tiny_config()
    finish(data_root, config)
    return finish(data_root, with_settings(config, {"train.learning_rate": 0.5})).name


def output(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def plan(*arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(output(*arguments, "--json"))
    return result


def test_the_json_of_a_plan(made: str) -> None:
    result = plan("plan", "tiny", "--set", "train.seed=3", "--set", "report.seed=4")
    assert all(stage.keys() >= KEYS for stage in result["stages"])
    by_name = {stage["stage"]: stage for stage in result["stages"]}
    assert by_name["train"]["changed"] == {"train.seed": [1337, 3]}
    assert by_name["report"]["changed"] == {"report.seed": [1, 4]}
    assert by_name["evaluate"]["key"] is None
    assert by_name["encode"]["action"] == "reused"


def test_the_table_and_the_reasons(made: str) -> None:
    text = output("plan", "tiny", "--set", "train.seed=3", "--set", "data.workers=2")
    assert "train     to run" in text
    assert "train     train.seed: 1337 → 3" in text
    assert "in no key data.workers: 0 → 2" in text
    assert "then      evaluate, report, register: their keys are known only after train" in text


def test_a_plan_shows_where_the_values_of_a_size_came_from(made: str) -> None:
    given = ("plan", "tiny", "--set", "size=2M", "--set", "model.n_layer=5")
    result = plan(*given)
    origins = {origin["key"]: origin for origin in result["derived"]}
    assert [origins[key]["source"] for key in ("size", "model.n_layer", "model.n_embd")] == [
        "--set", "--set", "derived",
    ]  # fmt: skip
    assert origins["train.max_steps"]["source"] == "recipe"
    model, parts = result["model"], ("non_embedding", "vocabulary")
    assert abs(model["non_embedding"] / 2e6 - 1) < 0.25
    assert sum(model[part] for part in parts) < model["parameters"]
    assert model["vocabulary_flops_per_token"] == 6 * model["vocabulary"]
    text = output(*given)
    assert "model.n_layer" in text
    assert "derived: size=2M" in text
    assert "inside the blocks" in text
    assert "derived" not in output("plan", "tiny")


def test_a_dry_run_is_a_plan_and_nothing_else(made: str) -> None:
    assert output("run", "tiny", "--dry-run") == output("plan", "tiny")
    given = ("tiny", "--set", "train.seed=3")
    assert plan("run", "--dry-run", *given) == plan("plan", *given)


def test_a_run_is_compared_with_its_recipe(made: str) -> None:
    result = plan("plan", made)
    train = result["stages"][2]
    assert (result["run"], train["action"]) == (made, "reused")
    assert train["changed"] == {"train.learning_rate": [0.5, 0.0006]}
    for name in ("latest", made.rpartition("-")[2][:6]):
        assert plan("plan", name) == result
    same = plan("plan", made, "--set", "train.learning_rate=0.5")
    assert same["stages"][2]["result"].endswith(made)
    assert not any(stage["changed"] for stage in same["stages"])


def test_what_is_neither_a_recipe_nor_a_run_is_refused(project: Path, made: str) -> None:
    for name, message in (
        ("tinny", "unknown recipe 'tinny': did you mean 'tiny'"),
        ("tiny-000000000000", "unknown run 'tiny-000000000000'"),
    ):
        with pytest.raises(UserError, match=message):
            output("plan", name)
    (project / "pipelines.yaml").write_text("recipes: {other: {train: {max_steps: 1}}}")
    with pytest.raises(UserError, match=r"by the recipe tiny, which pipelines\.yaml no longer has"):
        output("plan", made)
