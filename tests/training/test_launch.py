"""What is decided before the training process starts, and what its end is taken to mean."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from slm.config import PipelineConfig
from slm.errors import CorruptionError, TrainingError, UserError
from slm.records import Plan, Shards, ShardSplit
from slm.run_folder import PLAN, RunFolder
from slm.storage import RECORD, write_json
from slm.training import launch

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
    """A step has 12 rows."""
    return tiny_config(**{"train.tokens_per_step": 12 * 16, "model.seq_len": 16})


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
        (5, {}, 4),  # 12 rows
        (8, {"micro_batch_size": 4}, 3),
        (8, {"micro_batch_size": 12}, 1),
        (8, {"device": "cpu"}, 1),
        (8, {"processes": 5}, 5),  # as asked, and refused by the plan
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
    monkeypatch.setattr(launch, "gpu_count", lambda: gpus)
    assert launch.process_count(
        RunFolder(tmp_path), changed(config, **{"device": "auto", **settings})
    ) == (processes)


def test_a_run_goes_on_with_the_processes_that_it_began_with(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: 1)
    write_json(tmp_path / PLAN, PLANNED.model_dump(mode="json"))
    assert launch.process_count(RunFolder(tmp_path), changed(config, device="auto")) == 2
    on_gpus = PLANNED.model_copy(update={"device": "cuda"})
    write_json(tmp_path / PLAN, on_gpus.model_dump(mode="json"))
    with pytest.raises(UserError, match="begun on 2 GPUs, of which 1 are here"):
        launch.process_count(RunFolder(tmp_path), changed(config, device="auto"))


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
    before = RunFolder(run.path).config

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "supervise", stopped)
    more = changed(config, keep_checkpoints=7)
    with pytest.raises(KeyboardInterrupt):
        launch.train(more, shards, root=tmp_path)
    assert RunFolder(run.path).config == changed(before, keep_checkpoints=7)
    (run.path / RECORD).touch()
    launch.renew_settings(run, config)
    assert RunFolder(run.path).config.train.keep_checkpoints == 7


def test_a_kill_says_what_another_batch_would_mean(tmp_path: Path) -> None:
    (tmp_path / launch.LOG).touch()
    with pytest.raises(TrainingError, match="is another run, from its first step"):
        launch.check_exit(-signal.SIGKILL, RunFolder(tmp_path), 0)


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
        launch.stop(child)
    again.join()
    child.stdin.close()
    child.stdout.close()
    assert child.returncode == code
