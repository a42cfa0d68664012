"""The flow of a sweep on a real server: the same trials by one worker and by several."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stages
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.logging.handlers import APILogHandler
from run_folders import empty_store
from tiny_pipelines import PIPELINES

import slm.evaluation.evaluate
from slm.errors import SlmError, Untrainable, UserError
from slm.orchestration import gpu_limit, sweep_outline, trials
from slm.orchestration.stack.deploy import deploy
from slm.orchestration.stack.setup import set_up
from slm.orchestration.sweep import sweep as sweep_flow
from slm.recipes import load_recipe
from slm.run_folder import DataRoot
from slm.sweeps.folder import SweepFolder
from slm.tracking.server import connect, store_uri

SWEEPS = """
sweeps:
  rates:
    recipe: tiny
    space: {train.learning_rate: [0.001, 0.003], train.optimizer: [adamw, muon]}
    sampler: grid
    batch: 2
"""


@pytest.fixture
def swept(project: Path) -> Path:
    (project / "pipelines.yaml").write_text(PIPELINES + SWEEPS)
    return project


def results(data: Path) -> list[tuple[Any, ...]]:
    """What the trials of a data folder's only sweep were and gave."""
    (path,) = DataRoot(data).sweeps()
    return [
        (t.number, t.batch, t.overrides, t.val_bpb, [(s.key, s.weights_sha256) for s in t.seeds])
        for t in SweepFolder(path).trials
    ]


def artifacts_of(client: SyncPrefectClient, run: Any) -> dict[str, Any]:
    return {a.key: a for a in client.read_artifacts() if a.flow_run_id == run}


def install(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> list[str]:
    """Stages that only leave a record, and an empty store; returns those that are called."""
    empty_store(data_root)
    called = stages.install(monkeypatch, data_root)
    stages.write(data_root, load_recipe("tiny"))
    return called


def flow_run_of(client: SyncPrefectClient, state: Any) -> FlowRun:
    APILogHandler().flush()
    return client.read_flow_run(state.state_details.flow_run_id)


def test_a_sweep_leaves_its_trials_on_both_servers(
    swept: Path, client: SyncPrefectClient, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = install(monkeypatch, data_root)
    state = sweep_flow("rates", workers=2, return_state=True)
    assert called.count("train") == called.count("evaluate") == 4
    made = state.result()
    assert [trial["number"] for trial in made["trials"]] == [0, 1, 2, 3]
    run = flow_run_of(client, state)
    assert run.name.startswith("rates-")
    artifacts = artifacts_of(client, run.id)
    assert set(artifacts) == {"trials", "winner"}
    rows = json.loads(artifacts["trials"].data)
    first = "train.learning_rate=0.001, train.optimizer=adamw"
    assert rows[0]["settings"] == first
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert artifacts["winner"].description == state.message
    names = {task.name for task in client.read_task_runs() if task.flow_run_id == run.id}
    assert first in names
    assert len(names) == 4

    mlflow = connect(store_uri(data_root))
    experiment = mlflow.get_experiment_by_name("slm")
    assert experiment
    runs = mlflow.search_runs([experiment.experiment_id])
    (parent,) = [each for each in runs if each.data.tags.get("slm.kind") == "sweep"]
    nested = [each for each in runs if each.data.tags.get("mlflow.parentRunId")]
    assert {each.data.tags["mlflow.parentRunId"] for each in nested} == {parent.info.run_id}
    assert len(nested) == 4
    assert parent.info.status == "FINISHED"


def test_a_sweep_that_is_refused_fails_with_its_name(
    swept: Path, client: SyncPrefectClient, data_root: Path
) -> None:
    state = sweep_flow("rate", return_state=True)
    with pytest.raises(UserError, match="did you mean 'rates'"):
        state.result()
    state = sweep_flow("rates", deployment="pipeline/none", return_state=True)
    with pytest.raises(UserError, match="no such deployment"):
        state.result()


def test_no_more_trials_at_a_time_than_the_limit(
    swept: Path, client: SyncPrefectClient, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_limit, "RETRY_SECONDS", 0.05)
    install(monkeypatch, data_root)
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="trial", limit=1))
    at_a_time: list[int] = []
    evaluate = slm.evaluation.evaluate.evaluate

    def watched(*inputs: Any, **options: Any) -> Any:
        limit = client.read_global_concurrency_limit_by_name("trial")
        at_a_time.append(limit.active_slots)
        return evaluate(*inputs, **options)

    monkeypatch.setattr(slm.evaluation.evaluate, "evaluate", watched)
    try:
        assert sweep_flow("rates", workers=2, return_state=True).is_completed()
    finally:
        client.delete_global_concurrency_limit_by_name("trial")
    assert at_a_time == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Flow run encountered an exception: Untrainable: not finite", Untrainable),
        ("Flow run encountered an exception: UserError: n_head=3", UserError),
        ("Flow run encountered an exception: KeyError: 'a'", SlmError),
        ("Flow run was cancelled", SlmError),
    ],
)
def test_what_failed_on_another_worker_fails_here_alike(message: str, kind: type) -> None:
    assert type(trials.failure("a run", message)) is kind


