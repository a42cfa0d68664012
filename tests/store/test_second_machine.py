"""`store:` of a project: what one machine made, another one does not compute."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stores import assert_whole, blob_of, entries, facts, memory_store, only_run, verify_folder
from tiny_pipelines import PIPELINES
from tiny_run import CLEAN, code, flip_byte

import slm
import slm.evaluation.evaluate
import slm.report.write
import slm.source.download
import slm.tokens.encode
import slm.training.launch
import slm.training.supervisor
from slm import storage
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.orchestration.outline import run_pipeline
from slm.orchestration.stages import need_shards
from slm.planning.plan import plan_config
from slm.recipes import load_recipe, store_address

STAGES = ["download", "encode", "train", "evaluate", "report"]
Machine = Callable[[str], Path]


@dataclass(frozen=True)
class First:
    """A first machine: its data folder, the store that it filled, and what its run returned."""

    root: Path
    store: str
    made: dict[str, Any]


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def on(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes a data folder the one in use, as on another machine; returns it."""

    def machine(name: str) -> Path:
        monkeypatch.setenv("SLM_DATA", str(tmp_path / name))
        return tmp_path / name

    return machine


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> str:
    address = memory_store()
    monkeypatch.setenv("SLM_STORE", address)
    return address


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """A machine that has run the pipeline once, up to the report, and filled its store."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "pipelines.yaml").write_text(PIPELINES)
    with pytest.MonkeyPatch.context() as patch, code(CLEAN):
        patch.chdir(folder)
        patch.setenv("SLM_DATA", str(folder / "a"))
        patch.setenv("SLM_STORE", f"file://{folder / 'store'}")
        made = run_pipeline(load_recipe("tiny"), "report")
    return First(folder / "a", f"file://{folder / 'store'}", made)


def config(**overrides: Any) -> PipelineConfig:
    return load_recipe("tiny", overrides)


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage fail that computes anything."""

    def computes(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a stage computes")

    monkeypatch.setattr(slm.source.download, "stories", computes)
    monkeypatch.setattr(slm.tokens.encode, "plan_units", computes)
    monkeypatch.setattr(slm.training.supervisor, "supervise", computes)
    monkeypatch.setattr(slm.evaluation.evaluate, "score_documents", computes)
    monkeypatch.setattr(slm.report.write, "gather", computes)


def test_a_second_machine_computes_nothing(
    first: First, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.made["reused"] == []
    kinds = sorted(entry.kind for entry in assert_whole(first.store))
    assert kinds == sorted(["source", "shards", "run", "evaluation", "report"])
    second = on("b")
    monkeypatch.setenv("SLM_STORE", first.store)
    forbid_work(monkeypatch)
    again = run_pipeline(config(), "report")
    assert again["pulled"] == again["reused"] == STAGES
    assert again["val_bpb"] == first.made["val_bpb"]
    assert verify_folder(second) == verify_folder(first.root)
    finished = only_run(first.root).verified_record
    assert facts(only_run(second).verified_record) == facts(finished)
    third = run_pipeline(config(), "report")
    assert third["reused"] == STAGES
    assert "pulled" not in third


def test_a_plan_shows_what_would_be_pulled_and_writes_nothing(
    first: First, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = on("b")
    monkeypatch.setenv("SLM_STORE", first.store)
    planned = plan_config(config())
    assert [planned[stage].action for stage in STAGES] == ["to pull"] * 5
    assert planned["train"].key == only_run(first.root).settings.key
    assert planned["register"].action == "to run"
    assert not second.exists()
    other = plan_config(config(**{"train.learning_rate": 1e-4}))
    assert [other[stage].action for stage in STAGES[:3]] == ["to pull", "to pull", "to run"]
    run_pipeline(config(), "encode")
    assert [plan_config(config())[stage].action for stage in STAGES] == [
        "reused", "reused", "to pull", "to pull", "to pull",
    ]  # fmt: skip


def test_what_was_there_before_the_store_is_sent_when_it_is_reused(
    on: Machine, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("a")
    monkeypatch.setenv("SLM_STORE", "")
    run_pipeline(config(), "encode")
    assert entries(store) == []
    monkeypatch.setenv("SLM_STORE", store)
    assert run_pipeline(config(), "encode")["reused"] == STAGES[:2]
    assert [entry.kind for entry in entries(store)] == ["source", "shards"]


def test_an_unfinished_training_takes_its_end_from_the_store(
    first: First, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = on("b")
    settings = config()
    shards = slm.encode(settings, slm.download(settings))
    slm.training.launch.prepare(settings, shards)
    monkeypatch.setenv("SLM_STORE", first.store)
    forbid_work(monkeypatch)
    assert run_pipeline(settings, "train")["pulled"] == ["train"]
    finished = only_run(first.root).verified_record
    assert facts(only_run(second).verified_record) == facts(finished)


def test_a_store_that_is_down_is_a_warning_and_the_pipeline_computes(
    on: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_STORE", f"file://{tmp_path / 'file' / 'store'}")
    on("a")
    with caplog.at_level(logging.WARNING, "slm"):
        made = run_pipeline(config(), "encode")
        plan_config(config())
    assert made["reused"] == []
    warnings = [r.getMessage() for r in caplog.records if "the store" in r.getMessage()]
    assert len(warnings) == 1, "one for all stages"
    assert "cannot be read" in warnings[0]


def test_a_damaged_store_is_a_warning_and_the_stage_is_computed(
    on: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = f"file://{tmp_path / 'store'}"
    monkeypatch.setenv("SLM_STORE", store)
    first = on("a")
    run_pipeline(config(), "encode")
    flip_byte(blob_of(store, "shards", "train_00000.bin"))
    second = on("b")
    with caplog.at_level(logging.WARNING, "slm"):
        made = run_pipeline(config(), "encode")
    assert made["pulled"] == ["download"]
    assert "is damaged" in caplog.text
    assert verify_folder(second) == verify_folder(first)
    assert not list(second.rglob("*.tmp"))


def test_pipelines_yaml_names_the_store_and_the_environment_wins(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "pipelines.yaml"
    assert store_address() is None
    path.write_text(f"store: s3://bucket/slm\n{path.read_text()}")
    assert store_address() == "s3://bucket/slm"
    monkeypatch.setenv("SLM_STORE", "memory://x")
    assert store_address() == "memory://x"
    monkeypatch.setenv("SLM_STORE", "")
    assert store_address() is None
    monkeypatch.delenv("SLM_STORE")
    path.write_text(path.read_text().replace("s3://bucket/slm", "[a]"))
    with pytest.raises(UserError, match="store="):
        store_address()


def test_a_wrong_address_is_refused_before_any_work(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = on("a")
    monkeypatch.setenv("SLM_STORE", "s3://AKIA:hunter2@bucket")
    with pytest.raises(UserError, match="no credentials") as refused:
        run_pipeline(config(), "download")
    assert "hunter2" not in str(refused.value)
    assert not (root / "sources").exists()


def test_no_key_or_record_has_the_store_in_it(first: First, on: Machine) -> None:
    second = on("b")
    run_pipeline(config(), "encode")
    for kind in ("sources", "shards"):
        names = [sorted(p.name for p in (r / kind).iterdir()) for r in (first.root, second)]
        assert names[0] == names[1]
    for path in first.root.rglob("*.json"):
        assert first.store not in path.read_text()


def test_a_store_that_is_readable_alone_is_asked_all_the_same(
    on: Machine, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on("a")
    run_pipeline(config(), "encode")
    on("b")
    monkeypatch.setenv("SLM_FAULT", "store.blob:1:eio")
    storage.reset_fault_points()
    other = config(**{"data.vocab_size": 600})
    with caplog.at_level(logging.WARNING, "slm"):
        assert run_pipeline(other, "encode")["pulled"] == ["download"]
        assert "cannot be written" in caplog.text
        assert run_pipeline(config(), "encode")["pulled"] == ["encode"]


def test_an_entry_of_a_newer_slm_is_a_warning(
    on: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLM_STORE", f"file://{tmp_path / 'store'}")
    on("a")
    run_pipeline(config(), "download")
    [entry] = (tmp_path / "store" / "source").iterdir()
    fields = {"format": 99}
    entry.write_text(storage.to_json({**fields, "sha256": storage.sha256_json(fields)}))
    on("b")
    with caplog.at_level(logging.WARNING, "slm"):
        assert run_pipeline(config(), "download")["reused"] == []
    assert "format 99" in caplog.text


def test_the_shards_of_a_run_are_pulled_where_they_are_gone(
    first: First, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = on("b")
    shutil.copytree(first.root / "runs", root / "runs")
    monkeypatch.setenv("SLM_STORE", first.store)
    forbid_work(monkeypatch)
    run = only_run(root)
    assert need_shards(run).key == run.settings.shards_key
