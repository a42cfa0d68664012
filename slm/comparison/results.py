"""What a comparison of any number of runs holds."""

from pathlib import Path
from typing import Any

from pydantic import Field

from slm.evaluation.intervals import fewer_bits
from slm.evaluation.ranking import Verdict, too_few
from slm.history.compare import PairComparison
from slm.records import Frozen, TaskScore

Point = tuple[int, float | None, float | None, float]  # tokens, seconds, FLOPs, val_bpb


class ComparedRun(Frozen):
    """A run by its records: what it was set to, what it took, how well it predicts."""

    run: str
    state: str  # finished, training, stopped, damaged, newer (of a newer slm)
    not_ranked: str | None  # why it is in no ranking; None: it is in one
    settings: dict[str, Any]  # those in which the compared runs differ, the seed among them
    seed: int | None
    step: int
    tokens: int  # trained on, as are the next two figures of training alone
    seconds: float | None
    flops: float | None  # forward and backward passes
    parameters: int | None
    best_slice_val_bpb: float | None  # of training, on the fixed slice of val
    last_slice_val_bpb: float | None
    val_bpb: float | None  # of the evaluation, on all held-out documents
    benchmarks: dict[str, TaskScore] = Field(default_factory=dict)  # of the weights evaluated
    curve: list[Point] = Field(default_factory=list)  # held-out, on the fixed slice of val


class Difference(Frozen):
    """Bits per byte of a group minus those of another one, with an interval.

    The intervals of all differences of a table hold together with 95 %. None: not known.
    """

    difference: float
    low: float | None
    high: float | None

    @property
    def better(self) -> bool | None:
        """Whether the first group is better, which needs fewer bits; None: that is not shown."""
        return fewer_bits(self.low, self.high)

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval as it is drawn: both at the difference where it is not known."""
        if self.low is None or self.high is None:
            return self.difference, self.difference
        return self.low, self.high


class Group(Frozen):
    """Runs that differ in nothing but `train.seed`, a run alone included, and their mean."""

    runs: list[str]
    seeds: list[int]
    settings: dict[str, Any]  # those in which the compared runs differ, but for the seed
    val_bpb: float
    low: (
        float | None
    )  # the 95 % interval over documents, and over seeds where any group has several
    high: float | None
    tokens: float
    seconds: float | None
    flops: float | None
    best_slice_val_bpb: float | None
    last_slice_val_bpb: float | None
    benchmarks: dict[str, float]  # task → accuracy
    sources: dict[str, float]  # of a mixture → bits per byte, where all were scored on the same
    to_best: Difference | None  # None: it is the best

    @property
    def is_distinguishable(self) -> bool:
        """Whether it is shown to be worse than the best; with one seed each, as a model."""
        return self.to_best is not None and self.to_best.better is not None


class Ranking(Frozen):
    """Groups that were scored on the same held-out documents, the best first."""

    documents: int
    bytes: int
    why_apart: str | None  # from the first ranking; None: it is the first
    groups: list[Group]
    comparisons: int  # with the best
    seed_sd: float | None  # bits per byte between the seeds of a group; None: of one seed each
    matrix: list[list[Difference | None]] | None  # row minus column; None: too many groups

    @property
    def sources(self) -> list[str]:
        """The sources of a mixture, where all were scored on the same ones."""
        return list(self.groups[0].sources)

    @property
    def tied(self) -> list[Group]:
        """The groups that are not shown to be worse than the best, without it."""
        return [group for group in self.groups[1:] if not group.is_distinguishable]

    @property
    def verdict(self) -> Verdict:
        """How sure it is that the best is better than every other."""
        doubt = too_few(self.documents)
        return Verdict(self.comparisons, len(self.tied), self.seed_sd is not None, doubt)

    @property
    def distinguishable(self) -> bool:
        """Whether the best is shown to be better than every other; never by one seed each."""
        return self.verdict.distinguishable


class Comparison(Frozen):
    """Any number of runs: `rankings`, and `runs` with what each of them is."""

    runs: list[ComparedRun]  # in the order in which they were given
    settings: dict[str, list[Any]]  # in which they differ → the values, without `train.seed`
    rankings: list[Ranking]
    notes: list[str]
    pair: PairComparison | None = None  # of two runs: A and B in detail
    html: Path | None = None  # the page, where one was written

    @property
    def not_ranked(self) -> list[ComparedRun]:
        return [run for run in self.runs if run.not_ranked]
