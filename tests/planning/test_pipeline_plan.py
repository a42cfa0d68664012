"""The plan of a pipeline: what it says a run would do, why, and what it leaves alone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import (
    COMMIT,
    STEPS,
    finish,
    finish_run,
    finish_shards,
    finish_source,
    save,
    start_run,
)

import slm
import slm.evaluation.identity
import slm.report.identity
import slm.source.download
import slm.source.hub
import slm.tokens.encode
import slm.training.identity
from slm import storage
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.planning.plan import PipelinePlan, plan_config
from slm.planning.versions import with_settings
from slm.run_folder import DataRoot

Config = Callable[..., PipelineConfig]
PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
STAGES = ["download", "encode", "train", "evaluate", "report", "register"]


def actions(plan: PipelinePlan) -> list[str]:
    return [stage.action for stage in plan.stages]


def changed(config: PipelineConfig, **settings: Any) -> PipelineConfig:
    return with_settings(config, settings)


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# ---- what it needs and leaves alone -----------------------------------------------------------


def test_a_plan_loads_no_torch_and_writes_nothing(
    project: Path, data_root: Path, tiny_config: Config
) -> None:
    assert not data_root.exists()
    command = "import sys; sys.argv[1:] = ['plan', 'tiny', '--json']; from slm.cli.main import main"
    code = f"{command}\ntry: main()\nexcept SystemExit as end: code = end.code\n"
    code += "import json; print(json.dumps([code, sorted(sys.modules)]))"

    def run() -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True
        )
        plan, rest = done.stdout.splitlines()
        assert [stage["stage"] for stage in json.loads(plan)["stages"]] == STAGES
        end, modules = json.loads(rest)
        assert not end
        return set(modules)

    heavy = {"torch", "mlflow", "prefect", "datasets", "matplotlib"}
    assert not heavy & run()
    assert not data_root.exists()
    finish(data_root, tiny_config())
    before = tree(data_root)
    assert not heavy & run()
    assert tree(data_root) == before


def test_an_empty_data_folder_has_everything_to_run(data_root: Path, tiny_config: Config) -> None:
    plan = plan_config(tiny_config())
    assert actions(plan) == ["to run"] * 6
    assert [stage.key is not None for stage in plan.stages] == [True] + [False] * 5
    assert "its key is not known until then" in plan["train"].reasons[0]


# ---- local files ------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path, data_root: Path, tiny_config: Config) -> tuple[PipelineConfig, Path]:
    """A config on a file, with everything made from it."""
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "one"}\n')
    config = tiny_config(**{"data.source": "files", "data.path": str(path)})
    finish(data_root, config)
    return config, path


def test_local_files_are_known_by_size_and_time(
    local: tuple[PipelineConfig, Path], data_root: Path
) -> None:
    config, path = local
    plan = plan_config(config)
    assert actions(plan) == ["reused"] * 6
    assert plan["download"].assumed
    status = path.stat()
    path.write_text('{"text": "two"}\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert plan_config(config)["download"].action == "reused"
    verified = plan_config(config, verify=True)["download"]
    assert (verified.action, verified.assumed) == ("to run", False)
    assert verified.reasons == ("1 file changed: notes.jsonl",)
    other = changed(config, **{"data.path": f"{path.parent}/notes.*"})
    assert not plan_config(other, verify=True).uncounted  # it leads to other documents
    assert not verified.changed
    path.write_text('{"text": "three"}\n')
    plan = plan_config(config)
    assert (plan["download"].action, plan["download"].key) == ("to run", None)
    assert "notes.jsonl: new or changed by size and time" in plan["download"].reasons[0]
    assert plan["download"].assumed
    assert actions(plan) == ["to run"] * 6


def test_a_file_that_was_touched_is_the_same_once_it_is_hashed(
    local: tuple[PipelineConfig, Path], data_root: Path
) -> None:
    config, path = local
    os.utime(path)
    assert plan_config(config)["download"].action == "to run"
    assert plan_config(config, verify=True)["download"].action == "reused"
    made = slm.download(config)  # which hashes it
    assert made.origin == {"notes.jsonl": storage.sha256_file(path)}
    again = plan_config(config)["download"]
    assert (again.key, again.assumed) == (made.key, True)


def test_files_of_before_their_hashes_were_kept_are_known_by_their_times(
    local: tuple[PipelineConfig, Path], data_root: Path
) -> None:
    config, path = local
    (data_root / "cache" / "inputs.json").unlink()
    plan = plan_config(config)
    assert actions(plan) == ["reused"] * 6
    assert plan["download"].assumed
    os.utime(path, (path.stat().st_mtime + 1000,) * 2)
    assert plan_config(config)["download"].action == "to run"
    assert plan_config(config, verify=True)["download"].action == "reused"


def test_files_that_came_and_went_are_named(
    tmp_path: Path, data_root: Path, tiny_config: Config
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    config = tiny_config(**{"data.source": "files", "data.path": str(folder)})
    finish_source(data_root, config)
    (folder / "a.txt").unlink()
    (folder / "c.txt").write_text("c")
    reasons = plan_config(config, verify=True)["download"].reasons
    assert reasons == ("1 file new: c.txt", "1 file gone: a.txt")


def test_the_same_files_at_another_path_are_reused(
    local: tuple[PipelineConfig, Path], tmp_path: Path, data_root: Path
) -> None:
    config, path = local
    other = tmp_path / "moved" / path.name
    other.parent.mkdir()
    shutil.copy(path, other)
    moved = changed(config, **{"data.path": str(other)})
    plan = plan_config(moved, verify=True)
    assert actions(plan)[:5] == ["reused"] * 5
    assert plan.uncounted == {"data.path": (str(path), str(other))}


def test_files_that_are_missing_are_refused_as_a_run_does(
    local: tuple[PipelineConfig, Path],
) -> None:
    config, path = local
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        plan_config(config)


# ---- the hub ----------------------------------------------------------------------------------


def test_a_branch_of_the_hub_is_assumed_to_be_the_commit_that_is_here(
    data_root: Path, tiny_config: Config
) -> None:
    hub = {"data.source": "hub", "data.path": "owner/dataset"}
    config = tiny_config(**hub)
    nothing = plan_config(config)["download"]
    assert (nothing.action, nothing.key) == ("to run", None)
    assert "once the hub is asked" in nothing.reasons[0]
    source = finish_source(data_root, config)
    plan = plan_config(config)["download"]
    assert (plan.action, plan.key, plan.assumed) == ("reused", source.key, True)
    assert "the main branch is assumed to be commit 444444444444 still" in plan.reasons
    pinned = plan_config(changed(config, **{"data.revision": COMMIT}))["download"]
    assert (pinned.action, pinned.key, pinned.assumed) == ("reused", source.key, False)
    other = plan_config(changed(config, **{"data.revision": "5" * 40}))["download"]
    assert (other.action, other.changed) == ("to run", {"data.revision": (None, "5" * 40)})
    branch = plan_config(changed(config, **{"data.revision": "next"}))["download"]
    assert (branch.action, branch.changed) == ("to run", {"data.revision": (None, "next")})


def test_verify_asks_the_hub_for_the_commit(
    data_root: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"data.source": "hub", "data.path": "owner/dataset"})
    finish_source(data_root, config)
    for commit, action in ((COMMIT, "reused"), ("5" * 40, "to run")):
        monkeypatch.setattr(slm.source.hub, "resolve_commit", lambda data, commit=commit: commit)
        stage = plan_config(config, verify=True)["download"]
        assert (stage.action, stage.assumed) == (action, False)
    assert f"commit {COMMIT[:12]} → 555555555555" in stage.reasons


# ---- versions, and what a stage is made from --------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "module", "name"),
    [
        ("download", slm.source.download, "DOWNLOAD_VERSION"),
        ("encode", slm.tokens.encode, "ENCODE_VERSION"),
        ("train", slm.training.identity, "TRAIN_VERSION"),
        ("evaluate", slm.evaluation.identity, "EVALUATE_VERSION"),
        ("report", slm.report.identity, "REPORT_VERSION"),
    ],
)
@pytest.mark.parametrize("source", ["stories", "files", "hub"])
def test_a_version_of_a_stage_that_went_up_is_named(
    stage: str, module: Any, name: str, source: str, tmp_path: Path, data_root: Path,
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "one"}\n')
    config = tiny_config(**{"data.source": source, "data.path": str(path)})
    finish(data_root, config)
    today = getattr(module, name)
    monkeypatch.setattr(module, name, today + 1)
    plan = plan_config(config)
    assert plan.first == plan[stage]
    assert plan[stage].version == (today, today + 1)
    assert not plan[stage].changed
    assert [s.version for s in plan.stages if s.stage != stage] == [None] * 5


def test_another_generator_of_stories_is_named(
    data_root: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(data_root, tiny_config())
    monkeypatch.setattr(slm.source.download, "STORIES_VERSION", 77)
    assert (
        "the generator of stories: version 1 → version 77"
        in plan_config(tiny_config())["download"].reasons
    )


def test_other_shards_are_named_with_the_setting_that_made_them(
    data_root: Path, tiny_config: Config
) -> None:
    """Encoded, but not trained on: the training is explained by the vocabulary."""
    config = tiny_config()
    finish(data_root, config)
    other = changed(config, **{"data.vocab_size": 600, "train.seed": 3})
    shards = finish_shards(data_root, other, finish_source(data_root, other))
    plan = plan_config(other)
    assert actions(plan) == ["reused", "reused"] + ["to run"] * 4
    assert plan["train"].changed == {"data.vocab_size": (512, 600), "train.seed": (1337, 3)}
    assert f"other shards: {shards.name}" in plan["train"].reasons[0]
    assert plan["train"].key


def test_the_nearest_of_several_results_is_the_one_that_is_compared(
    data_root: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    shards = finish_shards(data_root, config, finish_source(data_root, config))
    near = changed(config, **{"train.seed": 2})
    far = changed(config, **{"train.seed": 3, "train.beta1": 0.8, "model.n_layer": 2})
    first, _ = (finish_run(data_root, each, shards) for each in (near, far))
    stage = plan_config(config)["train"]
    assert stage.nearest == str(first.path)
    assert stage.changed == {"train.seed": (2, 1337)}


def test_results_without_made_json_are_explained_by_the_runs_that_they_led_to(
    data_root: Path, tiny_config: Config
) -> None:
    """As older data folders are."""
    config = tiny_config()
    finish(data_root, config)
    for made in data_root.rglob(storage.MADE):
        made.unlink()
    assert actions(plan_config(config)) == ["reused"] * 6
    for setting, stage in {
        "data.seed": "download", "data.val_fraction": "encode", "train.beta1": "train",
        "evaluate.documents": "evaluate", "report.seed": "report",
    }.items():  # fmt: skip
        value = {"data.val_fraction": 0.2, "train.beta1": 0.5}.get(setting, 7)
        plan = plan_config(changed(config, **{setting: value}))
        assert plan.first == plan[stage]
        assert list(plan[stage].changed) == [setting]


# ---- runs that are not finished, damaged, or of former keys -----------------------------------


def test_an_unfinished_training_is_resumed_from_its_last_whole_checkpoint(
    data_root: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    shards = finish_shards(data_root, config, finish_source(data_root, config))
    run = start_run(data_root, config, shards)
    assert plan_config(config)["train"].action == "to run"
    save(run, 200)
    save(run, 300)
    stage = plan_config(config)["train"]
    assert (stage.action, stage.step, stage.max_steps) == ("resumed", 300, STEPS)
    assert stage.key == run.settings.key
    (run.checkpoints[-1][1] / "model.safetensors").write_text("")
    assert plan_config(config)["train"].step == 200
    assert plan_config(changed(config, **{"train.checkpoint_every": 9}))["train"].step == 200
    refused = plan_config(changed(config, **{"train.evaluate_every": 9}))["train"]
    assert refused.action == "refused"
    assert refused.changed == {"train.evaluate_every": (2, 9)}
    assert "is not finished" in refused.reasons[0]


def test_an_interrupted_encoding_is_resumed(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config()
    finish_source(data_root, config)
    folder = plan_config(config)["encode"].result
    assert folder is not None
    units = slm.tokens.encode.units_folder(Path(folder))
    units.mkdir(parents=True)
    (units / "00000.unit").touch()
    assert plan_config(config)["encode"].action == "resumed"


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("sources/*/*.parquet", "download"),
        ("shards/*/*.bin", "encode"),
        ("runs/*/evaluation/evaluation.json", "evaluate"),
        ("runs/*/report/index.html", "report"),
    ],
)
def test_damage_is_seen_by_size_and_with_verify_by_hash(
    verify: bool, file: str, stage: str, data_root: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    finish(data_root, config)
    path = next(data_root.glob(file))
    content = path.read_bytes()
    path.write_bytes(content[::-1] if verify else content[1:])
    plan = plan_config(config, verify=verify)
    assert plan[stage].action == "to run"
    assert "damaged" in " ".join(plan[stage].reasons)
    if verify:
        assert plan_config(config)[stage].action == "reused"


def test_a_run_whose_key_had_the_cadence_is_reused(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config(**{"train.evaluate_every": 50, "train.checkpoint_every": 70})
    shards = finish_shards(data_root, config, finish_source(data_root, config))
    run = finish_run(data_root, config, shards, former=True)
    for same in (config, changed(config, **{"train.checkpoint_every": 5})):
        stage = plan_config(same)["train"]
        assert (stage.action, stage.key) == ("reused", run.settings.key)


def test_another_cadence_chooses_the_best_checkpoint_again(
    data_root: Path, tiny_config: Config
) -> None:
    config = tiny_config(**{"train.evaluate_every": 100})
    finish(data_root, config)
    plan = plan_config(changed(config, **{"train.evaluate_every": 500}))
    assert actions(plan) == ["reused"] * 6  # its journal shows that the last step is the best too
    assert plan["train"].changed == {"train.evaluate_every": (100, 500)}
    finer = plan_config(changed(config, **{"train.evaluate_every": 300}))
    assert (finer["train"].action, finer["evaluate"].action) == ("reused", "reused")
    refused = plan_config(changed(config, **{"train.evaluate_every": 33}))["train"]
    assert refused.action == "refused"
    assert "which were not kept" in refused.reasons[0]
    same = plan_config(changed(config, **{"train.evaluate_documents": 5000}))["train"]
    assert same.action == "refused"  # 1,000 documents instead of 64, in every checkpoint


# ---- the rest ---------------------------------------------------------------------------------


def test_a_version_whose_registry_is_gone_is_made_again(
    data_root: Path, tiny_config: Config
) -> None:
    config = tiny_config()
    finish(data_root, config)
    (data_root / "mlflow" / "mlflow.db").unlink()
    stage = plan_config(config)["register"]
    assert stage.action == "to run"
    assert "models:/slm/1 is gone" in stage.reasons[0]


def test_what_counts_in_no_key_is_listed(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config()
    finish(data_root, config)
    other = {"data.workers": 3, "retrain.approval": True, "train.keep_checkpoints": 9}
    plan = plan_config(changed(config, **other))
    assert actions(plan) == ["reused"] * 6
    assert plan.uncounted == {
        name: (before, other[name]) for name, before in config.flat().items() if name in other
    }


def test_the_time_is_a_limit_an_estimate_or_unknown(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config()
    empty = plan_config(config)
    assert empty["train"].seconds is None
    assert "train" in empty.unknown
    limit = changed(config, **{"train.max_steps": None, "train.max_seconds": 30.0})
    stage = plan_config(limit)["train"]
    assert (stage.seconds, stage.seconds_from) == (30.0, "its limit in seconds")
    assert stage.memory_from == "at least, by the model's shape"
    finish(data_root, config)
    longer = plan_config(changed(config, **{"data.seed": 5}))
    assert longer["download"].seconds is not None
    assert longer["download"].seconds_from.startswith("estimated: as tiny-")
    assert plan_config(config).seconds == 0
    assert not plan_config(config).unknown


def test_a_run_is_compared_with_its_recipe(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config()
    finish(data_root, config)
    tried = changed(config, **{"train.beta1": 0.5, "evaluate.documents": 3, "data.workers": 2})
    run = finish(data_root, tried)
    plan = plan_config(config, against=run)
    assert plan.run == run.name
    assert actions(plan) == ["reused"] * 6
    assert plan["train"].changed == {"train.beta1": (0.5, 0.9)}
    assert plan["evaluate"].changed == {"evaluate.documents": (3, None)}
    assert plan.uncounted == {"data.workers": (2, 0)}
    longer = plan_config(changed(config, **{"train.max_steps": 9}), against=run)
    assert longer["train"].changed == {"train.beta1": (0.5, 0.9), "train.max_steps": (4, 9)}
    assert longer["train"].nearest == str(run.path)


def test_an_unfinished_run_is_compared_too(data_root: Path, tiny_config: Config) -> None:
    config = tiny_config()
    shards = finish_shards(data_root, config, finish_source(data_root, config))
    run = start_run(data_root, changed(config, **{"train.seed": 2}), shards)
    plan = plan_config(config, against=run)
    assert plan["train"].changed == {"train.seed": (2, 1337)}


def test_from_python(project: Path, data_root: Path) -> None:
    plan = slm.plan("tiny", {"train.max_steps": 7})
    assert plan.first == plan["download"]
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        slm.plan("tini")
    assert DataRoot(data_root).runs() == []
