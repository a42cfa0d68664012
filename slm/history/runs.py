"""The runs that there are, a line each."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from slm import storage
from slm.errors import CorruptionError
from slm.model.saved import CONFIG
from slm.records import Evaluation, Run
from slm.training.journal import read_journal
from slm.training.session import LOCK


class RunFacts(BaseModel):
    """A run folder in a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    state: str  # finished, training, stopped, damaged
    started: float | None  # unix seconds
    step: int
    val_bpb: float | None  # of the evaluation, else the last on the fixed slice
    seconds: float | None  # spent in steps


def list_runs(root: Path) -> list[RunFacts]:
    """Every run under `<root>/runs`, the newest first."""
    folders = [path.parent for path in (root / "runs").glob(f"[!.]*/{CONFIG}")]
    found = [_facts(path) for path in folders if not storage.LEFTOVER.fullmatch(path.name)]
    return sorted(found, key=lambda facts: -(facts.started or 0))


def is_training(run: Path) -> bool:
    """Whether a process trains this run now."""
    return storage.is_held(run / LOCK)


def _facts(run: Path) -> RunFacts:
    events: list[dict[str, Any]] = []
    record: Run | None = None
    score: Evaluation | None = None
    try:
        for event in read_journal(run):
            events.append(event)  # one by one: those before a broken line count
        record = storage.read_record(run, Run, verify=False)
        score = storage.read_record(run / "evaluation", Evaluation, verify=False)
        state = "finished" if record else "training" if is_training(run) else "stopped"
    except CorruptionError:
        state = "damaged"
    losses = [event["val_bpb"] for event in events if event["event"] == "evaluate"]
    return RunFacts(
        run=run.name,
        state=state,
        started=events[0]["time"] if events else None,
        step=max((event.get("step") or 0 for event in events), default=0),
        val_bpb=score.val_bpb if score else losses[-1] if losses else None,
        seconds=record.seconds if record else None,
    )
