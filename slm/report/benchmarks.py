"""The benchmarks in the report: each task's accuracy with its interval, next to chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm.evaluation.benchmark.results import Z
from slm.records import Benchmarks, GroupScore, TaskScore, task_scores
from slm.report.plots import Dot, dot_plot
from slm.report.summary import Finding

MAX_PLOTTED = 20  # rows of a plot; the paradigms of more are in the table alone
KINDS = {"minimal_pairs": "minimal pairs", "multiple_choice": "questions"}


@dataclass(frozen=True)
class Row:
    """The accuracy on a task, or on a part of it, as shares of 1."""

    name: str
    items: int
    accuracy: float
    low: float  # the 95 % interval
    high: float
    above: bool | None  # whether it is above chance, below it (False), or neither is shown

    @property
    def verdict(self) -> str:
        return {
            True: "above chance",
            False: "below chance",
            None: "not distinguishable from chance",
        }[self.above]


@dataclass(frozen=True)
class Task:
    """A task as the report shows it."""

    name: str
    description: str  # "3,600 minimal pairs, chance 50 %"
    chance: float
    whole: Row
    parts: list[Row]  # by paradigm, the best first
    others: list[tuple[str, str]]  # figures besides the accuracy, and the accuracy of baselines
    plot: str  # SVG


def tasks(benchmarks: Sequence[Benchmarks]) -> list[Task]:
    """Every task that was scored, in order."""
    return [_task(score) for score in task_scores(benchmarks)]


def _task(score: TaskScore) -> Task:
    whole = _row("all", score, score.chance)
    parts = _rows(score.groups, score.chance)
    fields = _rows(score.by_field, score.chance)
    kind = KINDS[score.kind]
    description = f"{score.items:,} {kind}, of which guessing has {percent(score.chance)} right"
    if parts:
        description += f"; the mean over {len(parts)} paradigms, each counted alike"
    shown = parts if len(parts) <= MAX_PLOTTED else fields[:MAX_PLOTTED]
    others = []
    if score.accuracy_per_byte is not None:
        others.append(("accuracy by log-likelihood per byte", percent(score.accuracy_per_byte)))
    if score.bits_per_byte is not None:
        others.append(("bits per byte of the right answer", f"{score.bits_per_byte:.3f}"))
    others += [(f"accuracy of {name}", percent(value)) for name, value in score.baselines.items()]
    if score.ties:
        others.append(("items with a tie, which count as wrong", f"{score.ties:,}"))
    if score.truncated:
        others.append(("items whose context was cut", f"{score.truncated:,}"))
    return Task(
        score.name, description, score.chance, whole, parts, others, _plot(score, [whole, *shown])
    )


def _rows(scores: Mapping[str, GroupScore], chance: float) -> list[Row]:
    rows = [_row(name, score, chance) for name, score in scores.items()]
    return sorted(rows, key=lambda row: -row.accuracy)


def _row(name: str, score: TaskScore | GroupScore, chance: float) -> Row:
    spread = Z * score.stderr
    spread = spread or 3 / score.items  # all right or all wrong: by the rule of three
    low, high = score.accuracy - spread, score.accuracy + spread
    above = None if abs(score.accuracy - chance) <= spread else score.accuracy > chance
    return Row(name, score.items, score.accuracy, max(0.0, low), min(1.0, high), above)


def _plot(score: TaskScore, rows: Sequence[Row]) -> str:
    dots = [
        Dot(
            row.name,
            100 * row.accuracy,
            100 * row.low,
            100 * row.high,
            strong=row is rows[0],
            faint=row.above is None,
        )
        for row in rows
    ]
    alt = f"Accuracy on {score.name}, chance {percent(score.chance)}: " + ", ".join(
        f"{row.name} {percent(row.accuracy)}" for row in rows
    )
    title = "% right; dashed: chance"
    lines = {name: 100 * value for name, value in score.baselines.items()}
    return dot_plot(f"benchmark-{score.name}", f"{alt}.", title, dots, 100 * score.chance, lines)


def percent(share: float) -> str:
    """A share with one decimal, such as `61.2 %`."""
    return f"{100 * share:.1f} %"


def findings(shown: Sequence[Task]) -> list[Finding]:
    """A sentence of the summary for each task."""
    result = []
    for task in shown:
        whole = task.whole
        text = (
            f"Benchmark {task.name}: {percent(whole.accuracy)} right "
            f"(95 %: {percent(whole.low)} to {percent(whole.high)}), {whole.verdict}."
        )
        result.append(Finding("good" if whole.above else "note", text))
    return result
