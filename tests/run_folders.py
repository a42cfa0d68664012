"""Run folders as the trainer leaves them, made quickly: for tests of mirror and registry."""

import atexit
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import safetensors.torch
import torch

from slm import storage
from slm.config import ModelConfig, PipelineConfig, TrainConfig
from slm.model.gpt import GPT
from slm.model.saved import describe_model
from slm.records import (
    Checkpoint,
    Evaluation,
    Plan,
    Report,
    Run,
    Shards,
    ShardSplit,
    Source,
    SourceSplit,
)
from slm.run_folder import RunFolder, Settings
from slm.source.stories import stories
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tracking.server import connect

CONFIG = PipelineConfig(
    recipe="tiny",
    model=ModelConfig(n_layer=2, n_head=2, n_embd=32, seq_len=32),
    train=TrainConfig(max_steps=60, tokens_per_step=128),
)
KEY = "ab" * 32
PLAN = Plan(
    max_steps=60,
    rows=4,
    micro_batch_size=4,
    world_size=1,
    device="cpu",
    precision="fp32",
    threads=1,
    compile=False,
)
START = 1_700_000_000.0
SOURCE_KEY, SHARDS_KEY = "5" * 64, "6" * 64
TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
TEXTS = {"train": list(stories(1, 0, 60)), "val": list(stories(1, 60, 100))}


# ---- journals ---------------------------------------------------------------------------------


def step_events(first: int, last: int, start: float = START) -> list[dict[str, object]]:
    """What training writes for the steps first … last: a line per step, a score every tenth."""
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


# ---- stores -----------------------------------------------------------------------------------


@cache
def migrated_store() -> Path:
    """An empty MLflow database with its tables: making them takes over a second."""
    session = Path(mkdtemp(prefix="slm-empty-store-"))
    atexit.register(shutil.rmtree, session, ignore_errors=True)
    path = session / "empty" / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


def empty_store(root: Path) -> Path:
    """Puts an empty store into a data folder; returns the folder."""
    (root / "mlflow").mkdir(parents=True)
    for suffix in ("", ".version"):
        shutil.copy(f"{migrated_store()}{suffix}", root / "mlflow" / f"mlflow.db{suffix}")
    return root


# ---- folders ----------------------------------------------------------------------------------


def start_run(root: Path, config: PipelineConfig = CONFIG, key: str = KEY) -> Path:
    """The folder of a run that has trained no step yet, with its source and shards."""
    commit_data(root, config.recipe)
    path = root / "runs" / f"{config.recipe}-{key[:12]}"
    (path / "checkpoints").mkdir(parents=True)
    run = RunFolder(path)
    run.write_settings(Settings(key, config, SHARDS_KEY, None))
    run.write_plan(PLAN)
    write_journal(path, [{"event": "start", "time": START}])
    return path


def commit_data(root: Path, recipe: str) -> Path:
    """A source and its shards: generated stories as bytes. Returns the shards' folder."""
    source_folder = root / "sources" / f"{recipe}-{SOURCE_KEY[:12]}"
    shards_folder = root / "shards" / f"{recipe}-{SHARDS_KEY[:12]}"
    if shards_folder.exists():
        return shards_folder
    staging = source_folder.with_suffix(".tmp")
    staging.mkdir(parents=True)
    (staging / "train_00000.parquet").write_text("rows")
    held = SourceSplit(files=["train_00000.parquet"], documents=100, bytes=4)
    source = Source(key=SOURCE_KEY, dataset="stories", revision="r1", splits={"train": held})
    storage.commit(staging, source_folder, source)

    staging = shards_folder.with_suffix(".tmp")
    staging.mkdir(parents=True)
    splits = {}
    for split, texts in TEXTS.items():
        ids = np.concatenate([[TOKENIZER.eot, *TOKENIZER.encode(text)] for text in texts])
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        file = f"{split}_00000.bin"
        (staging / file).write_bytes(header.tobytes() + ids.astype("<u2").tobytes())
        splits[split] = ShardSplit(
            files=[file],
            documents=len(texts),
            tokens=len(ids),
            bytes=sum(len(text.encode()) for text in texts),
        )
    TOKENIZER.save(staging / "tokenizer.tiktoken")
    shards = Shards(
        key=SHARDS_KEY,
        source_key=SOURCE_KEY,
        tokenizer_sha256=TOKENIZER.sha256,
        vocab_size=TOKENIZER.n_vocab,
        eot=TOKENIZER.eot,
        splits=splits,
    )
    storage.commit(staging, shards_folder, shards)
    return shards_folder


