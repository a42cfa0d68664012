"""The record of a finished run, and the files that it lists."""

import statistics
from pathlib import Path
from typing import Any

from slm.evaluation.scoring import Score
from slm.model.saved import CONFIG
from slm.records import Checkpoint, Run
from slm.run_folder import CHECKPOINTS, DECISION, JOURNAL, PARENT, PLAN, checkpoint_name
from slm.storage import describe_files, hashing_once, read_record, write_record
from slm.training.checkpoint import latest_checkpoint
from slm.training.journal import Journal, process_counts
from slm.training.session import Session


@hashing_once()
def finish(session: Session, journal: Journal, machine: dict[str, Any], final: Score) -> Run:
    """Write the run's record. `final`: the score of the final weights on all of val."""
    steps = [e for e in session.job.run.journal if e["event"] == "step"]
    tail = steps[-max(1, len(steps) // 10) :]
    tokens = session.job.config.train.tokens_per_step
    last = latest_checkpoint(session.job.run.path / CHECKPOINTS)
    assert last is not None
    assert last.step == session.step
    journal.write("end", step=session.step, val_loss=final.val_loss, val_bpb=final.val_bpb)
    journal.sync()  # the record will hold its hash
    record = Run(
        key=session.job.key,
        path=session.job.run.path,
        files=describe_files(session.job.run.path, kept_files(session, last)),
        shards_key=session.job.shards.key,
        best=checkpoint_name(session.best_step),
        last=last.name,
        step=session.step,
        tokens=session.step * tokens,
        train_loss=statistics.fmean(e["train_loss"] for e in tail),
        val_loss=final.val_loss,
        val_bpb=final.val_bpb,
        tok_per_sec=statistics.median(e["tok_per_sec"] for e in steps),
        seconds=sum(tokens / e["tok_per_sec"] for e in steps),
        parameters=session.model.parameter_count(),
        weights_sha256=last.weights_sha256,
        level=level(session),
        environment=machine,
    )
    write_record(session.job.run.path, record)
    return record


def level(session: Session) -> str:
    """The plan's; B under ddp and fsdp where other numbers of processes have trained the run."""
    plan, counts = session.plan, process_counts(session.job.run)
    return plan.level if plan.parallel == "elastic" or len(counts) == 1 else "B"


def kept_files(session: Session, last: Checkpoint) -> list[Path]:
    """The files of a finished run for its record to list; its checkpoints are verified first."""
    run = session.job.run.path
    folders = {last.path, last.path.with_name(checkpoint_name(session.best_step))}
    for folder in folders:
        assert read_record(folder, Checkpoint), f"{folder} is gone"
    if session.job.parent:
        folders.add(run / PARENT)
    inside = [path for folder in folders for path in folder.iterdir()]
    decision = [run / DECISION] if session.decision else []
    return [run / CONFIG, run / PLAN, *decision, run / JOURNAL, *inside]
