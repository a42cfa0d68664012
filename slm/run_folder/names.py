"""The names of files and folders in a data folder, and how a name ends in its key."""

import re
from pathlib import Path

from slm.records import Shards, Source, Vocabulary

CONFIG, PLAN, JOURNAL, LOG = "config.json", "plan.json", "metrics.jsonl", "train.log"
CHECKPOINTS, PARENT, EVALUATION, REPORT = "checkpoints", "parent", "evaluation", "report"
SELECTION, DECISION, BENCHMARKS = "selection", "decision.json", "benchmarks"
KINDS: dict[str, type[Source | Shards | Vocabulary]] = {
    "sources": Source, "tokenizers": Vocabulary, "shards": Shards,
}  # fmt: skip
MIN_DIGITS = 4  # of a key's beginning, so that it names a run
KEY_DIGITS = 12  # of a key that end a folder's name
OF_KEY = re.compile(rf"-[0-9a-f]{{{KEY_DIGITS}}}$")
LOCK = "lock"  # held by a run's trainer, and by a sweep's driver
SWEEP = "sweep.json"
LOCK_PATIENCE_SECONDS = 0.3  # who only looks whether a run is in training holds it for an instant


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:06d}"


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a run's `checkpoints/`, valid or not, by their steps, in that order."""
    matches = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*"))
    return sorted((int(match[1]), path) for match, path in matches if match)
