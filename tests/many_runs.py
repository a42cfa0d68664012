"""Run folders with records and journals but no weights, made quickly: for comparisons of many."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run_folders import PLAN, SHARDS_KEY

from slm import storage
from slm.config import PipelineConfig
from slm.records import Evaluation, Report, Run
from slm.run_folder import RunFolder, Settings

START = 1_700_000_000.0
TIRED = " a tired little cat, who wanted to sleep."


def held_out_sizes(documents: int, data_seed: int = 0) -> list[int]:
    """UTF-8 bytes of each held-out document."""
    generator = np.random.default_rng(data_seed)
    return [int(size) for size in generator.integers(120, 900, documents)]


def make_run(
    root: Path,
    config: PipelineConfig,
    bpb: float,
    *,
    sizes: Sequence[int] | None = None,
    steps: int = 60,
    evaluate_every: int = 10,
    state: str = "evaluated",  # or finished, stopped
    fingerprint: float | None = 1.5,
    samples: Mapping[str, str] | None = None,  # prompt → completion
    noise: float = 0.02,
    sources: Sequence[str] = (),  # of each document, of a mixture
) -> RunFolder:
    """A run whose held-out score is about `bpb`, and differs from document to document."""
    key = storage.sha256_json([config.flat(), str(root)])
    run = RunFolder(root / "runs" / f"{config.folder_name}-{key[:12]}")
    (run.path / "checkpoints").mkdir(parents=True)
    run.write_settings(Settings(key, config, SHARDS_KEY, None))
    run.write_plan(PLAN.model_copy(update={"max_steps": steps}))
    _write_journal(run, config, bpb, steps, evaluate_every, is_whole=state != "stopped")
    if state != "stopped":
        _write_record(run, config, key, bpb, steps)
    if state == "evaluated":
        _write_evaluation(run, bpb, sizes or held_out_sizes(40), fingerprint, noise, sources)
    if samples:
        folder = run.path / "report"
        folder.mkdir()
        rows = [
            {"prompt": prompt, "temperature": 0.8, "top_k": 50, "completion": text}
            for prompt, text in samples.items()
        ]
        (folder / "samples.json").write_text(json.dumps(rows))
    return run


def _write_journal(
    run: RunFolder, config: PipelineConfig, bpb: float, steps: int, every: int, *, is_whole: bool
) -> None:
    """What training writes: a line per step with every figure, a score every so many steps."""
    speed, per_step = 11_000.0, config.train.tokens_per_step
    events: list[dict[str, Any]] = [
        {"event": "start", "time": START, "step": 0, "max_steps": steps, "parameters": 2_164_928,
         "processes": 1}
    ]  # fmt: skip
    for step in range(1, (steps if is_whole else steps // 2) + 1):
        time = START + step * per_step / speed
        loss = 1.2 + 6 * math.exp(-6 * step / steps)
        events.append(
            {"event": "step", "time": time, "step": step, "train_loss": loss * 1.0123456789,
             "lr": 0.006 * (1 - step / steps), "grad_norm": 0.7604407668113708,
             "tok_per_sec": speed, "tokens": step * per_step, "memory_bytes": 557584384,
             "gflops": 292.0849538555399}
        )  # fmt: skip
        if step % every == 0:
            score = bpb * (1 + 2.5 * math.exp(-6 * step / steps))
            events.append(
                {"event": "evaluate", "time": time, "step": step, "val_loss": score * 2,
                 "val_bpb": score}
            )  # fmt: skip
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def _write_record(run: RunFolder, config: PipelineConfig, key: str, bpb: float, steps: int) -> None:
    tokens = steps * config.train.tokens_per_step
    record = Run(
        key=key, shards_key=SHARDS_KEY, best=f"step_{steps:06d}", last=f"step_{steps:06d}",
        step=steps, tokens=tokens, train_loss=bpb, val_loss=bpb, val_bpb=bpb, tok_per_sec=11_000.0,
        seconds=tokens / 11_000, parameters=2_164_928, weights_sha256=key, level="C",
    )  # fmt: skip
    storage.write_record(run.path, record)


def _write_evaluation(
    run: RunFolder,
    bpb: float,
    sizes: Sequence[int],
    fingerprint: float | None,
    noise: float,
    sources: Sequence[str],
) -> None:
    """Some documents are hard for every model; besides that, each model has its own luck."""
    bytes_ = np.array(sizes)
    hard = np.random.default_rng(len(sizes)).normal(1, 0.2, len(sizes))
    luck = np.random.default_rng(int(run.settings.key[:8], 16)).normal(0, noise, len(sizes))
    bits = bytes_ * np.maximum(0.01, hard + luck - (bytes_ @ (hard + luck)) / bytes_.sum() + bpb)
    nats = bits * math.log(2)
    folder = run.path / "evaluation"
    folder.mkdir()
    rows = [[n, size // 4, size] for n, size in zip(nats.tolist(), sizes, strict=True)]
    of_mixture: dict[str, Any] = {"document_sources": sources} if sources else {}
    storage.write_json(folder / "evaluation.json", {"documents": rows, **of_mixture})
    xz = {"name": "xz -9", "bpb": fingerprint, "knows": "nothing"}
    record = Evaluation(
        key="e" * 64,
        run=run.name,
        checkpoint="step_000060",
        weights_sha256=run.settings.key,
        documents=len(sizes),
        tokens=int(bytes_.sum()) // 4,
        bytes=int(bytes_.sum()),
        val_loss=float(nats.sum()) / (bytes_.sum() // 4),
        val_bpb=float(bits.sum() / bytes_.sum()),
        details={
            **({"beside": {"references": [xz]}} if fingerprint else {}),
            **({"sources": {name: {} for name in sources}} if sources else {}),
        },
    )
    files = storage.describe_files(folder, [folder / "evaluation.json"])
    storage.write_record(folder, record.model_copy(update={"files": files}))


def add_report(run: RunFolder, sentence: str = "A sound model, by its loss.") -> None:
    """A report, of which only what others read of it is there."""
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text("<p>report</p>")
    (folder / "report.md").write_text(f"# {run.name}\n\n**{sentence}**\n")
    files = storage.describe_files(folder, [folder / "index.html", folder / "report.md"])
    storage.write_record(folder, Report(key="f" * 64, run=run.name, files=files))
