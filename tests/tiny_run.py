"""A real run of a second, from a file to its evaluation."""

import atexit
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from slm.config import DataConfig, ModelConfig, PipelineConfig, RegistryConfig, TrainConfig
from slm.evaluation.evaluate import evaluate
from slm.records import Run, Shards
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.source.stories import stories
from slm.tokens.encode import encode
from slm.training import launch, provenance, supervisor
from slm.training.loop import train

CLEAN = {"commit": "c" * 40, "dirty": False, "diff_sha256": None}
DIRTY = {"commit": "c" * 40, "dirty": True, "diff_sha256": "d" * 64}


def tiny_config(path: Path, **training: Any) -> PipelineConfig:
    """A config of four steps on the documents of a file."""
    settings = {
        "max_steps": 4, "tokens_per_step": 128, "evaluate_every": 2, "evaluate_documents": 2,
        "checkpoint_every": 2,
    }  # fmt: skip
    return PipelineConfig(
        recipe="tiny",
        data=DataConfig(source="files", path=str(path), vocab_size=512, val_fraction=0.2),
        model=ModelConfig(architecture="qwen3", n_layer=1, n_head=2, n_embd=32, seq_len=32),
        train=TrainConfig(**{**settings, **training}),
        registry=RegistryConfig(model="slm"),
    )


def write_documents(path: Path) -> Path:
    return add_documents(path, 7, 80)


def add_documents(path: Path, seed: int, count: int) -> Path:
    """Write so many generated stories into a file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories(seed, 0, count)))
    return path


def make_run(root: Path, config: PipelineConfig) -> Run:
    """Run every stage up to the evaluation, in this process."""
    shards = encode(config, download(config, root=root), root=root)
    folder = launch.prepare(config, shards, root=root)
    train(folder)
    run = folder.verified_record
    assert run is not None
    evaluate(config, run, shards)
    return run


@cache
def _documents() -> Path:
    """The file that all runs are made from."""
    session = Path(mkdtemp(prefix="slm-tiny-run-"))
    atexit.register(shutil.rmtree, session, ignore_errors=True)
    return write_documents(session / "documents.jsonl")


@cache
def _trained(**training: Any) -> Path:
    """The data folder of a run that is trained once per session, with clean code."""
    path = _documents()
    config = tiny_config(path, **training)
    root = Path(mkdtemp(dir=path.parent))
    with code(CLEAN):
        make_run(root, config)
    return root


def copy_run(root: Path, **training: Any) -> Path:
    """Put a trained run, its shards and its source into a data folder; return the run's folder."""
    shutil.copytree(_trained(**training), root, dirs_exist_ok=True)
    name = next((_trained(**training) / "runs").iterdir()).name
    return root / "runs" / name


@contextmanager
def code(state: dict[str, Any]) -> Iterator[None]:
    """Report this state of the code, and train without a child process, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "code_state", lambda: state)
        patch.setattr(supervisor, "supervise", lambda run, *_: train(run))
        yield


def flip_byte(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def shards_of(run: Run) -> Shards:
    """What a run was trained on."""
    shards = RunFolder.of(run).shards
    assert shards is not None
    return shards
