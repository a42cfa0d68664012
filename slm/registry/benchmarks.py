"""Benchmarks in the gate: the challenger and the champion on the same items of the same tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from slm import storage
from slm.errors import UserError
from slm.evaluation.benchmark.benchmark import do_task
from slm.evaluation.benchmark.difference import outcomes, task_difference
from slm.evaluation.benchmark.tasks import TaskSource, read_task
from slm.records import Benchmarks, TaskDifference, TaskScore
from slm.registry.version import ModelVersion

if TYPE_CHECKING:
    from slm.model.gpt import GPT
    from slm.progress import Progress
    from slm.tokens.tokenizer.bpe import Tokenizer


class Scored(NamedTuple):
    """A task that a version was scored on, and the result that has it."""

    task: TaskScore
    result: Benchmarks


def scores_to_compare(
    version: ModelVersion, margins: Mapping[str, float], root: Path
) -> list[Scored]:
    """The scores of a version on the tasks of `registry.benchmarks`, their files verified.

    Raises UserError where it was not scored on one of them.
    """
    scores = []
    for name in margins:
        scored = _find(version, name, root)
        if scored is None:
            run = version.tags.get("run", "RUN")
            raise UserError(
                f"{version.uri} was not scored on {name}, a task of registry.benchmarks: "
                f"`slm benchmark {run} --tasks {name}`, then `slm promote {version.uri}` again"
            )
        scores.append(scored)
    return scores


def _find(
    version: ModelVersion, name: str, root: Path, items_sha256: str | None = None
) -> Scored | None:
    """The score of a version's weights on a task. `items_sha256`: with these items alone."""
    run = version.run(root)
    if not run.exists:
        return None
    for result in run.benchmarks_of(version.required("weights_sha256")):
        for task in result.tasks:
            if task.name == name and items_sha256 in (None, task.sha256):
                storage.check_files(result.path)
                return Scored(task, result)
    return None


def compare_tasks(
    scores: Sequence[Scored],
    champion: ModelVersion,
    model: "GPT",
    tokenizer: "Tokenizer",
    root: Path,
    progress: "Progress",
) -> list[TaskDifference]:
    """The challenger's scores compared with the champion's, which is scored now where it was not.

    Args:
        scores: as of `scores_to_compare`.
        model, tokenizer: the champion's.

    Raises UserError where a task that the champion was not scored on is gone, or has other items.
    """
    compared = []
    for task, result in scores:
        ours, groups = outcomes(result, task.name)
        if theirs := _find(champion, task.name, root, task.sha256):
            correct, _ = outcomes(theirs.result, task.name)
        else:
            correct = _score(task, model, tokenizer, progress)
        compared.append(task_difference(task.name, correct, ours, groups))
    return compared


def _score(
    score: TaskScore, model: "GPT", tokenizer: "Tokenizer", progress: "Progress"
) -> npt.NDArray[np.bool_]:
    """Which items of a task a model has right, (N,), scored now on the items that a score is of."""
    task = read_task(TaskSource(score.name, score.source), progress)
    if task.sha256 != score.sha256:
        raise UserError(
            f"{score.source} has other items of {score.name} by now than the challenger was scored "
            "on, and the champion was not: `slm benchmark` both"
        )
    return np.array([outcome.correct for outcome in do_task(model, tokenizer, task, progress)])


def worse_tasks(compared: Sequence[TaskDifference], margins: Mapping[str, float]) -> list[str]:
    """What speaks against a challenger: it is not shown to be worse by less than the margin."""
    return [
        f"benchmark {task.task}: {task.figures}, margin {100 * margins[task.task]:g}"
        for task in compared
        if task.low < -margins[task.task]
    ]
