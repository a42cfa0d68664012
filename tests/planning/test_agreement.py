"""A plan and the run after it agree: what was to be reused, resumed and made is."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import empty_store
from tiny_run import CLEAN, code, flip_byte

from slm import storage
from slm.config import PipelineConfig
from slm.orchestration.outline import Until, run_pipeline
from slm.planning.plan import PipelinePlan, plan_config
from slm.planning.versions import with_settings
from slm.recipes import load_recipe
from slm.run_folder import DataRoot, RunFolder
from slm.tracking.server import connect, tracking_uri

STAGES = ["download", "encode", "train", "evaluate", "report", "register"]


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    """Trains in this process, by code that is committed."""
    with code(CLEAN):
        yield


def reused(plan: PipelinePlan) -> list[str]:
    return [stage.stage for stage in plan.stages if stage.action == "reused"]


def test_a_plan_is_what_the_run_does(project: Path, data_root: Path) -> None:
    """Of a tiny pipeline, and of variants of it."""
    empty_store(data_root)
    config = load_recipe("tiny")
    assert reused(plan_config(config)) == []
    made = run_pipeline(config, "register")
    assert made["reused"] == []
    assert reused(plan_config(config)) == reused(plan_config(config, verify=True)) == STAGES
    assert run_pipeline(config, "register")["reused"] == STAGES
    variants: dict[Until, dict[str, Any]] = {
        "encode": {"data.val_fraction": 0.3},
        "train": {"data.clean.min_chars": 3},  # it drops nothing: the same shards by another key
        "evaluate": {"train.evaluate_every": 4, "evaluate.documents": 4},
        "report": {"report.seed": 9, "data.workers": 1, "train.checkpoint_every": 3},
    }
    for until, settings in variants.items():
        other = with_settings(config, settings)
        before, count = plan_config(other), STAGES.index(until) + 1
        done = run_pipeline(other, until)
        for stage in before.stages[:count]:
            if stage.key:  # else it is reused only where what it is made from is the same
                assert (stage.action == "reused") == (stage.stage in done["reused"]), settings
        for name, key in (("download", "source"), ("encode", "shards"), ("train", "run")):
            if before[name].result and key in done:
                assert before[name].result == done[key]
        assert reused(plan_config(other))[:count] == STAGES[:count]


def test_a_version_that_was_deleted_is_registered_again(project: Path, data_root: Path) -> None:
    empty_store(data_root)
    config = load_recipe("tiny")
    run_pipeline(config, "register")
    client = connect(tracking_uri(config, data_root))
    for change in (
        lambda: client.delete_model_version("slm", "1"),
        lambda: client.delete_run(client.get_model_version("slm", "2").run_id),
    ):
        assert reused(plan_config(config)) == STAGES
        change()
        assert reused(plan_config(config)) == STAGES[:5]
        assert run_pipeline(config, "register")["reused"] == STAGES[:5]


def test_what_was_reused_has_the_key_that_the_plan_gave(project: Path, data_root: Path) -> None:
    config = load_recipe("tiny", {"train.max_steps": 2})
    for until, stage, record in (
        ("download", 0, "source"),
        ("encode", 1, "shards"),
        ("train", 2, "run"),
    ):
        key = plan_config(config).stages[stage].key
        folder = Path(run_pipeline(config, until)[record])
        assert storage.read_versioned(folder / storage.RECORD, sealed=True)[1]["key"] == key


def interrupted(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a config until its fourth step fails."""
    storage.reset_fault_points()
    with monkeypatch.context() as patch:
        patch.setenv("SLM_FAULT", "train.step:4:raise")
        with pytest.raises(RuntimeError, match="fault"):
            run_pipeline(config, "train")


def test_an_interrupted_training_is_resumed_from_the_step_of_the_plan(
    project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe("tiny")
    interrupted(config, monkeypatch)
    (run,) = DataRoot(data_root).runs()
    stage = plan_config(config)["train"]
    assert (stage.action, stage.step, stage.max_steps) == ("resumed", 2, 4)
    assert stage.result == str(run.path)
    assert run_pipeline(config, "train")["run"] == stage.result
    assert [e["step"] for e in run.journal if e["event"] == "resume"] == [stage.step]
    assert plan_config(config)["train"].action == "reused"


def test_a_damaged_run_is_resumed_before_the_damage(project: Path, data_root: Path) -> None:
    config = load_recipe("tiny")
    run = RunFolder(Path(run_pipeline(config, "train")["run"]))
    flip_byte(run.checkpoints[-1][1] / "model.safetensors")
    assert plan_config(config)["train"].action == "reused"
    stage = plan_config(config, verify=True)["train"]
    assert (stage.action, stage.step) == ("resumed", 2)
    assert "damaged" in stage.reasons[0]
    assert run_pipeline(config, "train")["run"] == stage.result
    assert [e["step"] for e in run.journal if e["event"] == "resume"] == [stage.step]
    shutil.rmtree(run.path)
    assert plan_config(config)["train"].action == "to run"