@cache
def trained_model(steps: int) -> GPT:
    """A model after some steps of AdamW on the bytes of the stories: more steps, better model."""
    torch.manual_seed(0)
    model = GPT(CONFIG.model, TOKENIZER.n_vocab)
    ids = torch.tensor([i for text in TEXTS["train"] for i in TOKENIZER.encode(text)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        starts = torch.randint(len(ids) - 33, (16,))
        rows = torch.stack([ids[start : start + 33] for start in starts.tolist()])
        logits = model.logits(model(rows[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def add_checkpoint(path: Path, step: int, trained: int = 0, model: GPT | None = None) -> Checkpoint:
    folder = path / "checkpoints" / f"step_{step:06d}"
    staging = folder.with_suffix(".tmp")
    staging.mkdir()
    model = model or trained_model(trained)
    safetensors.torch.save_file(model.state_dict(), staging / "model.safetensors")
    (staging / "config.json").write_text(json.dumps(describe_model(model)))
    TOKENIZER.save(staging / "tokenizer.tiktoken")
    checkpoint = Checkpoint(
        key=storage.sha256_bytes(str(step).encode()),
        step=step,
        tokens=128 * step,
        config_sha256="8" * 64,
        shards_key=SHARDS_KEY,
        tokenizer_sha256=TOKENIZER.sha256,
        parent_sha256=None,
        train_loss=1 / step,
        val_bpb=1 / step,
    )
    return storage.commit(staging, folder, checkpoint)


def finish_run(path: Path, key: str = KEY, trained: int = 0, model: GPT | None = None) -> Run:
    """Adds what the end of the training adds: the checkpoints, and the record.

    `model`: whose weights they have; None: that of `trained_model`.
    """
    best = add_checkpoint(path, 50, trained, model)
    last = add_checkpoint(path, 60, trained, model)
    run = Run(
        key=key,
        shards_key=SHARDS_KEY,
        best=best.name,
        last=last.name,
        step=60,
        tokens=128 * 60,
        train_loss=1 / 60,
        val_loss=1 / 60,
        val_bpb=1 / 60,
        tok_per_sec=100.0,
        seconds=15.0,
        parameters=4,
        weights_sha256=last.weights_sha256,
        level="C",
        environment={"torch": "2.13.0", "python": "3.11", "commit": "c" * 40, "dirty": False},
    )
    storage.write_record(path, run)
    return run.model_copy(update={"path": path})


def add_evaluation(run: Run) -> Evaluation:
    checkpoint = storage.read_record(run.checkpoint("best"), Checkpoint)
    assert checkpoint is not None
    staging = run.path / "evaluation.tmp"
    staging.mkdir()
    (staging / "evaluation.json").write_text('{"documents": []}')
    evaluation = Evaluation(
        key="e" * 64,
        run=run.name,
        checkpoint=checkpoint.name,
        weights_sha256=checkpoint.weights_sha256,
        documents=3,
        tokens=30,
        bytes=60,
        val_loss=0.5,
        val_bpb=0.25,
    )
    return storage.commit(staging, run.path / "evaluation", evaluation)


def add_report(run: Run) -> Report:
    staging = run.path / "report.tmp"
    staging.mkdir()
    (staging / "index.html").write_text("<p>report</p>")
    return storage.commit(staging, run.path / "report", Report(key="d" * 64, run=run.name))


# ---- kills ------------------------------------------------------------------------------------


def killed_after(calls: int, names: list[str], work: Callable[[], object]) -> bool:
    """Does the work in a child process that is killed after so many MLflow calls of these names.

    Returns whether it was killed before it was done.
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
