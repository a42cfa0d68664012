"""Retention: what nothing needs is deleted; a version's source, and what can resume, never is."""

import json
import os
import shutil
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_checkpoint,
    add_evaluation,
    commit_data,
    finish_run,
    start_run,
)

from slm import storage
from slm.errors import NewerFormat
from slm.records import Checkpoint, Run, Shards, Source
from slm.retention import Item, Retention, collect, survey
from slm.sweeps.definition import Sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, SweepResult, Trial
from slm.sweeps.space import Dimension


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "my data"


def finished(root: Path, key: str) -> Run:
    path = start_run(root, key=key * 32)
    run = finish_run(path, key=key * 32)
    add_evaluation(run)
    return run


def look(root: Path, *registered: str, keep_runs: int = 0, grace: float = 0) -> Retention:
    return survey(root, registered, keep_runs=keep_runs, grace=grace)


def names(items: tuple[Item, ...]) -> set[str]:
    return {item.path.name for item in items}


def test_what_a_version_was_made_of_stays(root: Path) -> None:
    run = finished(root, "aa")
    by_registry = look(root, run.name)
    (run.path / "registered.json").write_text("{}")
    by_note = look(root)
    assert by_registry.going == by_note.going == ()
    assert names(by_note.staying) == {run.name, "tiny-555555555555", "tiny-666666666666"}
    (run.path / "registered.json").unlink()
    gone = look(root)
    assert names(gone.going) == {run.name, "tiny-555555555555", "tiny-666666666666"}
    assert gone.bytes == sum(item.bytes for item in gone.going) > 0


def test_a_survey_deletes_nothing_and_collect_what_it_listed(root: Path) -> None:
    kept, older = finished(root, "aa"), finished(root, "bb")
    before = sorted(root.rglob("*"))
    surveyed = look(root, kept.name)
    assert sorted(root.rglob("*")) == before
    assert names(surveyed.going) == {older.name}
    assert collect(surveyed) == surveyed.bytes
    assert kept.path.is_dir()
    assert not older.path.exists()
    assert storage.read_record(kept.path, Run) is not None
    assert collect(surveyed) == 0  # again


def test_the_newest_runs_stay_and_what_is_new(root: Path) -> None:
    runs = [finished(root, key) for key in ("aa", "bb", "cc")]
    for age, run in enumerate(runs):
        for path in (run.path, *run.path.iterdir()):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert names(look(root, keep_runs=1).going) == {runs[1].name, runs[2].name}
    assert names(look(root, keep_runs=2).going) == {runs[2].name}
    (runs[2].path / "metrics.jsonl").touch()
    assert names(look(root, keep_runs=2).going) == {runs[1].name}  # the last is the newest now
    reasons = {i.reason for i in look(root, grace=3600).staying if i.path == runs[2].path}
    assert reasons == {"changed within the last 60 minutes"}


def test_failed_starts_are_not_among_the_newest_runs(root: Path) -> None:
    """However many there are, and however new."""
    runs = [finished(root, key) for key in ("aa", "bb")]
    for run in runs:
        for path in (run.path, *run.path.iterdir()):
            os.utime(path, (1e9, 1e9))
    stubs = [start_run(root, key=key * 32) for key in ("c1", "c2", "c3", "c4", "c5")]
    assert names(look(root, keep_runs=2).going) == {stub.name for stub in stubs}


def test_an_unfinished_run_keeps_all_that_it_can_resume_from(root: Path) -> None:
    path = start_run(root)
    assert path.name in names(look(root).going)  # no step was made: nothing is lost
    add_checkpoint(path, 10)
    add_checkpoint(path, 20)
    (path / "checkpoints" / "step_000030.tmp").mkdir()
    (path / "checkpoints" / "step_000025.corrupt-123").mkdir()
    surveyed = look(root)
    assert names(surveyed.going) == {"step_000030.tmp", "step_000025.corrupt-123"}
    assert {"tiny-555555555555", "tiny-666666666666", path.name} <= names(surveyed.staying)


