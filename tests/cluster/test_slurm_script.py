"""The script for sbatch: where each option goes, what is refused, and what the shell does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import tool

import slm
from slm.cli import main
from slm.cluster.slurm import launch_slurm, limit_seconds
from slm.cluster.trials import grid, parse_each, settings_of
from slm.errors import UserError
from slm.recipes import parse_overrides

pytestmark = pytest.mark.usefixtures("project")

EVERYTHING: dict[str, Any] = {
    "nodes": 2, "gpus_per_node": "a100:4", "cpus": 8, "memory": "32G", "time": "1-02:00",
    "partition": "gpu,cpu", "account": "a.b", "qos": "low", "directives": ["constraint=a100&ib"],
    "log": "logs/%x %j.log", "save_seconds": 300, "at_once": 2, "venv": "/a 'b", "data": "/c d",
    "setup": ["module load cuda"], "until": "register",
    "trials": [{"train.seed": 1}, {"train.seed": 2}, {"report.prompts": ["It's", "$HOME `x`"]}],
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {}, {"nodes": 3}, {"until": "encode"}, {"trials": EVERYTHING["trials"]}, EVERYTHING,
]  # fmt: skip


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH --(.+)$", script, flags=re.MULTILINE)


def test_every_option_is_in_the_directive_of_its_own() -> None:
    script = launch_slurm("tiny", {"train.max_steps": 9}, **EVERYTHING)
    assert directives(script) == [
        "job-name=tiny", 'output="logs/%x %j.log"', "open-mode=append", "requeue",
        "signal=B:USR1@300", "array=0-2%2", "time=1-02:00", "partition=gpu,cpu", "account=a.b",
        "qos=low", "nodes=2", "ntasks-per-node=1", "gpus-per-node=a100:4", "cpus-per-task=8",
        "mem=32G", "constraint=a100&ib",
    ]  # fmt: skip
    lines = script.splitlines()
    for line in ("module load cuda", "source '/a '\"'\"'b/bin/activate'", "export SLM_DATA='/c d'"):
        assert line in lines
    # sbatch reads no directive below the first command
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < lines.index(
        "set -eo pipefail"
    )


def test_without_options_the_script_has_no_resource_and_no_path() -> None:
    script = launch_slurm()
    assert directives(script) == [
        "job-name=tiny", 'output="tiny-%j.log"', "open-mode=append", "requeue",
        "signal=B:USR1@120", "nodes=1", "ntasks-per-node=1",
    ]  # fmt: skip
    assert "SLM_DATA" not in script
    assert "activate" not in script
    assert str(Path.cwd()) not in script
    assert sys.prefix not in script


by_name = pytest.mark.parametrize("options", VARIANTS, ids=lambda each: " ".join(each) or "none")


@by_name
def test_bash_reads_the_script(options: dict[str, Any]) -> None:
    script = launch_slurm("tiny", {"report.prompts": ["It's"]}, **options)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert max(map(len, re.sub(r"trial=.*|recipe=.*", "", script).splitlines())) <= 100
    assert "\n\n\n" not in script


@by_name
def test_shellcheck_has_nothing_to_say(options: dict[str, Any]) -> None:
    script = launch_slurm("tiny", {"report.prompts": ["It's"]}, **options)
    quoted_on_purpose = "--exclude=SC2016"  # `$HOME` in single quotes
    done = subprocess.run(
        [tool("shellcheck"), quoted_on_purpose, "-"],
        input=script, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# ---- trials --------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_as_it_was_written() -> None:
    each = parse_each(["train.seed=1, 2", "report.top_ks=[5],[6, 7]", "data.separator='a,b',c"])
    assert each == {
        "train.seed": [1, 2], "report.top_ks": [[5], [6, 7]], "data.separator": ["a,b", "c"],
    }  # fmt: skip
    combinations = grid(each)
    assert len(combinations) == 8
    assert combinations[0] == {
        "train.seed": 1, "report.top_ks": [5], "data.separator": "a,b",
    }  # fmt: skip
    assert [trial["data.separator"] for trial in combinations[:3]] == ["a,b", "c", "a,b"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.learning_rate": 1e-05, "train.max_steps": 100, "model.n_kv_head": None},
        {"report.prompts": ["It's", 'a "b"', "c\nd", "  e"], "report.top_ks": (1, 2)},
        {"data.path": "a b", "data.separator": "\n\n", "data.template": r"{a}\n{b}"},
        {"data.path": "null", "name": "'x'", "train.deterministic": False, "data.revision": None},
    ],
)
def test_overrides_are_written_so_that_they_are_read_as_they_were(
    overrides: dict[str, Any],
) -> None:
    read = parse_overrides(settings_of(overrides))
    assert read == {k: list(v) if isinstance(v, tuple) else v for k, v in overrides.items()}


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "4h"}, "time='4h' is no time limit of Slurm"),
        ({"time": "2:30"}, "time=2:30 leaves nothing to train in"),
        ({"partition": "a\n#SBATCH --uid=0"}, "partition="),
        ({"account": "a b"}, "account='a b': give a name"),
        ({"gpus_per_node": 0}, "gpus_per_node=0: give 8, or TYPE:8"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"nodes": 0}, "nodes=0: give a whole number above 0"),
        ({"cpus": True}, "cpus=True"),
        ({"log": 'a"b'}, "without quotes"),
        ({"setup": ["a\nb"]}, "one line"),
        ({"directives": ["-N 3"]}, "give a long option of sbatch"),
        ({"directives": ["--signal=B:TERM@5"]}, "directive signal: the script has its own"),
        ({"directives": ["no-requeue"]}, "directive no-requeue"),
        ({"at_once": 2}, "limits an array"),
        ({"until": "sample"}, "give one of encode, train, register"),
        ({"until": "encode", "nodes": 2}, "encoding takes one node"),
        ({"trials": [{"train.seed": 1}, {"train.seed": -1}]}, "a seed is a whole number"),
        ({"trials": [{"train.seed": 1}, {"train.seed": 1}]}, "trials 0 and 1 are the same"),
        ({"trials": [{"train.sed": 1}]}, "did you mean 'train.seed'"),
        ({"overrides": {"train.lr": 1}}, "did you mean 'train.learning_rate'"),
        ({"recipe": "tinny"}, "did you mean 'tiny'"),
    ],
)
def test_what_is_wrong_is_one_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        launch_slurm(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train.seed"], "is not KEY=A,B"),
        (["train.seed="], "is not KEY=A,B"),
        (["train.seed=1", "train.seed=2"], "given twice"),
        (["data.path='a"], "not a YAML list"),
        (["train.seed=1] [2"], "not a YAML list"),
    ],
)
def test_values_that_are_no_list_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_each(given)


def test_a_grid_without_end_is_refused_before_it_is_made() -> None:
    with pytest.raises(UserError, match="at most 1,000"):
        grid({f"report.seed{i}": range(1000) for i in range(9)})


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800), ("30:10", 1810), ("4:00:00", 14_400), ("2-12", 216_000),
        ("1-02:30", 95_400), ("1-02:30:05", 95_405),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(time: str, seconds: int) -> None:
    assert limit_seconds(time) == seconds


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs `slm launch slurm …`; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slm", "launch", "slurm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)


def test_the_command_prints_the_script_of_the_function(invoke: Any, tmp_path: Path) -> None:
    overrides = {"train.max_steps": 9, "name": "mine"}
    options = ["tiny", "--set", "train.max_steps=9", "--name", "mine", "--time", "4:00:00"]
    code, out, err = invoke(*options)
    assert (code, out) == (0, slm.launch_slurm("tiny", overrides, time="4:00:00"))
    assert err.startswith("next      sbatch FILE")
    file = tmp_path / "job.sh"
    each = ["--set-each", "train.seed=1,2", "--gpus-per-node", "2", "--cpus", "4"]
    code, out, err = invoke(*options, *each, "--output", str(file), "--json")
    shown = json.loads(out)
    assert (code, shown["job"], shown["file"]) == (0, None, str(file))
    assert shown["trials"] == [{"train.seed": 1}, {"train.seed": 2}]
    assert file.read_text() == shown["script"]
    assert "gpus-per-node=2" in directives(shown["script"])
    code, out, err = invoke(*options, "--output", str(file))
    assert code == 2
    assert "exists: give another --output" in err
    assert invoke(*options, "--output", str(tmp_path / "no" / "job.sh"))[0] == 2
    assert invoke("tiny", "--time", "4h")[0] == 2


def test_submit_hands_the_script_to_sbatch(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(bin_))
    code, out, err = invoke("tiny", "--submit")
    assert (code, out) == (2, "")
    assert "sbatch is not on PATH" in err
    monkeypatch.setenv("PATH", f"{bin_}:{os.defpath}")
    program(bin_, "sbatch", f'[[ "$*" == --parsable ]] && cat > "{tmp_path}/got" && echo "7;west"')
    code, out, err = invoke("tiny", "--submit", "--json")
    assert (code, json.loads(out)["job"]) == (0, "7")
    assert (tmp_path / "got").read_text() == json.loads(out)["script"] == launch_slurm("tiny")
    code, out, err = invoke("tiny", "--submit")
    assert out == "job       7\n"
    program(bin_, "sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    code, out, err = invoke("tiny", "--submit")
    assert (code, out) == (1, "")
    assert "sbatch refused the job: sbatch: error: invalid partition" in err


# ---- what the shell does -------------------------------------------------------------------------

SLM = """
echo "slm $*" >> calls
trap 'echo "slm: TERM" >> calls; sleep 0.1; exit {interrupted}' TERM
touch started
for _ in $(seq {patience}); do sleep 0.02; done
exit {code}
"""


@pytest.fixture
def job(project: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs a script, with imitations of slm and of Slurm's commands; returns its exit code, calls.

    `signals` are sent to the shell once slm has started.
    """

    def run(
        script: str,
        *signals: signal.Signals,
        code: int = 0,
        interrupted: int = 130,
        **variables: str,
    ) -> tuple[int, list[str]]:
        bin_ = project / "bin"
        patience = 500 if signals else 1
        program(bin_, "slm", SLM.format(code=code, interrupted=interrupted, patience=patience))
        program(bin_, "scontrol", '[[ $1 == requeue ]] && echo "scontrol $*" >> calls\necho one')
        program(bin_, "scancel", 'echo "scancel $*" >> calls; kill -TERM "$(cat pid)"')
        program(
            bin_, "srun",
            'echo "srun" >> calls; while [[ $1 == -* ]]; do shift; done\n'
            '"$@" & echo $! > pid; wait $!',
        )  # fmt: skip
        environment = {"PATH": f"{bin_}:{os.defpath}", "SLURM_JOB_ID": "123", **variables}
        environment |= {"SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_NUM_NODES": "2"}
        shell = subprocess.Popen(["bash", "-c", script], env=environment, cwd=project)
        deadline = time.monotonic() + 60
        for number in signals:
            while not (project / "started").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            shell.send_signal(number)
        ended = shell.wait(60)
        return ended, (project / "calls").read_text().splitlines()

    return run


