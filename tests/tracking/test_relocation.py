"""A data folder that was moved: MLflow's own store reads and writes where it is now."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    add_report,
    empty_store,
    finish_run,
    start_run,
    step_events,
    write_journal,
)
from tiny_run import shards_of

from slm.records import Run, Version
from slm.registry import register
from slm.registry.versions import list_versions, resolve
from slm.run_folder import DataRoot
from slm.tracking import mirror, relocation, store
from slm.tracking.server import connect, store_uri

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def register_run(root: Path, key: str = "ab" * 32) -> tuple[Run, Version]:
    path = start_run(root, key=key)
    write_journal(path, step_events(1, 20))
    run = finish_run(path, key=key)
    evaluation, report = add_evaluation(run), add_report(run)
    return run, register.register(CONFIG, run, evaluation, report, shards_of(run), root=root)


def addresses(root: Path) -> set[str]:
    """Of our own artifacts; MLflow's experiment `Default` is not ours."""
    with closing(sqlite3.connect(root / "mlflow" / "mlflow.db")) as rows:
        return {
            address
            for table, column in COLUMNS
            for (address,) in rows.execute(f"SELECT {column} FROM {table}")
            if "/mlruns/" not in address
        }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    root = empty_store(tmp_path / "old data")
    register_run(root)
    return root


@pytest.mark.parametrize("noted", [True, False], ids=["with a note", "of an earlier version"])
def test_a_moved_folder_serves_and_registers_where_it_is(
    old: Path, tmp_path: Path, noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    new = tmp_path / "deeper" / "new data"
    new.parent.mkdir()
    old.rename(new)
    if not noted:
        (new / "mlflow" / "mlflow.db.folder").unlink()
    (new / "runs").rename(new / "gone")  # so the version is served from the registry
    with caplog.at_level(logging.WARNING):
        folder = resolve("models:/slm/1", new)
    [warning] = [r.getMessage() for r in caplog.records if r.name == relocation.__name__]
    assert str(old) in warning
    assert str(new) in warning
    assert folder.is_relative_to(new)
    (new / "gone").rename(new / "runs")

    _, second = register_run(new, "cd" * 32)
    assert second.uri == "models:/slm/2"
    assert not old.exists()
    below = (new / "mlflow" / "artifacts").as_uri()
    assert {address for address in addresses(new) if not address.startswith(below)} == set()
    with closing(sqlite3.connect(new / "mlflow" / "mlflow.db.before-move")) as before:
        (address,) = before.execute("SELECT artifact_uri FROM runs").fetchone()
    assert address.startswith(old.as_uri())
    caplog.clear()
    assert len(list_versions(new)) == 2
    assert not [r for r in caplog.records if r.name == relocation.__name__]


def test_what_is_stored_of_a_run_holds_no_path_of_the_data_folder(
    old: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new data"
    old.rename(new)
    [run] = DataRoot(new).runs()
    for note in (run.path / "mlflow.json", *register.registered_notes(run.path)):
        assert "old data" not in note.read_text()
    client = connect(store_uri(new))
    [before] = client.search_runs(["1"])
    assert mirror.sync(run) == before.info.run_id
    (run.path / "mlflow.json").unlink()
    assert mirror.sync(run) == before.info.run_id  # its tags name the run, not the place
    record, evaluation = run.record, run.evaluation
    assert record is not None
    assert evaluation is not None
    again = register.register(CONFIG, record, evaluation, run.report, shards_of(record), root=new)
    assert (again.uri, again.reused) == ("models:/slm/1", True)


def test_a_copy_has_artifacts_of_its_own(old: Path, tmp_path: Path) -> None:
    import shutil

    new = tmp_path / "copy"
    shutil.copytree(old, new)
    before = addresses(old)
    register_run(new, "cd" * 32)
    assert addresses(old) == before
    assert all(address.startswith(new.as_uri()) for address in addresses(new))


def test_files_that_are_only_in_the_old_folder_are_not_lost(old: Path, tmp_path: Path) -> None:
    """An earlier version went on to write there after a move."""
    new = tmp_path / "new data"
    old.rename(new)
    (old / "mlflow").mkdir(parents=True)
    (new / "mlflow" / "artifacts").rename(old / "mlflow" / "artifacts")
    store.prepare(new / "mlflow" / "mlflow.db")
    with closing(sqlite3.connect(new / "mlflow" / "mlflow.db")) as rows:
        (served,) = rows.execute("SELECT storage_location FROM model_versions").fetchone()
        (made,) = rows.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'slm'"
        ).fetchone()
    assert served.startswith(old.as_uri())
    assert made.startswith(new.as_uri())


def test_other_places_and_other_stores_are_left_alone(old: Path, tmp_path: Path) -> None:
    client = connect(store_uri(old))
    client.create_experiment("bucket", artifact_location="s3://models/mlflow/artifacts")
    client.create_experiment("shared", artifact_location="file:///srv/shared/mlflow/artifacts")
    new = tmp_path / "new data"
    old.rename(new)
    moved = connect(store_uri(new))
    assert moved.get_experiment_by_name("bucket").artifact_location.startswith("s3://models/")
    assert "/srv/shared/" in moved.get_experiment_by_name("shared").artifact_location
    other = tmp_path / "elsewhere.db"
    connect(f"sqlite:///{other}")
    assert relocation.follow(other) is None
    assert not list(tmp_path.glob("elsewhere.db.folder"))