def test_a_run_in_training_is_not_touched(root: Path) -> None:
    path = start_run(root)
    (path / "checkpoints" / "step_000030.tmp").mkdir()
    with storage.lock(path / "lock"):
        surveyed = look(root)
        assert surveyed.going == ()
        assert {i.reason for i in surveyed.staying if i.path == path} == {"in training"}


def test_a_run_that_came_into_use_after_the_survey_stays(root: Path) -> None:
    path = start_run(root)
    surveyed = look(root)
    assert path.name in names(surveyed.going)
    with storage.lock(path / "lock"):
        collect(surveyed)
        assert path.is_dir()
    (path / "registered.json").write_text("{}")
    collect(surveyed)
    assert path.is_dir()


def test_of_a_finished_run_the_best_and_the_last_checkpoint_stay(root: Path) -> None:
    run = finished(root, "aa")
    add_checkpoint(run.path, 30)
    surveyed = look(root, run.name)
    assert names(surveyed.going) == {"step_000030"}
    weights = run.checkpoint("best") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert look(root, run.name).going == ()  # a damaged run may need the others


def test_leftovers_are_deleted_unless_a_process_works_on_them(root: Path) -> None:
    run = finished(root, "aa")
    shards = root / "shards"
    left = [
        shards / "tiny-777777777777.tmp",
        shards / ".tiny-777777777777.units",
        shards / ".tiny-888888888888.old",
        root / "sources" / "tiny-777777777777.corrupt-1234",
        run.path / "report.tmp",
        root / "mlflow" / "models" / "tiny-1-555555555555.tmp",
        root / "reproduced" / "tiny-abcd",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "bytes").write_bytes(bytes(1000))
    (run.path / "mlflow.json.tmp").write_text("{")
    surveyed = look(root, run.name)
    assert surveyed.bytes == 1000 * len(left) + 1
    listed = [item.path for item in surveyed.going]
    assert sorted(listed) == sorted([*left, run.path / "mlflow.json.tmp"])  # each of them once
    assert {item.path for item in look(root, run.name, grace=60).going} == set(left[:-1])
    with (
        storage.lock(shards / ".tiny-777777777777.lock"),
        storage.lock(left[-1] / "lock"),
    ):
        surveyed = look(root, run.name)
    assert {i.path for i in surveyed.staying if i.reason == "in use"} == {
        left[0],
        left[1],
        left[-1],
    }
    collect(look(root, run.name))
    assert not any(path.exists() for path in left)
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == ["tiny-666666666666"]


def test_what_cannot_be_read_stays(root: Path) -> None:
    run = finished(root, "aa")
    for record in ("shards/tiny-666666666666", f"runs/{run.name}"):
        (root / record / "record.json").write_text("{torn")
    surveyed = look(root)
    assert {run.name, "tiny-666666666666"} <= names(surveyed.staying)


def test_shards_that_a_kept_run_shares_stay(root: Path) -> None:
    run = finished(root, "aa")
    other = root / "shards" / "other-777777777777"
    shutil.copytree(root / "shards" / "tiny-666666666666", other)
    record = storage.read_record(other, Shards)
    assert record is not None
    storage.write_record(other, record.model_copy(update={"key": "7" * 64, "source_key": "9" * 64}))
    assert names(look(root, run.name).going) == {other.name}
    described = json.loads((run.path / "config.json").read_bytes())
    assert described["shards_key"] == "6" * 64
    assert CONFIG.recipe == "tiny"
    assert storage.read_record(run.checkpoint("last"), Checkpoint) is not None


def test_an_empty_data_folder_has_nothing(root: Path) -> None:
    surveyed = look(root)
    assert (surveyed.going, surveyed.staying) == ((), ())


# ---- at the same time -------------------------------------------------------------------------


@pytest.fixture
def data(root: Path) -> tuple[Path, Path]:
    """A source and its shards, which no run needs."""
    shards = commit_data(root, "tiny")
    return root / "sources" / "tiny-555555555555", shards