def test_the_job_runs_the_recipe_with_its_settings(job: Any) -> None:
    script = launch_slurm("tiny", {"report.prompts": ["It's $HOME"], "train.max_steps": 9})
    words = 'slm run tiny --set report.prompts=["It\'s $HOME"] --set train.max_steps=9'
    assert job(script) == (0, [words])


def test_the_exit_code_is_that_of_slm(job: Any) -> None:
    code, calls = job(launch_slurm("tiny", until="train"), code=2)
    assert (code, calls) == (2, ["slm train tiny"])


@pytest.mark.parametrize("interrupted", [130, 143])
def test_before_the_time_limit_slm_saves_and_the_job_is_queued_again(
    job: Any, interrupted: int
) -> None:
    code, calls = job(launch_slurm("tiny"), signal.SIGUSR1, interrupted=interrupted)
    assert (code, calls) == (
        interrupted,
        ["slm run tiny", "slm: TERM", "scontrol requeue 123"],
    )


def test_what_is_done_at_the_time_limit_is_not_queued_again(job: Any) -> None:
    code, calls = job(launch_slurm("tiny"), signal.SIGUSR1, interrupted=0)
    assert (code, calls) == (0, ["slm run tiny", "slm: TERM"])


def test_what_ends_the_job_otherwise_does_not_queue_it(job: Any) -> None:
    """Of a preemption Slurm queues it itself; who cancels a job does not want it back."""
    code, calls = job(launch_slurm("tiny"), signal.SIGTERM)
    assert (code, calls) == (130, ["slm run tiny", "slm: TERM"])


def test_a_task_of_an_array_runs_its_trial_and_queues_itself_alone(job: Any) -> None:
    script = launch_slurm("tiny", trials=[{"train.seed": 1}, {"train.seed": 2}])
    variables = {"SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "1"}
    code, calls = job(script, signal.SIGUSR1, **variables)
    assert (code, calls[0], calls[-1]) == (
        130, "slm train tiny --set train.seed=2", "scontrol requeue 120_1",
    )  # fmt: skip


def test_several_nodes_encode_once_train_together_and_register_once(job: Any) -> None:
    code, calls = job(launch_slurm("tiny", nodes=2))
    nodes = "--set train.launch.nnodes=2 --set train.launch.rdzv_endpoint=one:20123"
    assert (code, calls) == (
        0,
        ["srun", "slm encode tiny", "srun", f"slm train tiny {nodes}", "srun", "slm run tiny"],
    )


def test_of_several_nodes_the_tasks_are_asked_to_save_and_not_srun(job: Any) -> None:
    """srun that gets a TERM kills its tasks."""
    code, calls = job(launch_slurm("tiny", nodes=2), signal.SIGUSR1)
    assert code == 130
    assert calls[2:] == ["scancel --signal=TERM 123", "slm: TERM", "scontrol requeue 123"]
