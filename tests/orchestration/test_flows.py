"""The Prefect flow on a real server: its results, its artifacts, failure, and the deploy file."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import stages
import tiny_run
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogHandler
from prefect.states import Failed, Scheduled
from scored import task_of, write_task

import slm.source.download
import slm.training.launch
from slm.errors import CorruptionError, SlmError, UserError
from slm.orchestration import pipeline, retrain, sweep, tasks
from slm.orchestration.stack.deployments import check
from slm.orchestration.stack.reaper import SILENCE
from slm.recipes import load_recipe
from slm.tokens.encode import encode

ROOT = Path(__file__).resolve().parents[2]


def slm_command(api: str, project: Path, *arguments: str) -> dict[str, Any]:
    """What `slm … --json` prints, run in a project with the given server."""
    done = subprocess.run(
        [sys.executable, "-m", "slm.cli.main", *arguments, "--json"],
        cwd=project,
        env={**os.environ, "PREFECT_API_URL": api},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


def test_slm_run_from_nothing_and_again(
    server: str, project: Path, data_root: Path, slm_here: Callable[..., Any]
) -> None:
    first = slm_command(server, project, "run", "tiny")
    assert "prefect" not in first["stderr"].lower()  # it is quiet
    assert first["reused"] == []
    assert Path(first["report"]).read_text().startswith("<!doctype html>")
    assert first["version"] == "models:/slm/1"
    for name in ("source", "shards", "run", "checkpoint"):
        assert (Path(first[name]) / "record.json").is_file()

    done = slm_here("run", "tiny", "--json", PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    names = ["download", "encode", "train", "evaluate", "report", "register"]
    assert again["reused"] == names
    assert list(again["seconds"]) == [*names, "promote"]
    kept = ("recipe", "source", "shards", "run", "checkpoint", "val_loss", "val_bpb", "version")
    assert {name: again[name] for name in kept} == {name: first[name] for name in kept}
    assert "reused" in done.stderr


def test_a_flow_on_another_machine_pulls_what_the_store_has(
    client: SyncPrefectClient, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_STORE", f"file://{tmp_path / 'store'}")
    results = []
    for machine in ("a", "b"):
        monkeypatch.setenv("SLM_DATA", str(tmp_path / machine))
        state = pipeline.pipeline("tiny", until="encode", return_state=True)
        results.append(state.result())
    assert results[0]["reused"] == []
    assert results[1]["pulled"] == ["download", "encode"]
    APILogHandler().flush()


@pytest.mark.slow
def test_what_runs_around_a_training_changes_no_weight(
    server: str, project: Path, data_root: Path, tmp_path: Path
) -> None:
    """With Prefect, MLflow and a report; and with none of them, evaluated at every step."""
    made = slm_command(server, project, "run", "tiny")
    record = json.loads((Path(made["run"]) / "record.json").read_bytes())
    config = load_recipe("tiny", {"train.evaluate_every": 1, "train.checkpoint_every": 3})
    shards = encode(config, slm.source.download.download(config, root=tmp_path), root=tmp_path)
    assert (
        slm.training.launch.train(config, shards, root=tmp_path).weights_sha256
        == record["weights_sha256"]
    )


def test_the_flow_leaves_its_results_on_the_server(
    client: SyncPrefectClient, project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    state = pipeline.pipeline("tiny", {"train.max_steps": 3}, return_state=True)
    assert state.is_completed()
    assert called == ["download", "encode", "train", "evaluate", "write_report", "register"]
    result = state.result()
    assert result["val_bpb"] == stages.EVALUATION.val_bpb
    assert result["reused"] == ["encode"]

    run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name.startswith("tiny-")
    overrides = {"train.max_steps": 3}
    assert run.parameters == {"recipe": "tiny", "overrides": overrides, "until": "promote"}
    artifacts = {a.key: a for a in client.read_artifacts() if a.flow_run_id == run.id}
    assert artifacts["report"].data == "# the report"
    assert {"metric": "parameters", "value": "1,234"} in json.loads(artifacts["metrics"].data)
    assert artifacts["training"].data == 50.0
    assert str(data_root / "runs") in artifacts["report"].description
    assert "file://" not in json.dumps([str(a.data) for a in artifacts.values()])

    APILogHandler().flush()
    filters = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    lines = [log.message for log in client.read_logs(filters)]
    assert any(line.startswith("train     done") for line in lines)


def test_a_flow_with_tasks_leaves_a_table_of_them(
    client: SyncPrefectClient, project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    state = pipeline.pipeline("tiny", {"benchmark.tasks": ["stories"]}, return_state=True)
    assert state.is_completed()
    assert called[3:6] == ["evaluate", "benchmark", "write_report"]
    run = client.read_flow_run(state.state_details.flow_run_id)
    artifacts = {a.key: a for a in client.read_artifacts() if a.flow_run_id == run.id}
    assert stages.BENCHMARKS.run in artifacts["benchmarks"].description
    APILogHandler().flush()


def test_a_flow_run_that_is_tried_again_has_its_artifacts_once(
    client: SyncPrefectClient, project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.install(monkeypatch, data_root)
    run_id = pipeline.pipeline("tiny", return_state=True).state_details.flow_run_id

    def published() -> dict[Any, str]:
        return {a.id: a.key for a in client.read_artifacts() if a.flow_run_id == run_id}

    first = published()
    assert {"metrics", "report", "training"} <= set(first.values())
    client.set_flow_run_state(run_id, Scheduled(), force=True)
    assert run_flow(pipeline.pipeline, client.read_flow_run(run_id), {"recipe": "tiny"})
    second = published()
    assert sorted(second.values()) == sorted(first.values())
    assert not second.keys() & first.keys()


def test_silence_is_longer_than_flows_are_silent() -> None:
    assert timedelta(seconds=3 * int(os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])) <= SILENCE


def test_a_flow_up_to_a_stage(
    server: str, project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    made = pipeline.pipeline("tiny", until="train")
    assert made["run"] == str(data_root / "runs" / stages.EVALUATION.run)
    assert "val_bpb" not in made
    assert called == ["download", "encode", "train"]


def test_bad_input_fails_the_flow_immediately(
    client: SyncPrefectClient, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise UserError("no such dataset")

    monkeypatch.setattr(slm.source.download, "download", refuse)
    state = pipeline.pipeline("tiny", return_state=True)
    assert state.is_failed()
    assert len(tries) == 1
    with pytest.raises(UserError, match="no such dataset"):
        state.result()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_on_a_server_of_its_own(
    project: Path, data_root: Path, number: signal.Signals
) -> None:
    command = [
        sys.executable,
        "-m",
        "slm.cli.main",
        "run",
        "tiny",
        "--set",
        "train.max_steps=50000",
    ]
    env = {**os.environ, "PREFECT_HOME": str(data_root / "prefect")}
    with subprocess.Popen(
        command,
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        while not any(b'"step"' in p.read_bytes() for p in data_root.glob("runs/*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, number)  # as a terminal does
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.decode().splitlines()[-1].startswith("interrupted: what is done is kept")
    assert b"Traceback" not in output
    assert list(data_root.glob("runs/*/checkpoints/step_*/record.json"))
    with sqlite3.connect(data_root / "prefect" / "prefect.db") as store:
        assert store.execute("SELECT state_name FROM flow_run").fetchall() == [("Crashed",)]
    store.close()


def test_a_server_that_does_not_answer_is_one_message(slm_here: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = slm_here("run", "tiny", PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_recipe_fails_with_the_nearest(server: str, project: Path) -> None:
    state = pipeline.pipeline("tini", return_state=True)
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        state.result()


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (SlmError("the hub cannot be reached"), True),
        (ConnectionError(), True),
        (TimeoutError(), True),
        (UserError("empty"), False),
        (CorruptionError("damaged"), False),
        (KeyError("bug"), False),
    ],
)
def test_only_the_network_is_tried_again(error: Exception, again: bool) -> None:
    assert tasks.may_pass(tasks.download, None, Failed(data=error)) is again


def test_tasks_work_without_a_server(
    tiny_config: Any, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.install(monkeypatch, data_root)
    source = tasks.download.fn(tiny_config())
    assert tasks.encode.fn(tiny_config(), source).key == stages.SHARDS.key


def test_the_deploy_file_deploys_as_it_is(
    client: SyncPrefectClient, server: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "flows", folder / "flows")
    shutil.copy(ROOT / "pipelines.yaml", folder)
    client.create_work_pool(WorkPoolCreate(name="slm-process", type="process"))
    command = [
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        "pipelines.yaml",
    ]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    expected = check(ROOT / "pipelines.yaml")
    flows = {flow.id: flow.name for flow in client.read_flows()}
    deployed = {f"{flows[d.flow_id]}/{d.name}": d for d in client.read_deployments()}
    assert set(deployed) == set(expected)
    for name, deployment in expected.items():
        made = deployed[name]
        assert made.parameters == deployment.parameters
        assert made.description == deployment.description
        assert made.version == deployment.version
        assert made.tags == deployment.tags
        assert made.work_pool_name == "slm-process"
        assert made.global_concurrency_limit.limit == (8 if name == "pipeline/trial" else 1)
        assert made.concurrency_options.collision_strategy == "ENQUEUE"
        modules = {"pipeline": pipeline, "retrain": retrain, "sweep": sweep}
        flow = name.partition("/")[0]
        parameters = getattr(modules[flow], flow).parameters.properties
        assert set(made.parameter_openapi_schema["properties"]) == set(parameters)
        assert str(folder) in str(made.pull_steps)


def test_retrain_trains_once_and_again_when_documents_arrive(
    client: SyncPrefectClient, project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / "dataset"
    overrides = {
        "data.source": "files", "data.path": str(folder), "data.documents": None,
        "data.val_fraction": 0.2,
        "benchmark.tasks": [str(write_task(project, task_of(4)).source)],
        "train.max_steps": 20, "registry.max_bpb": 100, "registry.beat_baselines": False,
        "registry.max_degenerate": 1, "registry.max_memorised": 1, "retrain.approval": True,
    }  # fmt: skip
    asked = []

    def answer(**_: Any) -> retrain.Approval:
        asked.append(1)
        return retrain.Approval(approve=len(asked) == 1, who="Ann", comment="as I like it")

    def cycle() -> tuple[dict[str, Any], Any, dict[str, str]]:
        state = retrain.retrain("tiny", overrides, return_state=True)
        assert state.is_completed()
        run = client.read_flow_run(state.state_details.flow_run_id)
        shown = {a.key: str(a.data) for a in client.read_artifacts() if a.flow_run_id == run.id}
        return state.result(), run, shown

    monkeypatch.setattr(retrain, "pause_flow_run", answer)
    tiny_run.add_documents(folder / "a.jsonl", 7, 200)
    with tiny_run.code(tiny_run.CLEAN):
        first, run, shown = cycle()
        assert (first["action"], first["champion"]) == ("retrain", True)
        assert "approved by Ann: as I like it" in shown["verdict"]
        assert {"retrain:retrain", "verdict:promoted"} <= set(run.tags)
        assert '"task": "pairs"' in shown["benchmarks"]

        trained = list(data_root.glob("runs/*"))
        second, run, shown = cycle()
        assert list(data_root.glob("runs/*")) == trained
        assert second["action"] == "nothing"
        assert run.state.message.startswith(
            "nothing to do: models:/dataset/1 was trained on the same"
        )
        assert "# Nothing to do" in shown["retrain-decision"]

        tiny_run.add_documents(folder / "b.jsonl", 8, 60)
        third, run, shown = cycle()
        assert third["action"] == "continue"
        assert {"retrain:continue", "new_documents:23.08%"} <= set(run.tags)
        assert "| new | 60 |" in shown["retrain-decision"]
        assert third["champion"] is False  # refused by the gate, or else by Ann
        assert cycle()[0]["action"] == "nothing"