def test_what_a_stage_reads_stays_with_a_line_that_says_so(
    root: Path, data: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    surveyed = look(root)
    assert {item.path for item in surveyed.going} == set(data)
    with storage.reading(*data):
        assert {(i.path, i.reason) for i in look(root).staying} == {(p, "in use") for p in data}
        assert collect(surveyed) == 0
    assert all(path.is_dir() for path in data)
    assert [line for line in caplog.messages if line.endswith("stays: in use")] == [
        f"{path} stays: in use" for path in reversed(data)
    ]
    assert collect(surveyed) == surveyed.bytes > 0
    assert not any(path.exists() for path in data)


def test_a_source_that_is_being_encoded_stays(root: Path, data: tuple[Path, Path]) -> None:
    """The survey was made before; `slm encode` reads the source as `collect` comes to it."""
    surveyed = look(root)
    source, shards = data
    shutil.rmtree(shards)
    with storage.reading(source), storage.lock(storage.lock_of(shards)):
        collect(surveyed)
    assert storage.read_record(source, Source) is not None


def test_shards_that_a_run_started_on_after_the_survey_stay(
    root: Path, data: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    surveyed = look(root)
    add_checkpoint(start_run(root), 10)
    assert collect(surveyed) == 0
    assert all(path.is_dir() for path in data)
    assert f"{data[1]} stays: a kept run needs it" in caplog.messages


def test_no_process_holds_what_is_deleted(root: Path, data: tuple[Path, Path]) -> None:
    """A builder that comes while `collect` deletes waits, as for another builder."""
    start_run(root, key="cc" * 32)
    collect(look(root))
    for folder in data:
        with storage.lock(storage.lock_of(folder), wait=False):
            assert not folder.exists()


# ---- newer formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["record.json", "config.json"])
def test_a_record_of_a_newer_slm_ends_it_and_nothing_is_deleted(root: Path, file: str) -> None:
    run = finished(root, "aa")
    add_checkpoint(start_run(root, key="bb" * 32), 10)
    path = run.path / file
    fields = {**json.loads(path.read_bytes()), "format": storage.FORMAT + 1}
    if fields.pop("sha256", None):
        fields["sha256"] = storage.sha256_json(fields)
    path.write_text(json.dumps(fields))
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    with pytest.raises(NewerFormat, match=f"{file} is of format"):
        look(root)
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before


# ---- sweeps -------------------------------------------------------------------------------------


def test_the_runs_of_a_sweep_stay_until_it_is_complete_and_then_the_best(root: Path) -> None:
    runs = [finished(root, key) for key in ("aa", "bb", "cc")]
    sweep = Sweep(
        name="rates", recipe="quickstart", space={"model.n_layer": Dimension(choices=(1,))}
    )
    folder = SweepFolder.of(sweep, root)
    with folder.locked():
        folder.write_sweep(sweep, {})
    trials = []
    for number, run in enumerate(runs[:2]):
        seeds = (SeedRun(seed=1, state="finished", run=run.name, val_bpb=1.0 - number),)
        trials.append(Trial(number=number, batch=0, values={}, overrides={}, seeds=seeds))
        folder.write_trial(trials[-1])
    during = {item.path.name: item.reason for item in look(root).staying}
    assert "not complete" in during[runs[0].name]
    assert "not complete" in during[runs[1].name]
    assert runs[2].name in names(look(root).going)
    folder.write_result(
        SweepResult(name="rates", key=sweep.key, ended="trials", best=1, seconds=0, tokens=0)
    )
    assert {runs[0].name, runs[2].name} <= names(look(root).going)
    assert f"the best trial of the sweep {folder.name}" in {i.reason for i in look(root).staying}
    assert runs[0].name in names(look(root, keep_runs=2).staying)  # which counts the others alone
    collect(look(root))
    assert len(folder.trials) == 2
    assert folder.result is not None
