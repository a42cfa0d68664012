"""What is decided before the training process starts, and what its end means."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from slm.config import PipelineConfig
from slm.errors import CorruptionError, TrainingError, UserError
from slm.progress import silent
from slm.records import Plan, Shards, ShardSplit
from slm.run_folder import LOG, PLAN, RunFolder
from slm.storage import RECORD, write_json
from slm.training import launch, supervisor
from slm.training import plan as plan_module
from slm.training.child import child_environment
from slm.training.plan import MIN_TOKENS_PER_DEVICE
from slm.training.processes import planned_processes, process_count

Config = Callable[..., PipelineConfig]
PLANNED = Plan(
    max_steps=9,
    rows=16,
    micro_batch_size=1,
    world_size=2,
    device="cpu",
    precision="fp32",
    threads=1,
    compile=False,
)


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    """A step has 12 rows, each of which is worth a GPU."""
    length = MIN_TOKENS_PER_DEVICE
    return tiny_config(**{"train.tokens_per_step": 12 * length, "model.seq_len": length})


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    split = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    return Shards(
        key="k",
        path=tmp_path / "shards",
        source_key="",
        tokenizer_sha256="",
        vocab_size=257,
        eot=256,
        splits={"train": split, "val": split},
    )


def changed(config: PipelineConfig, **fields: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


@pytest.mark.parametrize(
    ("gpus", "settings", "processes"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (4, {}, 4),
        (5, {}, 4),  # 12 rows: 4 micro-batches
        (8, {"micro_batches": 6}, 6),
        (5, {"micro_batches": 6}, 3),  # as fast as 4 or 5
        (8, {"micro_batches": 6, "processes": 4}, 4),
        (8, {"device": "cpu"}, 1),
        (8, {"processes": 5}, 4),  # as many as there are micro-batches
        (5, {"parallel": "ddp"}, 4),
        (8, {"parallel": "ddp", "micro_batch_size": 4}, 3),
        (8, {"parallel": "ddp", "micro_batch_size": 12}, 1),
        (8, {"parallel": "ddp", "processes": 5}, 5),  # as configured, and refused by the plan
        (8, {"tokens_per_step": 2 * MIN_TOKENS_PER_DEVICE}, 2),
    ],
)
def test_as_many_processes_as_gpus_that_the_rows_divide_among(
    gpus: int,
    settings: dict[str, object],
    processes: int,
    config: PipelineConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slm.training.processes.gpu_count", lambda: gpus)
    configured = changed(config, **{"device": "auto", **settings})
    assert process_count(RunFolder(tmp_path), configured) == processes


def test_a_small_batch_takes_one_gpu(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of GPUs would divide these rows."""
    monkeypatch.setattr("slm.training.processes.gpu_count", lambda: 8)
    small = {"train.tokens_per_step": 2 * MIN_TOKENS_PER_DEVICE - 32, "model.seq_len": 32}
    assert planned_processes(tiny_config(**small)) == 1


