"""The runs of a data folder, a line each."""

from pathlib import Path

from slm.errors import CorruptionError, NewerFormat
from slm.records import Evaluation, Frozen, JournalEntry, Run
from slm.run_folder import DataRoot, RunFolder


class RunFacts(Frozen):
    """A run folder in a line."""

    run: str
    state: str  # finished, training, stopped, damaged, newer (of a newer slm)
    started: float | None  # unix seconds
    step: int
    val_bpb: float | None  # of the evaluation
    slice_val_bpb: float | None  # the last one in training, on the fixed slice of val
    seconds: float | None  # spent in steps


def list_runs(root: Path | None = None) -> list[RunFacts]:
    """Every run of a data folder, the newest first."""
    facts = map(_facts, DataRoot(root).runs())
    return sorted(facts, key=lambda each: -(each.started or 0))


def _facts(run: RunFolder) -> RunFacts:
    entries: list[JournalEntry] = []
    record: Run | None = None
    evaluation: Evaluation | None = None
    try:
        for entry in run.journal:
            entries.append(entry)  # one by one, so that those before a broken line are kept
        record, evaluation = run.record, run.evaluation
        state = "finished" if record else "training" if run.is_training else "stopped"
    except NewerFormat:
        state = "newer"
    except CorruptionError:
        state = "damaged"
    scores = [entry["val_bpb"] for entry in entries if entry.get("val_bpb") is not None]
    return RunFacts(
        run=run.name,
        state=state,
        started=entries[0]["time"] if entries else None,
        step=max((entry.get("step") or 0 for entry in entries), default=0),
        val_bpb=evaluation.val_bpb if evaluation else None,
        slice_val_bpb=scores[-1] if scores else None,
        seconds=record.seconds if record else None,
    )
