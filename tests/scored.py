"""Scores of a run on a task of a benchmark, of outcomes that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path

from slm import storage
from slm.evaluation.benchmark.benchmark import ITEMS
from slm.evaluation.benchmark.items import Task, minimal_pair
from slm.evaluation.benchmark.results import Outcome, task_score, write_items
from slm.records import Benchmarks, Checkpoint, Run
from slm.run_folder import BENCHMARKS

PARADIGMS = ("agreement", "pronoun <case>")


def task_of(count: int, name: str = "pairs", source: str = "pairs.jsonl") -> Task:
    """A task of so many minimal pairs of two paradigms, in turn."""
    items = [minimal_pair(f"It is {n}.", f"It are {n}.", PARADIGMS[n % 2]) for n in range(count)]
    return Task(name, "minimal_pairs", source, tuple(items))


def write_task(folder: Path, task: Task) -> Task:
    """The task as a file, from which it can be read; returns it with that as its source."""
    path = folder / f"{task.name}.jsonl"
    rows = [
        {"good": item.choices[0], "bad": item.choices[1], "paradigm": item.group}
        for item in task.items
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Task(task.name, task.kind, str(path), task.items)


def add_scores(
    run: Run, task: Task, right: Sequence[bool], folder: str = BENCHMARKS, key: str = "b" * 64
) -> Benchmarks:
    """Put a result into a run's folder, by which the model has these items right."""
    checkpoint = storage.read_record(run.checkpoint("best"), Checkpoint, verify=False)
    assert checkpoint is not None
    outcomes = [Outcome((-1.0, -2.0) if r else (-2.0, -1.0), (9, 9), 0) for r in right]
    staging = run.path / f"{folder}.tmp"
    staging.mkdir()
    write_items(staging / ITEMS, [(task, outcomes)])
    result = Benchmarks(
        key=key,
        run=run.name,
        checkpoint=checkpoint.name,
        weights_sha256=checkpoint.weights_sha256,
        tasks=(task_score(task, outcomes),),
    )
    return storage.commit(staging, run.path / folder, result)
