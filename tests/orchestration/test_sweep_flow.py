"""The flow of a sweep on a real server: the same trials by one worker and by several."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogHandler
from prefect.states import Pending, Scheduled
from tiny_pipelines import PIPELINES

from slm.errors import Interrupted, Untrainable, UserError
from slm.orchestration import pipeline, sweep_outline, trials
from slm.orchestration.stack import deployments
from slm.orchestration.sweep import sweep as sweep_flow
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


@pytest.fixture
def by_one_worker(
    swept: Path, client: SyncPrefectClient, data_root: Path
) -> tuple[Any, list[tuple[Any, ...]]]:
    state = sweep_flow("rates", return_state=True)
    assert state.is_completed()
    APILogHandler().flush()
    return state, results(data_root)


def test_a_sweep_leaves_its_trials_on_the_servers(
    by_one_worker: Any, client: SyncPrefectClient, data_root: Path
) -> None:
    state, trained = by_one_worker
    made = state.result()
    assert [trial["number"] for trial in made["trials"]] == [0, 1, 2, 3]
    assert state.message.startswith(f"trial {made['best']['number']}: ")
    run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name.startswith("rates-")
    artifacts = artifacts_of(client, run.id)
    assert set(artifacts) == {"trials", "winner"}
    rows = json.loads(artifacts["trials"].data)
    assert rows[0]["trial"] == str(made["best"]["number"])
    assert {row["settings"] for row in rows} >= {
        "train.learning_rate=0.001, train.optimizer=adamw"
    }
    assert artifacts["winner"].description == state.message
    names = {task.name for task in client.read_task_runs() if task.flow_run_id == run.id}
    assert "train.learning_rate=0.001, train.optimizer=adamw, train.seed=1337" in names

    mlflow = connect(store_uri(data_root))
    experiment = mlflow.get_experiment_by_name("slm")
    runs = mlflow.search_runs([experiment.experiment_id])
    (parent,) = [each for each in runs if each.data.tags.get("slm.kind") == "sweep"]
    nested = [each for each in runs if each.data.tags.get("mlflow.parentRunId")]
    assert {each.data.tags["mlflow.parentRunId"] for each in nested} == {parent.info.run_id}
    assert len(nested) == len(trained) == 4
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["full_val_bpb"] == made["best"]["val_bpb"]
