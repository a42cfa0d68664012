"""A training under a real Slurm, interrupted again and again: the bits of one left alone."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import bits
from slurm import MISSING, Slurm, slurm, until

import slm
from slm.cluster.slurm import launch_slurm
from slm.run_folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

STEPS = 1500
REQUEUES = 10
OVERRIDES = {
    "train.max_steps": STEPS,
    "train.tokens_per_step": 2048,
    "train.micro_batch_size": 64,
    "train.threads": 1,
    "train.evaluate_every": 500,
    "train.checkpoint_every": 1000,
    "model.dropout": 0.1,
}


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A folder like that of a virtual environment, whose `slm` is this checkout's."""
    program = tmp_path / "a venv" / "bin" / "slm"
    program.parent.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    late = '[ "${SLURM_PROCID:-0}" = 0 ] || sleep 20'  # nodes of one address: one listens first
    program.write_text(f'#!/bin/sh\n{late}\nexec {python} -m slm.cli.main "$@"\n')
    program.chmod(0o755)
    paths = os.pathsep.join([str(Path(slm.__file__).parents[1]), *filter(None, sys.path)])
    (program.parent / "activate").write_text(
        f'PATH={shlex.quote(str(program.parent))}:"$PATH"\nexport PYTHONPATH={shlex.quote(paths)}\n'
    )
    return program.parents[1]


def submit(cluster: Slurm, script: str, project: Path) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, env=cluster.environment, cwd=project,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def run_in(root: Path) -> RunFolder | None:
    """The one run of a data folder, once there is one."""
    return next(map(RunFolder, (root / "runs").glob("tiny-*")), None)


def steps(root: Path) -> int:
    """The steps that the training of a data folder has done."""
    run = run_in(root)
    return max((entry["step"] for entry in run.journal if "step" in entry), default=0) if run else 0


def requeue(cluster: Slurm, job: str, count: int) -> None:
    """End a job that it is queued again, each time in another way."""
    if count % 3 == 0:  # a more urgent job
        urgent = cluster.run(
            "sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodelist=node1",
            "--output=/dev/null", "--wrap=true",
        )  # fmt: skip
        cluster.wait_for(urgent, "COMPLETED")
    elif count % 3 == 1:  # somebody
        cluster.run("scontrol", "requeue", job)
    else:  # what comes before the time limit
        cluster.run("scancel", "--batch", "--signal=USR1", job)


def test_a_job_that_is_requeued_ten_times_ends_with_the_bits_of_one_left_alone(
    tmp_path: Path, project: Path, venv: Path
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    script = launch_slurm(
        "tiny", OVERRIDES, until="train", cpus=os.cpu_count(), time="3:00:00", venv=venv,
        data=disturbed, log="job.log", directives=["nodelist=node1"],
    )  # fmt: skip
    with slurm(tmp_path / "slurm") as cluster:
        alone = submit(cluster, script.replace(str(disturbed), str(undisturbed)), project)
        assert cluster.wait_for(alone, "COMPLETED", "FAILED")["Restarts"] == "0"
        job = submit(cluster, script, project)
        for count in range(1, REQUEUES + 1):
            before = steps(disturbed)
            until(lambda: steps(disturbed) > before + 10, f"new steps after {before}")  # noqa: B023
            assert cluster.job(job)["JobState"] == "RUNNING", f"it ended before requeue {count}"
            requeue(cluster, job, count)
            until(lambda: cluster.job(job)["Restarts"] == str(count), f"requeue {count}")  # noqa: B023
        ended = cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT")
    log = (project / "job.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(REQUEUES)), log
    assert log.count("the time limit: the job is queued again") == 3
    one, other = run_in(undisturbed), run_in(disturbed)
    assert one is not None
    assert other is not None
    assert one.name == other.name
    assert bits(one) == bits(other)
    print(f"{one.name}: {bits(one).weights} {bits(other).weights}")


def test_a_job_resumes_after_its_time_limit_and_stays_away_when_it_is_cancelled(
    tmp_path: Path, project: Path, venv: Path
) -> None:
    root = tmp_path / "data"
    script = launch_slurm(
        "tiny", {**OVERRIDES, "train.max_steps": 1_000_000}, until="train", time="2",
        save_seconds=60, venv=venv, data=root, log="job.log",
    )  # fmt: skip
    with slurm(tmp_path / "slurm") as cluster:
        job = submit(cluster, script, project)
        until(lambda: cluster.job(job)["Restarts"] == "1", "the time limit")
        saved = steps(root)
        assert saved > 0
        until(lambda: steps(root) > saved, "a step more")
        cluster.run("scancel", job)
        cluster.wait_for(job, "CANCELLED")
        run = run_in(root)
        assert run is not None
        until(lambda: not run.is_training, "the training has ended")
        assert cluster.job(job)["Restarts"] == "1"
    last = RunFolder(run.path).last
    assert last is not None
    assert last.step > saved


def test_two_nodes_that_train_together_are_requeued_with_the_bits_of_one(
    tmp_path: Path, project: Path, venv: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    overrides = {**OVERRIDES, "train.max_steps": 400, "train.micro_batches": 2}
    options: dict[str, Any] = {"until": "train", "venv": venv, "time": "3:00:00"}
    with slurm(tmp_path / "slurm") as cluster:
        script = launch_slurm("tiny", overrides, data=alone, log="alone.log", **options)
        first = submit(cluster, script, project)
        assert cluster.wait_for(first, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
        script = launch_slurm("tiny", overrides, nodes=2, data=together, log="job.log", **options)
        assert "address=$first:" in script
        # The nodes of this cluster have names that only Slurm knows.
        job = submit(cluster, script.replace("address=$first:", "address=127.0.0.1:"), project)
        for count, how in enumerate(("USR1", "requeue"), 1):
            before = steps(together)
            until(lambda: steps(together) > before + 10, f"new steps after {before}")  # noqa: B023
            if how == "USR1":
                cluster.run("scancel", "--batch", "--signal=USR1", job)
            else:
                cluster.run("scontrol", "requeue", job)
            until(lambda: cluster.job(job)["Restarts"] == str(count), f"requeue {count}")  # noqa: B023
        ended = cluster.wait_for(job, "COMPLETED", "FAILED")
    log = (project / "job.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), log
    assert "1: train" in log  # both nodes show it
    one, two = run_in(alone), run_in(together)
    assert one is not None
    assert two is not None
    assert bits(one) == bits(two)
