"""A sweep in MLflow: one parent, every trial below it once, whatever is killed or repeated."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from run_folders import (
    CONFIG,
    START,
    add_evaluation,
    empty_store,
    finish_run,
    killed_after,
    start_run,
    step_events,
    write_journal,
)

from slm import storage
from slm.tracking import sweeps
from slm.tracking.server import connect, tracking_uri
from slm.tracking.sweeps import TrackedRun, TrackedSweep, TrackedTrial

RATES = (0.003, 0.006, 0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return empty_store(tmp_path / "my data")


def trained(root: Path, number: int) -> str:
    """A finished run with an evaluation; returns its name."""
    train = CONFIG.train.model_copy(update={"learning_rate": RATES[number], "seed": number})
    key = storage.sha256_json(number)
    path = start_run(root, CONFIG.model_copy(update={"train": train}), key)
    write_journal(path, step_events(1, 60))
    add_evaluation(finish_run(path, key))
    return path.name


def trial(number: int, *names: str | None, **run: Any) -> TrackedTrial:
    val_bpb = run.pop("val_bpb", 1.0 + number / 10)
    return TrackedTrial(
        number=number,
        overrides={"train.learning_rate": RATES[number]},
        finished=START + 60 * number,
        seconds=15.0,
        val_bpb=val_bpb,
        runs=[TrackedRun(name, seed, val_bpb, **run) for seed, name in enumerate(names)],
    )


def sweep(root: Path, *trials: TrackedTrial, name: str = "rates", **changes: Any) -> TrackedSweep:
    key = storage.sha256_json(name)
    fields = {
        "path": root / "sweeps" / f"{name}-{key[:12]}",
        "key": key,
        "config": CONFIG,
        "definition": {"sweep.recipe": "tiny", "sweep.space.train.learning_rate": "0.003,0.006"},
        "extent": {"trials": "3", "budget": "none"},
        "space": ["train.learning_rate"],
        "trials": trials,
        "started": START,
        "state": "RUNNING",
    }
    return TrackedSweep(**{**fields, **changes})


def client_of(root: Path) -> MlflowClient:
    return connect(tracking_uri(CONFIG, root))


def children(root: Path, parent: str) -> list[Run]:
    client = client_of(root)
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    runs = client.search_runs([experiment], filter_string=query)
    return sorted(runs, key=lambda run: int(run.data.tags["slm.trial"]))


def test_the_trials_are_below_one_parent(root: Path) -> None:
    trials = [trial(number, trained(root, number)) for number in range(3)]
    parent = sweeps.sync(sweep(root, trials[0]))
    assert client_of(root).get_run(parent).info.status == "RUNNING"
    assert sweeps.sync(sweep(root, *trials, state="FINISHED", best=0, outcome="First.")) == parent

    run = client_of(root).get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == (START + 120) * 1000
    assert run.data.params["sweep.space.train.learning_rate"] == "0.003,0.006"
    assert run.data.tags["slm.trials"] == "3"
    assert run.data.tags["slm.best_trial"] == "0"
    assert run.data.tags["mlflow.note.content"].startswith("First.\n\n3 trials have ended. `slm")
    assert run.data.metrics["full_val_bpb"] == 1.0
    history = client_of(root).get_metric_history(parent, "best_val_bpb")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 1.0), (2, 1.0)]

    nested = children(root, parent)
    assert [each.data.tags["slm.run"] for each in nested] == [t.runs[0].name for t in trials]
    assert [each.data.params["train.learning_rate"] for each in nested] == [
        "0.003",
        "0.006",
        "0.01",
    ]
    assert {each.data.metrics["full_val_bpb"] for each in nested} == {0.25}


def test_a_view_has_what_varies_as_coordinates(root: Path) -> None:
    parent = sweeps.sync(sweep(root))
    client = client_of(root)
    experiment = client.get_experiment(client.get_run(parent).info.experiment_id)
    key = storage.sha256_json("rates")
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.slm-{key[:12]}"])
    (chart,) = json.loads(view["state"])["compareRunCharts"]
    assert chart["selectedParams"] == ["train.learning_rate"]


def test_a_second_sync_adds_nothing(root: Path) -> None:
    whole = sweep(root, trial(0, trained(root, 0)), trial(1, None, val_bpb=None, reason="no"))
    parent = sweeps.sync(whole)
    before = [
        run.to_dictionary() for run in [client_of(root).get_run(parent), *children(root, parent)]
    ]
    (whole.path / "mlflow.json").unlink()
    assert sweeps.sync(whole) == parent
    after = [
        run.to_dictionary() for run in [client_of(root).get_run(parent), *children(root, parent)]
    ]
    assert after == before


def test_a_refused_trial_is_a_failed_run(root: Path) -> None:
    parent = sweeps.sync(sweep(root, trial(1, None, val_bpb=None, reason="n_head=3 is odd")))
    (run,) = children(root, parent)
    assert run.info.status == "FAILED"
    assert run.data.params["train.learning_rate"] == "0.006"
    assert "n_head=3 is odd" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics == {}


def test_a_run_of_two_sweeps_stays_in_the_first_and_the_second_has_a_copy(root: Path) -> None:
    name = trained(root, 0)
    first = sweeps.sync(sweep(root, trial(0, name)))
    second = sweeps.sync(sweep(root, trial(0, name), name="again"))
    assert sweeps.sync(sweep(root, trial(0, name))) == first
    (own,), (copy,) = children(root, first), children(root, second)
    assert own.data.tags["slm.run"] == name
    assert copy.data.tags["slm.copy_of"] == own.info.run_id
    assert copy.data.params["train.learning_rate"] == own.data.params["train.learning_rate"]
    assert copy.data.metrics["full_val_bpb"] == 1.0

    client_of(root).delete_run(first)  # and its sweep is asked for no more
    third = sweeps.sync(sweep(root, trial(0, name), name="third"))
    assert children(root, third)[0].info.run_id == own.info.run_id


def test_a_trial_that_repeats_another_has_a_copy(root: Path) -> None:
    name = trained(root, 0)
    parent = sweeps.sync(sweep(root, trial(0, name), trial(1, name)))
    own, copy = children(root, parent)
    assert copy.data.tags["slm.copy_of"] == own.info.run_id


def test_a_continued_sweep_has_the_same_parent(root: Path) -> None:
    parent = sweeps.sync(sweep(root, state="FINISHED"))
    longer = sweep(root, extent={"trials": "9", "budget": "2h"}, state="KILLED")
    assert sweeps.sync(longer) == parent
    run = client_of(root).get_run(parent)
    assert (run.data.tags["slm.trials"], run.data.tags["slm.budget"]) == ("9", "2h")
    assert run.info.status == "KILLED"


@pytest.mark.slow
def test_a_sync_killed_after_any_call_is_completed_by_the_next(tmp_path: Path) -> None:
    names = [
        "create_experiment", "create_run", "log_batch", "set_terminated", "update_run",
        "set_experiment_tag", "log_inputs", "create_logged_model", "log_artifact",
    ]  # fmt: skip
    for calls in range(1, 100):
        root = empty_store(tmp_path / str(calls))
        whole = sweep(
            root, trial(0, trained(root, 0)), trial(1, None, val_bpb=None, reason="no"),
            state="FINISHED",
        )  # fmt: skip
        killed = killed_after(calls, names, lambda whole=whole: sweeps.sync(whole))
        parent = sweeps.sync(whole)
        experiment = client_of(root).get_run(parent).info.experiment_id
        assert len(children(root, parent)) == 2
        assert len(client_of(root).search_runs([experiment])) == 3
        if not killed:
            break
    assert calls > 10


def test_the_mirror_follows_and_a_dead_server_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trials = [trial(0, None, val_bpb=None, reason="no")]
    with sweeps.mirror(lambda: sweep(root, *trials)) as changed:
        trials.append(trial(1, None, val_bpb=None, reason="no"))
        changed.set()
    note = json.loads((sweep(root).path / "mlflow.json").read_bytes())
    assert len(children(root, note["run_id"])) == 2

    with sweeps.mirror(lambda: sweep(root, *trials, name="other"), "http://127.0.0.1:9"):
        pass
    assert "the sweep continues" in caplog.text