def test_overrides_give_a_trials_config_elsewhere(swept: Path) -> None:
    sweep = sweep_outline.asked("rates", overrides={"train.max_steps": 3})
    config = sweep.config_of({"train.learning_rate": 0.003}, 1)
    overrides = trials.differences(config, sweep.overrides)
    assert overrides == {
        "train.max_steps": 3, "train.learning_rate": 0.003, "train.seed": 1338
    }  # fmt: skip
    assert load_recipe("tiny", json.loads(json.dumps(overrides))) == config


# ---- real trainings ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What a sweep gives by one worker, uninterrupted and without Prefect."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "pipelines.yaml").write_text(PIPELINES + SWEEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_DATA", str(folder / "data"))
        patch.chdir(folder)
        sweep_outline.sweep("rates")
    return results(folder / "data")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_at_a_time_give_the_same_trials(
    swept: Path, server: str, data_root: Path, reference: list[tuple[Any, ...]]
) -> None:
    state = sweep_flow("rates", workers=2, return_state=True)
    assert state.is_completed()
    assert results(data_root) == reference


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_was_ended_resumes(
    swept: Path,
    client: SyncPrefectClient,
    server: str,
    data_root: Path,
    reference: list[tuple[Any, ...]],
    number: signal.Signals,
) -> None:
    code = "from slm.orchestration.sweep import sweep; sweep('rates', workers=2)"
    environment = {**os.environ, "PREFECT_API_URL": server}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=swept) as process:
        while not any(data_root.glob("sweeps/*/trials/*.json")):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(60) != 0
    before = {path: path.read_bytes() for path in data_root.glob("sweeps/*/trials/*.json")}
    assert sweep_flow("rates", return_state=True).is_completed()
    assert {path: path.read_bytes() for path in before} == before
    assert results(data_root) == reference
    for run in DataRoot(data_root).runs():
        steps = [entry["step"] for entry in run.journal if entry["event"] == "step"]
        assert sorted(set(steps)) == [1, 2, 3, 4]
    mlflow = connect(store_uri(data_root))
    experiment = mlflow.get_experiment_by_name("slm")
    assert experiment
    query = "tags.`slm.kind` = 'sweep'"
    assert len(mlflow.search_runs([experiment.experiment_id], filter_string=query)) == 1


@contextmanager
def worker(server: str) -> Iterator[None]:
    """A process that runs what the work pool of a server has."""
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [sys.executable, "-m", "slm.orchestration.stack.worker"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_workers_of_a_pool_give_the_same_trials(
    swept: Path,
    client: SyncPrefectClient,
    server: str,
    data_root: Path,
    reference: list[tuple[Any, ...]],
) -> None:
    deployed = """
deployments:
  - name: trial
    entrypoint: slm.orchestration.pipeline.pipeline
    description: One trial of a sweep, on any worker.
    version: "1"
    parameters: {recipe: tiny}
    work_pool: {name: slm-process}
"""
    own = PIPELINES.replace("deployments: []\n", "")
    (swept / "pipelines.yaml").write_text(own + deployed + SWEEPS)
    set_up(server, own_leases=False)
    lines = deploy(server, {**os.environ, "PREFECT_API_URL": server}, swept / "pipelines.yaml")
    assert lines == ["deployed  pipeline/trial, sweep/rates"]
    sweep = client.read_deployment_by_name("sweep/rates")
    assert sweep.parameters == {"sweep": "rates"}
    with worker(server), worker(server):
        run = client.create_flow_run_from_deployment(
            sweep.id, parameters={"workers": 2, "deployment": "pipeline/trial"}
        )
        while not (run.state and run.state.is_final()):
            time.sleep(1)
            run = client.read_flow_run(run.id)
    assert run.state.is_completed(), run.state.message
    assert results(data_root) == reference
    query = FlowRunFilter(tags=FlowRunFilterTags(all_=["trial"]))
    elsewhere = client.read_flow_runs(flow_run_filter=query)
    assert len(elsewhere) == 4
    assert all(each.parent_task_run_id for each in elsewhere)
