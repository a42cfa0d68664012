"""Two models on the same items of a task: the difference in accuracy, with its interval."""

import math

import numpy as np
import numpy.typing as npt

from slm.evaluation.benchmark.results import Z, read_items
from slm.records import Benchmarks, TaskDifference


def task_difference(
    task: str, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], groups: npt.ArrayLike
) -> TaskDifference:
    """The difference in accuracy of two models.

    Its interval is that of paired differences, one per item, so that what makes an item hard
    cancels out; the variance of each paradigm is estimated from its own items, where it has two or
    more, else from all.

    Args:
        first, second: which items each model has right, (N,), in the same order.
        groups: the paradigm of each item, (N,).
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)  # (N,), a number per paradigm
    counts = np.bincount(group)  # items of each paradigm, (G,)
    a, b = (np.bincount(group, each) / counts for each in (first, second))  # accuracies, (G,)
    differences = b - a
    by_item = second.astype(np.float64) - first  # (N,)
    within = np.bincount(group, (by_item - differences[group]) ** 2) / np.maximum(counts - 1, 1)
    variances = np.where(counts > 1, within, by_item.var()) / counts  # of the differences, (G,)
    spread = Z * math.sqrt(variances.sum()) / len(counts)
    difference = float(differences.mean())
    return TaskDifference(
        task=task,
        items=len(group),
        first=float(a.mean()),
        second=float(b.mean()),
        difference=difference,
        low=difference - spread,
        high=difference + spread,
    )


def outcomes(
    benchmarks: Benchmarks, task: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.str_]]:
    """Which items of a task the model has right, and their paradigms, (N,) each, in order."""
    table = read_items(benchmarks, task)
    correct = table["correct"].to_numpy().astype(bool)
    return correct, np.array([group or "" for group in table["group"].to_pylist()])
