"""What recovery costs: saving, hashing and fault points, next to the training that they protect.

The shape is that of `slm bench train`: GPT-2, 6 layers, width 384, 50,257 tokens: 29,995,392
parameters, trained by AdamW on random tokens. Checkpoints are written to the data folder's own
disk, by the code that trains, while training continues.

- `blocked`: what the training step that saves waits, for the copy that is then written.
- `durable`: from there until the checkpoint is synced, hashed, recorded and renamed.
- `peer`: `torch.save` of the same state, synced, in the training's own thread: the usual way.
- `hashing`: sha256 of the checkpoint's files, as a share of the steps between two checkpoints.
- `fault points`: those that a step passes, unset, as a share of the step.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import limits
import torch
from train import CONFIG, new_session

from slm.config import data_root
from slm.model.saved import MODEL
from slm.records import Checkpoint
from slm.storage import fault_point, fsync_path, make_folder, sha256_file
from slm.training.checkpoint import CheckpointWriter
from slm.training.child import child_environment
from slm.training.optim import optimizer_tensors
from slm.training.session import Session
from slm.training.step import train_step

PASSES = 200_000  # of a fault point that is timed
POINTS = 3  # that a step passes: its micro-step's, its own, its part of those of a save


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: checkpoints saved each way, in turns; the medians count, and the worst is shown too.

    `ratio` is the peer's blocked time over the row's; for shares, the share itself.
    """
    session = warm_session()
    times: dict[str, list[float]] = {name: [] for name in ("blocked", "durable", "peer", "step")}
    with TemporaryDirectory(dir=make_folder(data_root())) as folder:
        for round_ in range(rounds):
            print(f"round {round_ + 1}", file=sys.stderr)
            for name, seconds in save_while_training(session, Path(folder), round_ + 1).items():
                times[name].append(seconds)
            times["peer"].append(torch_save(session, Path(folder) / "peer.pt"))
        hashing = hash_seconds(max(Path(folder).glob("step_*")))
    medians = {name: statistics.median(values) for name, values in times.items()}
    point = fault_point_seconds()
    every = CONFIG.train.checkpoint_every
    rows = [
        in_seconds("slm", "blocked", medians["blocked"], medians["peer"] / medians["blocked"]),
        in_seconds("slm, the slowest", "blocked", max(times["blocked"])),
        in_seconds("torch.save", "blocked", medians["peer"]),
        in_seconds("slm", "durable", medians["durable"]),
        in_seconds("slm, the slowest", "durable", max(times["durable"])),
        in_seconds("training", "step", medians["step"]),
        in_seconds(
            f"hashing, of {every} steps", "share", hashing, hashing / every / medians["step"]
        ),
        in_seconds("fault point, unset", "pass", point),
        in_seconds(
            "fault points, of a step", "share", POINTS * point, POINTS * point / medians["step"]
        ),
    ]
    return {"machine": limits.machine(), "rows": rows}


def in_seconds(
    name: str, metric: str, seconds: float, ratio: float | None = None
) -> dict[str, Any]:
    return limits.row(name, metric, seconds, "s", ratio)


def warm_session() -> Session:
    session = new_session()
    torch.set_num_threads(session.plan.threads)
    step(session)  # the optimizer has state from here on
    return session


def step(session: Session) -> float:
    """Train one step; return its seconds."""
    begin = time.perf_counter()
    train_step(session, *session.loader.batch(session.step))
    session.step += 1
    return time.perf_counter() - begin


def save_while_training(session: Session, folder: Path, number: int) -> dict[str, float]:
    """Save once as training does, with steps before, meanwhile and after."""
    undisturbed = [step(session) for _ in range(2)]
    record = Checkpoint(
        key="bench",
        step=number,
        tokens=0,
        config_sha256="",
        shards_key="",
        tokenizer_sha256="",
        parent_sha256=None,
        train_loss=0.0,
    )
    durable = 0.0

    def saved(_: Checkpoint) -> None:
        nonlocal durable
        durable = time.perf_counter() - begin

    with CheckpointWriter(folder, session.job.tokenizer) as writer:
        begin = time.perf_counter()
        moments = optimizer_tensors(session.model, session.optimizers)
        writer.save(record, session.model, moments, {}, then=saved)
        blocked = time.perf_counter() - begin
        while not durable:
            step(session)
    return {"blocked": blocked, "durable": durable, "step": min(undisturbed)}


def torch_save(session: Session, path: Path) -> float:
    """Seconds that a synchronous `torch.save` takes, with its fsync."""
    begin = time.perf_counter()
    state = [optimizer.state_dict() for optimizer in session.optimizers]
    torch.save({"model": session.model.state_dict(), "optimizers": state}, path)
    fsync_path(path)
    return time.perf_counter() - begin


def hash_seconds(checkpoint: Path) -> float:
    """Seconds to hash the files of a checkpoint, one after the other."""
    assert (checkpoint / MODEL).stat().st_size > 100e6
    begin = time.perf_counter()
    for path in checkpoint.iterdir():
        sha256_file(path)
    return time.perf_counter() - begin


def fault_point_seconds() -> float:
    """Seconds that a fault point takes which is not set."""
    assert "SLM_FAULT" not in os.environ
    begin = time.perf_counter()
    for _ in range(PASSES):
        fault_point("train.step")
    return (time.perf_counter() - begin) / PASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if "SLM_PARENT" not in os.environ:  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], child_environment(CONFIG))
    result = run(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
