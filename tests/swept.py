"""Sweeps whose trials have the scores that a test chooses; nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm import storage
from slm.records import Evaluation
from slm.sweeps.definition import Sweep, define_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.proposals import Proposal, propose
from slm.sweeps.records import SeedRun, Trial

RATE = "train.learning_rate"
SECONDS, TOKENS = 10.0, 512  # of each training


def tiny_sweep(**fields: Any) -> Sweep:
    """A sweep of the recipe of tests/tiny_pipelines.py, over learning rates."""
    space = fields.pop("space", {RATE: "log:1e-3:1e-2"})
    return define_sweep("tiny", space, **fields)


def documents(count: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How hard each document is in bits per byte, and its bytes."""
    draws = np.random.default_rng(seed)
    return draws.normal(0, 0.1, count), draws.integers(200, 2000, count)


def run_trials(
    root: Path,
    sweep: Sweep,
    scores: Sequence[Sequence[float]],
    *,
    held_out: Sequence[tuple[np.ndarray, np.ndarray]] = (documents(),),
    own_sd: float = 0.01,
) -> SweepFolder:
    """A sweep whose trials have so many bits per byte, by seed; an empty one has failed.

    Args:
        held_out: of each trial, in turn; where there is one, of all.
        own_sd: how much what suits a trial differs from one document to the next.
    """
    folder = SweepFolder.of(sweep, root)
    with folder.locked():
        folder.write_sweep(sweep, {})
        results: list[list[Any]] = []
        number = 0
        while number < len(scores):
            trials = []
            for proposal in propose(sweep, results):
                if proposal.number == len(scores):
                    break
                texts = held_out[proposal.number % len(held_out)]
                trials.append(_trial(root, sweep, proposal, scores[number], texts, own_sd))
                folder.write_trial(trials[-1])
                number += 1
            results.append([trial.result for trial in trials])
    return folder


def _trial(
    root: Path, sweep: Sweep, proposal: Proposal, scores: Sequence[float],
    texts: tuple[np.ndarray, np.ndarray], own_sd: float,
) -> Trial:  # fmt: skip
    seeds = [
        _seed(root, f"tiny-{proposal.number:010x}{index:02x}", bpb, texts, own_sd, index)
        for index, bpb in enumerate(scores)
    ]
    if not seeds:
        seeds = [SeedRun(seed=1337, state="failed", reason="step 3: train_loss is nan")]
    return Trial(**proposal.model_dump(), seeds=tuple(seeds))


def _seed(
    root: Path, name: str, bpb: float, texts: tuple[np.ndarray, np.ndarray], own_sd: float,
    index: int,
) -> SeedRun:  # fmt: skip
    """A training and its evaluation, on which the model spends `bpb` bits per byte in all."""
    hard, sizes = texts
    own = np.random.default_rng(int(name[-12:-2], 16)).normal(0, own_sd, len(sizes))
    bits = (hard + own) * sizes
    bits += sizes * (bpb - bits.sum() / sizes.sum())
    rows = [[float(b * np.log(2)), 1, int(size)] for b, size in zip(bits, sizes, strict=True)]
    scored = float(sum(row[0] for row in rows) / np.log(2) / sizes.sum())
    staging = root / "runs" / name / "evaluation.tmp"
    staging.mkdir(parents=True)
    storage.write_json(staging / "evaluation.json", {"documents": rows})
    weights = storage.sha256_json([name, bpb])
    record = Evaluation(
        key=storage.sha256_json(name), run=name, checkpoint="step_000004", weights_sha256=weights,
        documents=len(sizes), tokens=len(sizes), bytes=int(sizes.sum()), val_loss=1.0,
        val_bpb=scored,
    )  # fmt: skip
    storage.commit(staging, staging.with_name("evaluation"), record)
    return SeedRun(
        seed=1337 + index, state="finished", run=name, key=storage.sha256_json(name),
        val_bpb=scored, documents=len(sizes), bytes=int(sizes.sum()), weights_sha256=weights,
        seconds=SECONDS, tokens=TOKENS, step=4,
    )  # fmt: skip
