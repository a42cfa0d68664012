"""Settings of the evaluation, and of the benchmark tasks after it."""

from typing import Literal

from pydantic import field_validator

from slm.config.setting import PositiveInt, Section, setting


class EvaluateConfig(Section):
    """How a checkpoint is scored."""

    documents: PositiveInt | None = setting(
        None, "Maximum number of held-out documents to score; null: all."
    )
    checkpoint: Literal["best", "last"] = setting("best", "Checkpoint to score.")


class BenchmarkConfig(Section):
    """The tasks that the model is scored on, after its evaluation: see docs/benchmarks.md."""

    tasks: tuple[str, ...] = setting(
        (),
        "Tasks: blimp, a file or a folder of them, or NAME=WHERE, which is such a path or "
        "hf:OWNER/DATASET@COMMIT/PATH on the hub; in a recipe a path is relative to the folder of "
        "its pipelines.yaml.",
    )
    baselines: bool = setting(
        False,
        "Whether a 5-gram model of the training documents and the untrained model do the tasks "
        "too.",
    )

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [task for task in tasks if tasks.count(task) > 1]:
            raise ValueError(f"benchmark.tasks has {twice[0]!r} twice: name a task once")
        return tasks
