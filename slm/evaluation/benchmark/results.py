"""The outcome of every item of a task, and the figures that follow from it.

`items.parquet` has a row per item, tasks and items in order:

    task, group, field              as in the task; null where it has no paradigms
    item                            index within the task
    correct                         whether the right answer is the most likely one
    correct_per_byte                the same by log-likelihood per byte; null for minimal pairs
    answer                          index of the right answer
    log_likelihoods                 nats of each choice, given the context
    bytes                           UTF-8 bytes of each choice
    truncated                       whether its context lost its beginning

So two runs can be compared item by item, which is far more sensitive than their accuracies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from slm.evaluation.benchmark.items import Task
from slm.evaluation.scoring import bits_per_byte
from slm.records import Benchmarks, GroupScore, TaskScore

Z = 1.959964  # of a normal distribution's 95 % interval

SCHEMA = pa.schema(
    {
        "task": pa.string(),
        "group": pa.string(),
        "field": pa.string(),
        "item": pa.int64(),
        "correct": pa.bool_(),
        "correct_per_byte": pa.bool_(),
        "answer": pa.int64(),
        "log_likelihoods": pa.list_(pa.float64()),
        "bytes": pa.list_(pa.int64()),
        "truncated": pa.bool_(),
    }
)


@dataclass(frozen=True)
class Outcome:
    """What a model makes of an item."""

    log_likelihoods: tuple[float, ...]  # nats of each choice
    sizes: tuple[int, ...]  # UTF-8 bytes of each choice
    answer: int
    truncated: bool = False

    @property
    def correct(self) -> bool:
        """Whether the right answer is more likely than every other one; a tie is wrong."""
        return _best_alone(self.log_likelihoods, self.answer)

    @property
    def correct_per_byte(self) -> bool:
        """The same by log-likelihood per byte, lm-eval's acc_bytes."""
        pairs = zip(self.log_likelihoods, self.sizes, strict=True)
        return _best_alone([nats / size for nats, size in pairs], self.answer)

    @property
    def tied(self) -> bool:
        """Whether several choices are the most likely."""
        return list(self.log_likelihoods).count(max(self.log_likelihoods)) > 1


def _best_alone(values: Sequence[float], answer: int) -> bool:
    return all(values[answer] > v for i, v in enumerate(values) if i != answer)


def task_score(
    task: Task, outcomes: Sequence[Outcome], baselines: dict[str, float] | None = None
) -> TaskScore:
    """The figures of a task from the outcomes of its items, in order.

    Of a task with paradigms each figure is the mean over these, each counted alike, and the
    variance of the mean follows from theirs.
    """
    groups = _groups(task)
    correct = np.array([outcome.correct for outcome in outcomes])
    accuracy, stderr = _mean(correct, groups)
    chance, _ = _mean(np.array([1 / len(item.choices) for item in task.items]), groups)
    per_byte = None
    if task.kind == "multiple_choice":
        per_byte, _ = _mean(np.array([outcome.correct_per_byte for outcome in outcomes]), groups)
    right = [(-o.log_likelihoods[o.answer], o.sizes[o.answer]) for o in outcomes]
    by_group = {
        name: GroupScore(
            items=len(rows),
            accuracy=float(correct[rows].mean()),
            stderr=_stderr(correct[rows]),
            field=task.items[rows[0]].field,
        )
        for name, rows in groups.items()
        if name is not None
    }
    return TaskScore(
        name=task.name,
        kind=task.kind,
        source=task.source,
        sha256=task.sha256,
        items=len(outcomes),
        accuracy=accuracy,
        stderr=stderr,
        chance=chance,
        distinguishable=_distinguishable(accuracy, stderr, chance, len(outcomes)),
        accuracy_per_byte=per_byte,
        bits_per_byte=bits_per_byte(math.fsum(n for n, _ in right), sum(s for _, s in right)),
        ties=sum(outcome.tied for outcome in outcomes),
        truncated=sum(outcome.truncated for outcome in outcomes),
        groups=by_group,
        by_field=_by_field(by_group),
        baselines=baselines or {},
    )


def mean_accuracy(task: Task, outcomes: Sequence[Outcome]) -> float:
    """The accuracy of a task alone, counted as in `task_score`."""
    return _mean(np.array([outcome.correct for outcome in outcomes]), _groups(task))[0]


def _groups(task: Task) -> dict[str | None, list[int]]:
    """The indices of the items of each paradigm; of a task without any, all under None."""
    groups: dict[str | None, list[int]] = {}
    for index, item in enumerate(task.items):
        groups.setdefault(item.group, []).append(index)
    return groups


def _mean(values: npt.NDArray, groups: dict[str | None, list[int]]) -> tuple[float, float]:  # type: ignore[type-arg]
    """The mean over groups of the means of values, and its standard error."""
    means = [float(values[rows].mean()) for rows in groups.values()]
    errors = [_stderr(values[rows]) for rows in groups.values()]
    stderr = math.sqrt(math.fsum(error**2 for error in errors)) / len(groups)
    return math.fsum(means) / len(groups), stderr


def _stderr(values: npt.NDArray) -> float:  # type: ignore[type-arg]
    """The standard error of the mean of values: of shares √(p (1 - p) / (n - 1)), as lm-eval's."""
    n = len(values)
    return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def _distinguishable(accuracy: float, stderr: float, chance: float, items: int) -> bool:
    """Whether chance is outside the 95 % interval of the accuracy.

    Where every answer is right, or every one wrong, the standard error is 0, and so few items could
    be luck: then the interval is that of the rule of three, 3 / n wide.
    """
    width = Z * stderr if stderr else 3 / items
    return abs(accuracy - chance) > width


def _by_field(groups: dict[str, GroupScore]) -> dict[str, GroupScore]:
    """The mean over the paradigms of each field."""
    named = sorted((g for g in groups.values() if g.field), key=lambda g: str(g.field))
    result = {}
    for field, each in groupby(named, key=lambda g: str(g.field)):
        some = list(each)
        result[field] = GroupScore(
            items=sum(g.items for g in some),
            accuracy=math.fsum(g.accuracy for g in some) / len(some),
            stderr=math.sqrt(math.fsum(g.stderr**2 for g in some)) / len(some),
        )
    return result


def show_score(score: TaskScore) -> str:
    """A score in a line: `blimp 62.1 % ± 0.2 (chance 50 %)`."""
    unclear = "" if score.distinguishable else ", not distinguishable from chance"
    return (
        f"{score.name} {score.accuracy:.1%} ± {score.stderr:.1%} "
        f"(chance {score.chance:.0%}{unclear})"
    )


# ---- the file ---------------------------------------------------------------------------------


def write_items(path: Path, outcomes: Sequence[tuple[Task, Sequence[Outcome]]]) -> None:
    """Write the outcomes of every item of some tasks."""
    rows = [
        {
            "task": task.name,
            "group": item.group,
            "field": item.field,
            "item": number,
            "correct": outcome.correct,
            "correct_per_byte": (
                outcome.correct_per_byte if task.kind == "multiple_choice" else None
            ),
            "answer": outcome.answer,
            "log_likelihoods": outcome.log_likelihoods,
            "bytes": outcome.sizes,
            "truncated": outcome.truncated,
        }
        for task, each in outcomes
        for number, (item, outcome) in enumerate(zip(task.items, each, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="zstd")


def read_items(benchmarks: Benchmarks, task: str | None = None) -> pa.Table:
    """The outcomes of the items of one task, or of all: a table as described above."""
    table = pq.read_table(benchmarks.path / benchmarks.items)
    return table if task is None else table.filter(pa.compute.field("task") == task)
