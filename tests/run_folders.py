"""Run folders as the trainer leaves them, made in milliseconds, for the tests of the mirror."""

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from slm import storage
from slm.config import ModelConfig, PipelineConfig, TrainConfig
from slm.records import Checkpoint, Run, Shards, ShardSplit, Source, SourceSplit

CONFIG = PipelineConfig(
    recipe="tiny",
    model=ModelConfig(n_layer=2, n_head=2, n_embd=32, seq_len=32),
    train=TrainConfig(max_steps=60, tokens_per_step=128),
)
KEY = "ab" * 32
START = 1_700_000_000.0


def step_events(first: int, last: int, start: float = START) -> list[dict[str, object]]:
    """What training writes for the steps first … last: a line a step, a score every tenth."""
    events: list[dict[str, object]] = []
    for step in range(first, last + 1):
        time = start + step / 4
        loss = 1 / step
        events.append(
            {"event": "step", "step": step, "time": time, "train_loss": loss, "lr": 1e-3 * loss}
        )
        if step % 10 == 0:
            events.append(
                {"event": "evaluate", "step": step, "time": time, "val_loss": loss, "val_bpb": loss}
            )
    return events


def write_journal(path: Path, events: list[dict[str, object]]) -> None:
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def start_run(root: Path, config: PipelineConfig = CONFIG, key: str = KEY) -> Path:
    """The folder of a run that has trained no step yet, with its source and shards."""
    source_folder = root / "sources" / f"{config.recipe}-{'5' * 12}"
    shards_folder = root / "shards" / f"{config.recipe}-{'6' * 12}"
    if not source_folder.exists():
        _commit_data(source_folder, shards_folder)
    path = root / "runs" / f"{config.recipe}-{key[:12]}"
    (path / "checkpoints").mkdir(parents=True)
    settings = {
        "key": key,
        "config": config.model_dump(mode="json"),
        "shards": shards_folder.name,
        "shards_key": "6" * 64,
    }
    storage.write_json(path / "config.json", settings)
    storage.write_json(path / "plan.json", {"max_steps": 60, "precision": "fp32"})
    write_journal(path, [{"event": "start", "time": START}])
    return path


def _commit_data(source_folder: Path, shards_folder: Path) -> None:
    def staged(folder: Path, names: list[str]) -> Path:
        staging = folder.with_name(folder.name + ".tmp")
        staging.mkdir(parents=True)
        for name in names:
            (staging / name).write_text(name)
        return staging

    split = SourceSplit(files=["train_00000.parquet"], documents=9, bytes=90)
    source = Source(key="5" * 64, dataset="stories", revision="r1", splits={"train": split})
    storage.commit(staged(source_folder, split.files), source_folder, source)
    splits = {
        name: ShardSplit(files=[f"{name}_00000.bin"], documents=3, tokens=30, bytes=60)
        for name in ("train", "val")
    }
    shards = Shards(
        key="6" * 64,
        source_key=source.key,
        tokenizer_sha256="7" * 64,
        vocab_size=260,
        eot=259,
        splits=splits,
    )
    names = [file for split in splits.values() for file in split.files]
    storage.commit(staged(shards_folder, names), shards_folder, shards)


def add_checkpoint(path: Path, step: int) -> Checkpoint:
    folder = path / "checkpoints" / f"step_{step:06d}"
    staging = folder.with_name(folder.name + ".tmp")
    staging.mkdir()
    save_file({"weight": np.full(4, step, np.float32)}, staging / "model.safetensors")
    (staging / "config.json").write_text("{}")
    (staging / "tokenizer.tiktoken").write_text("IQ== 0\n")
    checkpoint = Checkpoint(
        key=storage.sha256_bytes(str(step).encode()),
        step=step,
        tokens=128 * step,
        config_sha256="8" * 64,
        shards_key="6" * 64,
        tokenizer_sha256="7" * 64,
        parent_sha256=None,
        train_loss=1 / step,
        val_bpb=1 / step,
    )
    return storage.commit(staging, folder, checkpoint)


def finish_run(path: Path, best: int = 50, last: int = 60, key: str = KEY) -> Run:
    """Adds what the end of the training adds: the checkpoints, and the record."""
    checkpoints = [add_checkpoint(path, step) for step in sorted({best, last})]
    run = Run(
        key=key,
        shards_key="6" * 64,
        best=f"step_{best:06d}",
        last=f"step_{last:06d}",
        step=last,
        tokens=128 * last,
        train_loss=1 / last,
        val_loss=1 / last,
        val_bpb=1 / best,
        tok_per_sec=100.0,
        seconds=15.0,
        parameters=4,
        weights_sha256=checkpoints[-1].weights_sha256,
        level="C",
        environment={"torch": "2.13.0", "python": "3.11", "commit": "c" * 40, "dirty": False},
    )
    storage.write_record(path, run)
    return run.model_copy(update={"path": path})


def killed_after(calls: int, names: list[str], work: Callable[[], object]) -> bool:
    """Does the work in a child that is killed after so many MLflow calls of these names.

    Returns whether it came to that.
    """
    from mlflow import MlflowClient

    child = os.fork()
    if child == 0:
        left = calls

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def counting(*args: object, **kwargs: object) -> object:
                nonlocal left
                result = call(*args, **kwargs)
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return counting

        for name in names:
            setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
