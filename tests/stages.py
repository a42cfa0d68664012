"""Stages that only leave a record: for tests of what is wired around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slm.evaluation.benchmark.benchmark
import slm.evaluation.evaluate
import slm.registry.register
import slm.report.write
import slm.source.download
import slm.tokens.encode
import slm.tracking.mirror
import slm.training.launch
from slm.config import PipelineConfig
from slm.progress import Progress, silent
from slm.records import (
    Benchmarks,
    Evaluation,
    FileEntry,
    Record,
    Report,
    Run,
    Shards,
    ShardSplit,
    Source,
    SourceSplit,
    Version,
)
from slm.run_folder import RunFolder, Settings
from slm.storage import write_record

FILES = {"train_00000.bin": FileEntry(bytes=8, sha256="ab" * 32)}
SOURCE = Source(
    key="1" * 64,
    dataset="stories",
    revision="version 1",
    splits={"train": SourceSplit(files=["train_00000.parquet"], documents=7, bytes=70)},
    files=FILES,
)
SHARDS = Shards(
    key="2" * 64,
    source_key=SOURCE.key,
    tokenizer_sha256="3" * 64,
    vocab_size=512,
    eot=511,
    splits={
        "train": ShardSplit(files=["train_00000.bin"], documents=6, tokens=30, bytes=60),
        "val": ShardSplit(files=["val_00000.bin"], documents=1, tokens=5, bytes=10),
    },
    files={**FILES, "val_00000.bin": FILES["train_00000.bin"]},
)
RUN = Run(
    key="4" * 64,
    shards_key=SHARDS.key,
    best="step_000002",
    last="step_000004",
    step=4,
    tokens=512,
    train_loss=5.5,
    val_loss=5.25,
    val_bpb=2.5,
    tok_per_sec=1000.0,
    seconds=0.5,
    parameters=1234,
    weights_sha256="5" * 64,
    level="C",
)
EVALUATION = Evaluation(
    key="6" * 64,
    run="tiny-444444444444",
    checkpoint="step_000002",
    weights_sha256="7" * 64,
    documents=1,
    tokens=6,
    bytes=10,
    val_loss=5.25,
    val_bpb=2.5,
)
BENCHMARKS = Benchmarks(
    key="a" * 64, run=EVALUATION.run, checkpoint="step_000002", weights_sha256="7" * 64, tasks=()
)
REPORT = Report(key="8" * 64, run=EVALUATION.run)
VERSION = Version(
    key="9" * 64,
    model="slm",
    version="3",
    aliases=["champion"],
    run_id="f00",
    tracking_uri="sqlite:///mlflow.db",
)


def install(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """Replace the real stages by these; returns the list of those that are called."""
    called: list[str] = []
    run = root / "runs" / EVALUATION.run
    for folder in (run / "report", run / "checkpoints" / RUN.best):
        folder.mkdir(parents=True)
    (run / "report" / "index.html").write_text("<p>the report</p>")
    (run / "report" / "report.md").write_text("# the report")
    (run / "report" / "samples.json").write_text("[]")

    def stage(name: str, record: Record, path: Path) -> Callable[..., Record]:
        def work(*inputs: Any, progress: Progress = silent, **_: Any) -> Record:
            assert isinstance(inputs[0], PipelineConfig)
            called.append(name)
            progress("half of it", 1, 2)
            return record.model_copy(update={"path": path, "reused": name in ("encode",)})

        return work

    for module, name, record, path in (
        (slm.source.download, "download", SOURCE, root / "sources" / "tiny-1"),
        (slm.tokens.encode, "encode", SHARDS, root / "shards" / "tiny-2"),
        (slm.training.launch, "train", RUN, run),
        (slm.evaluation.evaluate, "evaluate", EVALUATION, run / "evaluation"),
        (slm.evaluation.benchmark.benchmark, "benchmark", BENCHMARKS, run / "benchmarks"),
        (slm.report.write, "write_report", REPORT, run / "report"),
        (slm.registry.register, "register", VERSION, run),
    ):
        monkeypatch.setattr(module, name, stage(name, record, path))
    (run / "record.json").write_text("{}")  # finished: nothing to mirror
    return called


def write(root: Path, config: PipelineConfig) -> None:
    """Write the records of the finished run and of its shards, as commands of a RUN read them."""
    run = RunFolder(root / "runs" / EVALUATION.run)
    run.write_settings(Settings(RUN.key, config, SHARDS.key, None))
    write_record(run.path, RUN)
    shards = root / "shards" / f"tiny-{SHARDS.key[:12]}"
    shards.mkdir(parents=True)
    write_record(shards, SHARDS)