def test_a_run_resumes_with_as_many_processes_as_can_work_now(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan has two micro-batches: it is of an older run that was started with two."""
    run, gpus = RunFolder(tmp_path), changed(config, device="auto")
    monkeypatch.setattr("slm.training.processes.gpu_count", lambda: 1)
    write_json(tmp_path / PLAN, PLANNED.model_dump(mode="json"))
    assert process_count(run, gpus) == 1
    assert process_count(run, changed(config, processes=5)) == 2
    on_gpus = PLANNED.model_copy(update={"device": "cuda"})
    write_json(tmp_path / PLAN, on_gpus.model_dump(mode="json"))
    assert process_count(run, changed(gpus, processes=2)) == 1
    monkeypatch.setattr("slm.training.processes.gpu_count", lambda: 8)
    assert process_count(run, gpus) == 2
    monkeypatch.setattr("slm.training.processes.gpu_count", lambda: 0)
    with pytest.raises(UserError, match="started on a GPU, and torch sees none here"):
        process_count(run, gpus)


# ---- the child's environment ------------------------------------------------------------------


def test_what_is_exported_wins(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "2",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
    }
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    assert exported.items() <= child_environment(tiny_config()).items()


@pytest.mark.parametrize("policy", [None, "passive", "active"])
def test_threads_spin_shortly_unless_the_user_has_chosen(
    policy: str | None, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libgomp's spin count wins over its wait policy, so only one of them may be set."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    environment = child_environment(tiny_config())
    assert environment.get("OMP_WAIT_POLICY") == policy
    assert environment.get("GOMP_SPINCOUNT") == (None if policy else "5000")


def test_configured_threads_win_with_a_warning(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert child_environment(tiny_config())["OMP_NUM_THREADS"] == "3"
    assert not caplog.text
    four = child_environment(tiny_config(**{"train.threads": 4}))
    assert four["OMP_NUM_THREADS"] == "4"
    assert "train.threads=4 is used instead of OMP_NUM_THREADS=3" in caplog.text


def test_processes_of_one_machine_share_its_cores(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(plan_module, "available_cores", lambda: 8)
    for processes, threads in ((1, "8"), (3, "2"), (16, "1")):
        environment = child_environment(tiny_config(), processes)
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == threads


def test_a_training_is_started_with_each_process_share_of_the_cores(
    config: PipelineConfig, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[dict[str, str]] = []

    class Ended:
        returncode = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            environments.append(options["env"])

        def poll(self) -> int:
            return self.returncode

    two = changed(config, processes=2, micro_batches=2)
    run = launch.prepare(two, shards, root=tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(plan_module, "available_cores", lambda: 8)
    monkeypatch.setattr(subprocess, "Popen", Ended)
    supervisor.supervise(run, two, silent, lambda event: None)
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["4"]


@pytest.mark.parametrize("older", ["", "max_split_size_mb:64"])
def test_the_cuda_allocator_is_configured_by_one_variable(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    """By the present name, unless the user has set the older one."""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    if older:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", older)
    environment = child_environment(tiny_config())
    names = {name for name in environment if name.endswith("ALLOC_CONF")}
    assert names == {"PYTORCH_CUDA_ALLOC_CONF" if older else "PYTORCH_ALLOC_CONF"}


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", '{"max_steps": 3}', "\0\0"])
def test_a_plan_that_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    assert RunFolder(tmp_path).plan is None
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(CorruptionError, match=r"plan\.json cannot be read"):
        _ = RunFolder(tmp_path).plan


def test_settings_outside_the_key_are_those_of_now(
    config: PipelineConfig, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the run is finished: then its record vouches for them."""
    run = launch.prepare(config, shards, root=tmp_path)
    before = run.config

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "supervise", stopped)
    more = changed(config, keep_checkpoints=7)
    with pytest.raises(KeyboardInterrupt):
        launch.train(more, shards, root=tmp_path)
    assert run.config == changed(before, keep_checkpoints=7)
    (run.path / RECORD).touch()
    launch.renew_settings(run, config)
    assert run.config.train.keep_checkpoints == 7


def test_the_message_of_a_kill_explains_what_another_batch_would_mean(tmp_path: Path) -> None:
    (tmp_path / LOG).touch()
    with pytest.raises(TrainingError, match="is another run, from its first step"):
        supervisor.check_exit(-signal.SIGKILL, RunFolder(tmp_path), 0)


SAVING = """
import signal, sys
def save(*_):
    print("saving", flush=True)
    sys.stdin.read()  # until the test lets it end
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, -signal.SIGKILL)]
)
def test_only_a_second_ctrl_c_cuts_a_save_short(number: signal.Signals, code: int) -> None:
    """SIGTERM may come again from whoever passes it on."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", SAVING], stdin=pipe, stdout=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()

    def signal_again(stdin: IO[bytes], stdout: IO[bytes]) -> None:
        stdout.readline()  # it saves
        os.kill(os.getpid(), number)
        if number == signal.SIGTERM:
            stdin.close()

    again = threading.Thread(target=signal_again, args=(child.stdin, child.stdout))
    again.start()
    with suppress(KeyboardInterrupt):
        supervisor.stop(child)
    again.join()
    child.stdin.close()
    child.stdout.close()
    assert child.returncode == code
