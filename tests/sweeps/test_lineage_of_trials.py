"""What lineage, registry and retraining say of a run that is a sweep's trial."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import empty_store
from tiny_run import CLEAN, code, copy_run, shards_of
from trial_records import write_trial

from slm.config import PipelineConfig
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.history.sweeps import trials_of
from slm.registry import register as registering
from slm.registry.chain import version_lineage
from slm.report.lineage_picture import lineage_svg
from slm.retraining import decide as deciding
from slm.retraining import shown
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tracking.server import connect, default_uri

TEXT = "trial 7 of rates-555555555555: train.learning_rate=0.003"


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of its own, with an empty registry next to it."""
    run = copy_run(tmp_path / "data")
    empty_store(tmp_path / "data")
    return run


def register(run: Path) -> PipelineConfig:
    config, record = RunFolder(run).config, RunFolder(run).verified_record
    assert record is not None
    evaluation = evaluate(config, record, shards_of(record))
    registering.register(config, record, evaluation, None, shards_of(record), root=run.parents[1])
    return config


def test_a_run_names_its_sweep_and_its_trial(run: Path) -> None:
    assert "sweep" not in [link.name for link in lineage(RunFolder(run)).links]
    write_trial(run)
    chain = lineage(RunFolder(run))
    assert (chain["sweep"].value, chain["sweep"].state) == (TEXT, "unchanged")
    assert "sweep" in chain["run"].made_from
    assert TEXT[:40] in lineage_svg(chain)
    write_trial(run, "again", 2)
    assert [trial.sweep[:5] for trial in trials_of(RunFolder(run))] == ["rates", "again"]
    assert lineage(RunFolder(run))["sweep"].value.startswith(f"{TEXT}; trial 2 of again-")


def test_a_record_of_another_run_of_its_name_is_a_change(run: Path) -> None:
    folder = write_trial(run)
    path = folder.path / "trials" / "0007.json"
    key = RunFolder(run).settings.key
    path.write_text(path.read_text().replace(key, "0" * 64))
    assert lineage(RunFolder(run))["sweep"].state == "changed"
    path.write_text("{")
    assert trials_of(RunFolder(run)) == []


def test_a_version_has_its_sweep_and_keeps_it_when_that_is_gone(run: Path) -> None:
    config = register(run)
    folder = write_trial(run)
    register(run)  # the sweep came later: the same version gets its tags
    name = config.model_name
    tags = connect(default_uri(run.parents[1])).get_model_version(name, "1").tags
    assert (tags["slm.sweep"], tags["slm.trial"]) == (folder.name, "7")
    assert version_lineage(f"models:/{name}", run.parents[1])["sweep"].state == "unchanged"
    shutil.rmtree(folder.path)
    link = version_lineage(f"models:/{name}", run.parents[1])["sweep"]
    assert link.value == f"trial 7 of {folder.name}"
    assert (link.state, link.notes) == ("not checked", (f"{folder.name} is gone from here",))


def test_retraining_is_by_the_recipe_and_says_what_the_sweep_chose(run: Path) -> None:
    """The recipe's settings are trained, and the decision names those of the champion."""
    root = run.parents[1]
    write_trial(run)
    config = register(run)
    client = connect(default_uri(root))
    client.set_registered_model_alias(config.model_name, "champion", "1")
    source = download(config, root=root)
    same = deciding.decide(config, source, root=root)
    assert same.action == "nothing"
    assert same.evidence.trial == "trial 7 of rates-555555555555"

    train = config.train.model_copy(update={"learning_rate": 0.006})
    recipe = config.model_copy(update={"train": train})
    decision = deciding.decide(recipe, source, root=root)
    assert decision.action == "retrain"
    assert decision.evidence.chosen == ("train.learning_rate=0.003",)
    assert "write train.learning_rate=0.003 into the recipe" in decision.reason
    assert "trial 7 of rates-555555555555" in shown.describe(decision)
    assert deciding.training(recipe, decision, root=root) == (recipe, None)
    json.dumps(shown.tags(decision))
