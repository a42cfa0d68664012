"""Records of how well a model does: on held-out documents, on tasks, next to another model."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from slm.records.record import Frozen, Record


class Evaluation(Record):
    """A checkpoint scored on every held-out document once, in order."""

    run: str
    checkpoint: str
    weights_sha256: str
    documents: int
    tokens: int
    bytes: int
    val_loss: float  # nats per token
    val_bpb: float  # bits per UTF-8 byte
    details: dict[str, Any] = Field(default_factory=dict)


class GroupScore(Frozen):
    """How well a model does a part of a task, such as a paradigm or a field of BLiMP."""

    items: int
    accuracy: float
    stderr: float
    field: str | None = None  # of a paradigm: the field that it belongs to


class TaskScore(Frozen):
    """How well a model does a task of a benchmark.

    Where a task has paradigms, every figure of the whole is the mean over these, each counted
    alike, as BabyLM does.
    """

    name: str
    kind: Literal["minimal_pairs", "multiple_choice"]
    source: str  # where its items were read from, as it was given
    sha256: str  # of its items: a task of the same name may have others
    items: int
    accuracy: float  # share of items whose right answer has the greatest log-likelihood
    stderr: float  # of the accuracy
    chance: float  # expected accuracy of guessing
    distinguishable: bool  # from chance: that is outside the 95 % interval of the accuracy
    accuracy_per_byte: float | None = None  # by log-likelihood per UTF-8 byte of the answer
    bits_per_byte: float | None = None  # of the right answer, given its context
    ties: int = 0  # items of which several answers are the most likely: they count as wrong
    truncated: int = 0  # items of which the context lost its beginning
    groups: dict[str, GroupScore] = Field(default_factory=dict)  # by paradigm
    by_field: dict[str, GroupScore] = Field(default_factory=dict)  # by field: over its paradigms
    baselines: dict[str, float] = Field(default_factory=dict)  # accuracy of what is not the model


class Benchmarks(Record):
    """A checkpoint scored on the tasks of some benchmarks, with the outcome of every item."""

    run: str
    checkpoint: str
    weights_sha256: str
    tasks: tuple[TaskScore, ...]
    items: str = "items.parquet"  # a row per item: see slm/evaluation/benchmark/results.py

    def __getitem__(self, task: str) -> TaskScore:
        return next(score for score in self.tasks if score.name == task)


class TaskDifference(Frozen):
    """The accuracy of two models on the same items of a task; differences are second minus first.

    As in the accuracy of a task, each paradigm counts alike.
    """

    task: str
    items: int
    first: float  # accuracy
    second: float
    difference: float
    low: float  # the 95 % interval of the difference
    high: float

    @property
    def better(self) -> bool | None:
        """Whether the second is better; None where that is not shown."""
        return None if self.low <= 0 <= self.high else self.low > 0

    @property
    def figures(self) -> str:
        """In percentage points: `+1.2 points (95 %: +0.4 to +2.0) on the same 900 items`."""
        points = (f"{100 * value:+.1f}" for value in (self.difference, self.low, self.high))
        middle, low, high = points
        return f"{middle} points (95 %: {low} to {high}) on the same {self.items:,} items"

    @property
    def sentence(self) -> str:
        """Which of the two is better, as far as the interval shows, as A and B."""
        result = {True: "B is better", False: "A is better", None: "no difference is shown"}
        both = f"{100 * self.first:.1f} % and {100 * self.second:.1f} % right"
        return f"{result[self.better]}: {both}, {self.figures}, B - A"

    @property
    def comparison(self) -> str:
        """Both accuracies and their difference."""
        ours, theirs = (f"{100 * value:.1f} %" for value in (self.second, self.first))
        return f"{ours} right, the champion {theirs}: {self.figures}"


class SourceDifference(Frozen):
    """Two models on the same held-out documents of one source, in bits per byte.

    The difference is challenger minus champion; None where there is no champion.
    """

    source: str
    documents: int
    val_bpb: float  # of the challenger
    champion_bpb: float | None = None
    difference: float | None = None
    low: float | None = None  # the 95 % interval; None too where the documents are too few for one
    high: float | None = None
    margin: float | None = None  # by which the challenger may be worse; None: by any

    @property
    def interval(self) -> str:
        """`-0.0120 to +0.0031`."""
        if self.low is None or self.high is None:
            return "too few documents for an interval"
        return f"{self.low:+.4f} to {self.high:+.4f}"

    @property
    def figures(self) -> str:
        """`+0.0123 bits per byte (95 %: +0.0051 to +0.0195) on the same 300 documents`."""
        interval = self.interval if self.low is None else f"95 %: {self.interval}"
        return (
            f"{self.difference:+.4f} bits per byte ({interval}) on the same {self.documents:,} "
            "documents"
        )


def task_scores(benchmarks: Iterable[Benchmarks]) -> list[TaskScore]:
    """The score of every task; of one that several results have, the first."""
    scores: dict[str, TaskScore] = {}
    for result in benchmarks:
        for score in result.tasks:
            scores.setdefault(score.name, score)
    return list(scores.values())
