"""The mirror: whatever is killed, repeated or down, MLflow ends with each point once."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pynvml
import pytest
from mlflow import MlflowClient
from run_folders import (
    CONFIG,
    PLAN,
    START,
    add_evaluation,
    add_report,
    empty_store,
    finish_run,
    killed_after,
    start_run,
    step_events,
    write_journal,
)
from scored import add_scores, task_of

from slm import storage
from slm.config import RegistryConfig
from slm.errors import SlmError, UserError
from slm.run_folder import RunFolder
from slm.tracking import mirror, store, system
from slm.tracking.entities import params
from slm.tracking.server import connect, explained, tracking_uri


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with an empty store, at a path with a space."""
    return empty_store(tmp_path / "my data")


def points(root: Path, run_id: str, key: str) -> list[tuple[int, float, int]]:
    client = connect(tracking_uri(CONFIG, root))
    return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, key)]


def expected(first: int = 1, last: int = 60) -> list[tuple[int, float, int]]:
    return [(s, 1 / s, int((START + s / 4) * 1000)) for s in range(first, last + 1)]


def status(root: Path, run_id: str) -> str:
    client = connect(tracking_uri(CONFIG, root))
    return str(client.get_run(run_id).info.status)


def test_the_server_is_the_configs_then_the_environments_then_a_file_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(CONFIG, tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(CONFIG, tmp_path) == "http://127.0.0.1:5000"
    registry = RegistryConfig(tracking_uri="http://127.0.0.1:6000")
    config = CONFIG.model_copy(update={"registry": registry})
    assert tracking_uri(config, tmp_path) == "http://127.0.0.1:6000"


def test_a_finished_run_is_mirrored_whole(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    finish_run(path)
    run_id = mirror.sync(RunFolder(path))

    client = connect(tracking_uri(CONFIG, root))
    run = client.get_run(run_id)
    assert points(root, run_id, "train_loss") == expected()
    assert [step for step, _, _ in points(root, run_id, "val_bpb")] == [10, 20, 30, 40, 50, 60]
    assert run.info.status == "FINISHED"
    assert run.info.start_time == START * 1000
    assert run.info.end_time == (START + 15) * 1000
    assert run.data.params["model.n_embd"] == "32"
    assert run.data.params["train.max_steps"] == "60"
    assert run.data.tags["environment.torch"] == "2.13.0"
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert (root / "mlflow" / "artifacts" / run_id / "artifacts" / "config.json").exists()

    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation"}
    assert inputs["training"].digest != inputs["validation"].digest
    assert json.loads(inputs["training"].source)["revision"] == "r1"
    assert json.loads(inputs["training"].profile)["documents"] == 60

    models = {m.name: m for m in client.search_logged_models([run.info.experiment_id])}
    assert set(models) == {"step_000050", "step_000060"}
    best = models["step_000050"]
    assert best.status == "READY"
    assert best.tags["slm.role"] == "best"
    assert best.tags["slm.step"] == "50"
    measured = {m.key: (m.step, m.value, m.dataset_digest) for m in best.metrics}
    assert measured["val_bpb"] == (50, 1 / 50, inputs["validation"].digest)
    assert sorted(o.step for o in run.outputs.model_outputs) == [50, 60]


def test_a_second_sync_changes_nothing(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    finish_run(path)
    run_id = mirror.sync(RunFolder(path))
    before = dump(root)
    assert mirror.sync(RunFolder(path)) == run_id
    (path / "mlflow.json").unlink()
    assert mirror.sync(RunFolder(path)) == run_id
    assert dump(root) == before


def dump(root: Path) -> dict[str, list[str]]:
    """The content of every table of the store."""
    import sqlite3

    with sqlite3.connect(root / "mlflow" / "mlflow.db") as database:
        names = [
            n for (n,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        tables = {n: sorted(map(repr, database.execute(f"SELECT * FROM {n}"))) for n in names}
    database.close()
    return tables


def test_a_resumed_training_gives_each_step_once(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 35))
    run_id = mirror.sync(RunFolder(path))
    assert status(root, run_id) == "KILLED"
    write_journal(path, [{"event": "resume", "step": 30, "time": START + 100}])
    write_journal(path, step_events(31, 60, START + 100))
    with storage.lock(path / "lock"):
        mirror.sync(RunFolder(path))
        assert status(root, run_id) == "RUNNING"
    finish_run(path)
    assert mirror.sync(RunFolder(path)) == run_id
    assert status(root, run_id) == "FINISHED"
    assert [(s, v) for s, v, _ in points(root, run_id, "train_loss")] == [
        (s, 1 / s) for s in range(1, 61)
    ]


def test_a_journal_that_was_cut_back_is_read_again(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 35))
    run_mirror = mirror.RunMirror(RunFolder(path), None)
    run_id = run_mirror.send()
    (path / "metrics.jsonl").write_text("")
    write_journal(path, step_events(1, 30) + step_events(31, 60, START + 7))
    assert run_mirror.send() == run_id
    assert [s for s, _, _ in points(root, run_id, "train_loss")] == list(range(1, 61))


def test_a_torn_last_line_waits_for_its_end(root: Path) -> None:
    path = start_run(root)
    line = json.dumps({"event": "step", "step": 1, "time": START, "train_loss": 2.0})
    with (path / "metrics.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        run_mirror = mirror.RunMirror(RunFolder(path), None)
        run_id = run_mirror.send()
        assert points(root, run_id, "train_loss") == []
        file.write(line[20:] + "\n")
    run_mirror.send()
    assert points(root, run_id, "train_loss") == [(1, 2.0, int(START * 1000))]


def test_more_points_than_one_request_takes(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 1300))
    run_id = mirror.sync(RunFolder(path))
    assert [s for s, _, _ in points(root, run_id, "train_loss")] == list(range(1, 1301))


CALLS = [
    "create_experiment",
    "create_run",
    "log_batch",
    "log_inputs",
    "create_logged_model",
    "log_outputs",
    "finalize_logged_model",
    "log_artifact",
    "log_artifacts",
    "set_terminated",
]


@pytest.mark.slow
def test_a_sync_killed_after_any_call_is_completed_by_the_next(tmp_path: Path) -> None:
    for calls in range(1, 100):
        root = empty_store(tmp_path / str(calls))
        path = start_run(root)
        write_journal(path, step_events(1, 60))
        run = finish_run(path)
        add_evaluation(run)
        add_report(run)
        killed = killed_after(calls, CALLS, lambda path=path: mirror.sync(RunFolder(path)))

        run_id = mirror.sync(RunFolder(path))
        client = connect(tracking_uri(CONFIG, root))
        run = client.get_run(run_id)
        assert len(client.search_runs([run.info.experiment_id])) == 1
        assert points(root, run_id, "train_loss") == expected()
        assert len(points(root, run_id, "val_bpb")) == 6
        assert len(points(root, run_id, "full_val_bpb")) == 1
        models = client.search_logged_models([run.info.experiment_id])
        assert [m.status for m in models] == ["READY", "READY"]
        assert sorted(o.step for o in run.outputs.model_outputs) == [50, 60]
        assert len(run.inputs.dataset_inputs) == 2
        assert run.info.status == "FINISHED"
        if not killed:
            break
    assert calls > 10


def test_evaluation_and_report_follow(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    run = finish_run(path)
    run_id = mirror.sync(RunFolder(path))
    add_evaluation(run)
    add_report(run)
    mirror.sync(RunFolder(path))
    assert [(s, v) for s, v, _ in points(root, run_id, "full_val_bpb")] == [(0, 0.25)]
    artifacts = root / "mlflow" / "artifacts" / run_id / "artifacts"
    assert (artifacts / "report" / "index.html").read_text() == "<p>report</p>"
    assert (artifacts / "evaluation" / "evaluation.json").exists()
    client = connect(tracking_uri(CONFIG, root))
    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert "**0.2500 bits per byte**" in note
    assert f"slm lineage {run.name}" in note


def test_scores_on_benchmarks_follow(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    run = finish_run(path)
    run_id = mirror.sync(RunFolder(path))
    add_scores(run, task_of(40), [number < 30 for number in range(40)])
    other = f"benchmarks-{'c' * 12}"  # of other tasks than the run's own
    add_scores(run, task_of(20, "more"), [True] * 20, other, key="c" * 64)
    client = connect(tracking_uri(CONFIG, root))
    for again in range(3):
        mirror.sync(RunFolder(path))
        measured = client.get_run(run_id).data.metrics
        assert measured["benchmark.pairs.accuracy"] == 0.75
        assert measured["benchmark.pairs.chance"] == 0.5
        assert 0.06 < measured["benchmark.pairs.stderr"] < 0.08
        assert measured["benchmark.more.accuracy"] == 1
        assert len(points(root, run_id, "benchmark.pairs.accuracy")) == 1
        artifacts = root / "mlflow" / "artifacts" / run_id / "artifacts"
        assert (artifacts / "benchmarks" / "record.json").exists()
        if again == 1:
            client.delete_tag(run_id, "slm.benchmarks")  # as if killed before it was set


def test_an_evaluation_made_anew_is_what_the_page_shows(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    run = finish_run(path)
    evaluation = add_evaluation(run)
    run_id = mirror.sync(RunFolder(path))
    client = connect(tracking_uri(CONFIG, root))
    client.delete_tag(run_id, "slm.evaluation")  # as if killed before it was set
    mirror.sync(RunFolder(path))
    assert len(points(root, run_id, "full_val_bpb")) == 1
    (path / "evaluation" / "evaluation.json").write_text('{"again": true}')
    worse = evaluation.model_copy(update={"checkpoint": "step_000040", "val_bpb": 0.5})
    files = storage.describe_files(path / "evaluation", [path / "evaluation" / "evaluation.json"])
    storage.write_record(path / "evaluation", worse.model_copy(update={"files": files}))
    mirror.sync(RunFolder(path))
    assert client.get_run(run_id).data.metrics["full_val_bpb"] == 0.5


def test_the_background_mirror_keeps_up_and_closes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "INTERVAL", 0.05)
    path = start_run(root)
    with mirror.mirror(RunFolder(path)), storage.lock(path / "lock"):
        write_journal(path, step_events(1, 30))
        wait_for(lambda: (path / "mlflow.json").exists())
        run_id = json.loads((path / "mlflow.json").read_text())["run_id"]
        wait_for(lambda: len(points(root, run_id, "train_loss")) == 30)
        assert status(root, run_id) == "RUNNING"
        write_journal(path, step_events(31, 60))
    assert points(root, run_id, "train_loss") == expected()
    assert status(root, run_id) == "KILLED"  # the folder has no record


def test_a_signal_does_not_wait_for_mlflow_to_begin(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    began = time.monotonic()
    with suppress(KeyboardInterrupt), mirror.mirror(RunFolder(path)):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 1
    assert not (path / "mlflow.json").exists()
    run_id = mirror.sync(RunFolder(path))
    assert points(root, run_id, "train_loss") == expected()
    assert status(root, run_id) == "KILLED"


def test_the_machine_is_watched_while_a_run_trains(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "INTERVAL", 0.05)
    monkeypatch.setattr(mirror, "INTERVAL", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path = start_run(root)
    for count in (3, 6):  # an interrupted run continues its count
        with mirror.mirror(RunFolder(path), "http://127.0.0.1:9"):  # which is down
            wait_for(lambda: len(read_samples(path)) >= count)  # noqa: B023
        with (path / system.SYSTEM).open("ab") as file:
            file.write(b'{"event": "sys')
    samples = read_samples(path)
    assert [s["step"] for s in samples] == sorted({s["step"] for s in samples})
    run_id = mirror.sync(RunFolder(path))
    assert mirror.sync(RunFolder(path)) == run_id
    for key in ("system/cpu_utilization_percentage", "system/disk_available_megabytes"):
        assert points(root, run_id, key) == [
            (s["step"], s[key], int(s["time"] * 1000)) for s in samples
        ]
    assert all(0 < s["system/system_memory_usage_percentage"] < 100 for s in samples)


def read_samples(path: Path) -> list[dict[str, float]]:
    """The whole lines of what was written of the machine."""
    samples: list[dict[str, float]] = []
    if not (path / system.SYSTEM).exists():
        return samples
    for line in (path / system.SYSTEM).read_text().splitlines():
        with suppress(ValueError):
            samples.append(json.loads(line))
    return samples


def test_a_gpu_that_does_not_report_everything_is_asked_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    memory = SimpleNamespace(used=2_000_000)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: memory)
    sample = system.sample(tmp_path, ["a GPU"])
    reported = {name: value for name, value in sample.items() if "gpu" in name}
    assert reported == {"system/gpu_0_memory_usage_megabytes": 2.0}


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_is_down_costs_a_warning_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "INTERVAL", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    with caplog.at_level(logging.WARNING, "slm.tracking.mirror"):
        with mirror.mirror(RunFolder(path), "http://user:hunter2@127.0.0.1:9"):
            wait_for(lambda: bool(caplog.records))
            time.sleep(0.3)
            left = time.monotonic()
        assert time.monotonic() - left < 3
    assert [r.getMessage().count("slm sync") for r in caplog.records] == [1]
    assert "hunter2" not in caplog.text
    finish_run(path)
    run_id = mirror.sync(RunFolder(path))  # to the store of the data folder, in the server's place
    assert points(root, run_id, "train_loss") == expected()


def test_a_sync_to_a_server_that_is_down_fails_with_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SlmError, match=r"MLflow: .*127\.0\.0\.1") as caught:
        mirror.sync(RunFolder(start_run(root)), tracking_uri="http://user:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


def test_a_server_that_fails_now_and_then_loses_and_doubles_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 1500))
    finish_run(path)
    honest, calls = MlflowClient.log_batch, iter(range(1000))

    def flaky(*args: object, **kwargs: object) -> object:
        call = next(calls)
        if call % 3 == 1:
            raise ConnectionError("refused")
        result = honest(*args, **kwargs)
        if call % 3 == 2:
            raise ConnectionError("the answer was lost")
        return result

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    run_mirror, passes = mirror.RunMirror(RunFolder(path), None), 0
    while passes < 100:
        passes += 1
        with suppress(ConnectionError):
            run_mirror.send()
            break
    assert 2 < passes < 100
    assert points(root, run_mirror.run_id, "train_loss") == expected(1, 1500)
    assert len(points(root, run_mirror.run_id, "val_bpb")) == 150


def test_two_syncs_together_make_one_mlflow_run(root: Path) -> None:
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    finish_run(path)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(mirror.sync, [RunFolder(path)] * 2))
    assert ids[0] == ids[1]
    assert points(root, ids[0], "train_loss") == expected()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        mirror.sync(RunFolder(tmp_path))


# ---- the SQLite store -------------------------------------------------------------------------


def old_store(file: Path) -> tuple[str, bytes]:
    """A store as the MLflow before this one left it; returns its address and content."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    uri = f"sqlite:///{file}"
    config = Config()
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    config.set_main_option("script_location", str(migrations))
    config.set_main_option("sqlalchemy.url", uri)
    engine = create_engine(uri)
    Base.metadata.create_all(engine)
    command.upgrade(config, ScriptDirectory.from_config(config).get_revision("head").down_revision)
    engine.dispose()
    return uri, file.read_bytes()


def test_a_store_is_copied_once_before_mlflow_changes_its_tables(tmp_path: Path) -> None:
    uri, before = old_store(tmp_path / "mlflow.db")
    connect(uri).create_experiment("later")
    copy = tmp_path / f"mlflow.db.before-{mlflow.__version__}"
    assert copy.read_bytes() == before
    assert connect(uri).get_experiment_by_name("later") is not None
    left = {path.name for path in tmp_path.glob("mlflow.db*")}
    assert left == {"mlflow.db", "mlflow.db.lock", "mlflow.db.version", copy.name}
    assert copy.read_bytes() == before


def test_a_store_that_mlflow_need_not_change_is_not_copied(root: Path) -> None:
    file = root / "mlflow" / "mlflow.db"
    before = file.read_bytes()
    file.with_name("mlflow.db.version").write_text("3.0.0")
    assert store.prepare(file) is None
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*before*"))
    assert file.with_name("mlflow.db.version").read_text().strip() == mlflow.__version__


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("no database, but long enough to be read as one" * 20)
    before = file.read_bytes()
    assert store.prepare(file) is None
    with pytest.raises(SlmError, match="MLflow: "), explained():
        connect(f"sqlite:///{file}").search_experiments()
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["new", "migrated"])
def test_a_store_killed_anywhere_while_it_is_made_opens(tmp_path: Path, old: bool) -> None:
    for count in range(1, 40):
        folder = tmp_path / str(count)
        folder.mkdir()
        file = folder / "mlflow.db"
        uri, before = old_store(file) if old else (f"sqlite:///{file}", b"")
        child = os.fork()
        if child == 0:
            os.environ["SLM_FAULT"] = f"*:{count}:kill"
            with suppress(BaseException):
                store.prepare(file)
                os._exit(0)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        client = connect(uri)
        made = client.create_experiment("after")
        assert client.get_experiment_by_name("after").experiment_id == made
        copies = [path.read_bytes() for path in folder.glob("mlflow.db.before-*")]
        assert copies == ([before] if old else [])
        assert not list(folder.glob("mlflow.db.next-*"))
        if code == 0:
            break
    assert count > 8


def test_a_store_killed_while_it_is_created_is_created_anew(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "search_registered_models", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            connect(f"sqlite:///{file}")
    assert not file.exists()
    client = connect(f"sqlite:///{file}")
    assert client.create_experiment("after") == client.get_experiment_by_name("after").experiment_id


# ---- params -----------------------------------------------------------------------------------


def test_params_keep_their_names_and_values() -> None:
    """As they were before a config could list itself: MLflow refuses a param that changes."""
    former = (
        "A little girl went to the woods",
        "Once upon a time there was a",
        "One day, Tom and Sue",
    )
    report = CONFIG.report.model_copy(update={"prompts": former})  # the default of that time
    default = CONFIG.model_copy(update={"report": report})
    config = default.model_copy(update={"registry": RegistryConfig(model="slm")})
    plan = PLAN.model_copy(update={"probe": {"fp32": 0.25, "bf16": 0.5}})
    expected = json.loads((Path(__file__).parent / "params.json").read_bytes())
    assert expected.items() <= params(config, plan).items()
    assert params(default, plan) == params(config, plan)  # the name is that of the data
    assert not any(name.startswith("plan.") for name in params(CONFIG, None))
