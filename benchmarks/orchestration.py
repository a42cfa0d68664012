"""What Prefect and sweeps cost: seconds to the first stage, and what is left beyond the stages.

`slm run` starts its own server; a deployment runs under `slm up`, which this starts. The
pipeline is `quickstart` with a shorter training, from nothing; its stages are the same library
calls, timed where they are made, so what is left of the flow's wall-clock is Prefect's and ours.

Of a trial of `slm sweep`, the training steps and the scoring of held-out documents are its work;
the rest is ours: proposing, starting a process, checkpoint, records.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import limits

from slm.config import project_root

PORTS = ("4417", "5417")
LONG = 300.0  # seconds of the pipeline that the cost is compared with
SMALL = {
    "data.documents": 500,
    "model.n_layer": 1,
    "train.max_steps": 20,
    "evaluate.documents": 10,
    "report.prompts": ["Once"],
    "report.temperatures": [0.8],
    "report.top_ks": [50],
}


def run(rounds: int = 3, train_seconds: int = 30) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: of each start; the medians count.
        train_seconds: of the training in the pipeline whose cost is measured.

    `ratio` is the value over what is allowed: 20 s, 6 s, 3 % of a pipeline of five minutes, 1 s of
    a trial.
    """
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "SLM_DATA": data}
        environment.pop("PREFECT_API_URL", None)
        cold = [embedded(environment, SMALL | {"train.seed": seed})[0] for seed in range(rounds)]
        whole = {"train.max_seconds": train_seconds, "data.documents": 4000}
        _, flow, stages = embedded(environment, whole)
        warm = deployed(environment, rounds)
        trial, scoring = swept(environment, trials=rounds + 1)
    extra = flow - stages
    return {
        "machine": limits.machine(),
        "rows": [
            _row("slm run", "to the first stage", statistics.median(cold), "s", 20.0),
            _row("slm up", "to the first stage", statistics.median(warm), "s", 6.0),
            _row("flow", "beyond its stages", extra, "s", 0.03 * LONG),
            _row("flow", "beyond its stages, of itself", 100 * extra / flow, "%", 3.0),
            _row("trial of a sweep", "beyond its steps and scoring", trial, "s", 1.0),
            limits.row("trial of a sweep", "scoring held-out documents", scoring, "s"),
        ],
    }


def _row(name: str, metric: str, value: float, unit: str, allowed: float) -> dict[str, Any]:
    return limits.row(name, metric, value, unit, value / allowed)


def embedded(environment: dict[str, str], overrides: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of `slm run`: before the first stage, from then to the end, and in the stages."""
    settings = [f"--set={name}={json.dumps(value)}" for name, value in overrides.items()]
    began = time.monotonic()
    command = [sys.executable, "-m", "slm.cli.main", "run", "quickstart", *settings, "--json"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        times: dict[str, float] = {}  # the first word of a line → when it was printed
        for line in process.stderr:
            times.setdefault(line.split()[0] if line.strip() else "", time.monotonic())
            last = line
        output = process.stdout.readlines()
    assert process.returncode == 0, last
    seconds = json.loads(output[-1])["seconds"]
    first = times["download"] - began - seconds["download"]
    return first, times["val_bpb"] - began - first, sum(seconds.values())


def deployed(environment: dict[str, str], rounds: int) -> list[float]:
    """Seconds from asking for runs of a deployment to the start of their first task."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId

    prefect, mlflow = PORTS
    command = [sys.executable, "-m", "slm.cli.main", "up", "--prefect-port", prefect]
    log = Path(environment["SLM_DATA"]) / "up.log"
    with log.open("w") as output:
        stack = subprocess.Popen(
            [*command, "--mlflow-port", mlflow], env=environment, stdout=output, stderr=output
        )
    seconds = []
    try:
        while "Ctrl-C" not in log.read_text():
            assert stack.poll() is None, log.read_text()
            time.sleep(0.2)
        with SyncPrefectClient(f"http://127.0.0.1:{prefect}/api") as client:
            deployment = client.read_deployment_by_name("pipeline/quickstart")
            for seed in range(rounds + 1):  # the first is for warming up
                parameters = {"overrides": SMALL | {"train.seed": 100 + seed}}
                flow_run = client.create_flow_run_from_deployment(
                    deployment.id, parameters=parameters
                )
                while (state := flow_run.state) is None or not state.is_final():
                    time.sleep(0.5)
                    flow_run = client.read_flow_run(flow_run.id)
                of_it = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[flow_run.id]))
                tasks = client.read_task_runs(task_run_filter=of_it)
                start = min(task.start_time for task in tasks if task.start_time)
                assert flow_run.created is not None
                seconds.append((start - flow_run.created).total_seconds())
    finally:
        stack.terminate()
        stack.wait()
    return seconds[1:]


def swept(environment: dict[str, str], trials: int) -> tuple[float, float]:
    """Of a trial of a sweep of `quickstart`, medians: seconds beyond its work, and of scoring.

    All is read from the times in the data folder. The first trial, which starts the process that
    the others are forked from, does not count.
    """
    command = [
        *(sys.executable, "-m", "slm.cli.main", "sweep", "quickstart", "--name", "measured"),
        *("--space", "train.learning_rate=log:1e-3:1e-2", "--trials", str(trials)),
        *("--batch", str(trials), "--set", "train.max_steps=20", "--json"),
    ]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    data = Path(environment["SLM_DATA"])
    records = sorted(next((data / "sweeps").glob("measured-*")).glob("trials/*.json"))
    beyond, scoring = [], []
    for before, record in pairwise(records):
        trained = json.loads(record.read_text())["seeds"][0]
        run = data / "runs" / trained["run"]
        journal = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        held_out = sum(
            after["time"] - entry["time"]
            for entry, after in pairwise(journal)
            if after["event"] in ("evaluate", "end")
        )
        evaluated = (run / "evaluation" / "record.json").stat().st_mtime
        held_out += evaluated - (run / "record.json").stat().st_mtime
        wall = record.stat().st_mtime - before.stat().st_mtime
        scoring.append(held_out)
        beyond.append(wall - trained["seconds"] - held_out)
    return statistics.median(beyond), statistics.median(scoring)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-seconds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    os.chdir(project_root())
    result = run(given.rounds, given.train_seconds)
    if given.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
