"""A mixture in the pipeline, its plan, lineage, MLflow, retention and store."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finished import finish_run
from mixtures import mixture, text, write, write_sources
from typer.testing import CliRunner

import slm
import slm.tokens.shards.inspecting
import slm.tokens.shards.reading
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.history.lineage import lineage
from slm.orchestration.outline import run_pipeline
from slm.planning.plan import PipelinePlan, plan_config
from slm.recipes import parse_overrides
from slm.records import Shards
from slm.retention import survey
from slm.run_folder import DataRoot
from slm.tracking.entities import dataset_inputs

Make = Callable[..., PipelineConfig]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a mixture, trimmed and mixed, and a finished run of it without weights."""
    folder = tmp_path_factory.mktemp("made")
    before = os.environ.get("SLM_DATA")
    os.environ["SLM_DATA"] = str(folder / "data")
    try:
        config = mixture(write_sources(folder / "texts"), {"data.vocab_size": 300})
        made = run_pipeline(config, "mix")
        shards = DataRoot().shards(_key(made["shards"]))
        assert shards is not None
        finish_run(folder / "data", config, shards)
    finally:
        os.environ.pop("SLM_DATA")
        if before is not None:
            os.environ["SLM_DATA"] = before
    return folder


def _key(path: str) -> str:
    record = slm.tokens.shards.reading.read_shards(Path(path))
    return record.key


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    """A copy of it, where the recipe's files are still those of the original."""
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "data"))
    return DataRoot()


@pytest.fixture
def make(made: Path) -> Make:
    paths = {name: made / "texts" / name for name in "ab"}

    def config(*assignments: str) -> PipelineConfig:
        return mixture(paths, {"data.vocab_size": 300, **parse_overrides(list(assignments))})

    return config


def actions(plan: PipelinePlan) -> dict[str, str]:
    return {stage.title: stage.action for stage in plan.stages}


DATA = ["download a", "download b", "download", "tokenizer", "encode a", "encode b", "mix"]


def test_the_pipeline_runs_each_source_and_then_all(root: DataRoot, make: Make) -> None:
    made = run_pipeline(make(), "mix")
    assert made["reused"] == ["download", "tokenizer", "encode", "mix"]
    assert set(made["parts"]) == {"a", "b"}
    with pytest.raises(UserError, match="until=mix, but there is one source alone"):
        run_pipeline(slm.load_recipe("quickstart"), "mix")


def test_the_plan_agrees_with_the_run(root: DataRoot, make: Make) -> None:
    plan = plan_config(make())
    assert list(actions(plan))[:7] == DATA
    assert {actions(plan)[name] for name in (*DATA, "train")} <= {"reused", "resumed"}
    assert not plan.uncounted


@pytest.mark.parametrize(
    ("assignment", "first", "key"),
    [
        ("data.sources.b.weight=0.5", "train", "data.sources.b.weight"),
        ("data.sources.a.max_epochs=2", "train", "data.sources.a.max_epochs"),
        ("data.phases=[{weights: {a: 2}}]", "train", "data.phases"),
        ("data.sources.a.clean.min_chars=9", "tokenizer", "data.sources.a.clean.min_chars"),
        ("data.sources.b.documents=5", "download b", "data.sources.b.documents"),
        ("data.sources.b.columns=[n]", "download b", "data.sources.b.columns"),
        ("data.sources.b.license=mine", "download", "data.sources.b.license"),
        ("data.vocab_size=310", "tokenizer", "data.vocab_size"),
        ("train.seed=3", "train", "train.seed"),
    ],
)
def test_the_plan_names_the_source_whose_setting_changed(
    root: DataRoot, make: Make, assignment: str, first: str, key: str
) -> None:
    plan = plan_config(make(assignment))
    assert plan.first is not None
    assert plan.first.title == first
    assert list(plan.first.changed) == [key]
    assert not plan.uncounted


def test_a_source_that_is_added(root: DataRoot, make: Make, tmp_path: Path) -> None:
    write(tmp_path / "c.jsonl", [text("c", i) for i in range(40)])
    more = [f"data.sources.c.{each}" for each in ("source=files", f"path={tmp_path / 'c.jsonl'}")]
    plan = plan_config(make(*more))
    assert actions(plan)["download a"] == actions(plan)["download b"] == "reused"
    assert actions(plan)["download c"] == "to run"
    assert plan["download"].changed["data.sources"] == (["a", "b"], ["a", "b", "c"])


def test_the_lineage_has_each_source(root: DataRoot) -> None:
    [run] = root.runs()
    links = {link.name: link for link in lineage(run, check=True).links}
    source = run.source
    assert source is not None
    assert links["source a"].digest == source.parts["a"].key
    assert "5 left out" not in links["source a"].value
    assert "6 left out" in links["source b"].value
    assert {"source a", "source b"} <= set(links["source"].made_from)
    assert links["dataset"].state == "unchanged"


def test_mlflow_has_a_dataset_of_each_source_and_split(root: DataRoot) -> None:
    [run] = root.runs()
    names = [each.dataset.name for each in dataset_inputs(run)]
    assert names == ["a: a", "a: a", "b: b", "b: b"]
    assert len({each.dataset.digest for each in dataset_inputs(run)}) == 3  # val is one file


def test_what_a_kept_mixture_needs_stays(root: DataRoot) -> None:
    kept = survey(root.path, ["none"], grace=0)
    assert not [item.path for item in kept.going if item.path.parent.name in ("shards", "sources")]
    [run] = root.runs()
    shutil.rmtree(run.path)
    going = {item.path.parent.name for item in survey(root.path, [], grace=0).going}
    assert {"shards", "sources", "tokenizers"} <= going


def test_a_store_carries_a_mixture(root: DataRoot, tmp_path: Path) -> None:
    [run] = root.runs()
    before = run.shards
    assert before is not None
    slm.push(run.name, f"file://{tmp_path / 'store'}")
    shutil.rmtree(root.path)
    slm.pull(run.name, f"file://{tmp_path / 'store'}")
    shards = DataRoot().shards(before.key)
    assert isinstance(shards, Shards)
    assert shards == before.model_copy(update={"path": shards.path})
    slm.tokens.shards.inspecting.verify(shards.path)


def test_the_command_shows_what_each_source_gave(
    root: DataRoot, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = {n: {"source": "files", "path": str(made / "texts" / n)} for n in "ab"}
    recipe = {"data": {"sources": sources}, "train": {"max_steps": 4}}
    (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump({"recipes": {"mixed": recipe}}))
    result = CliRunner().invoke(app, ["mix", "mixed", "--json"])
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert '"held_out": 5' in shown
    assert '"val, also in a source before it": 1' in shown
    refused = CliRunner().invoke(app, ["mix", "quickstart"])
    assert isinstance(refused.exception, UserError)
    assert "data.sources makes a mixture" in str(refused.exception)
