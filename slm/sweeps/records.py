"""What a sweep leaves of its trials: a record of each, written when all its seeds are done."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from slm.records import Frozen

State = Literal["finished", "failed"]


class TrialResult(Frozen):
    """Of a finished trial, what later proposals depend on."""

    number: int
    values: dict[str, Any]  # the settings of the space, by dotted key
    rung: int = 0  # of halving; without it 0
    val_bpb: float | None  # mean over the seeds; None: it failed, and counts as the worst


class SeedRun(Frozen):
    """One training of a trial, an ordinary run with its evaluation."""

    seed: int
    state: State
    reason: str = ""  # why it failed
    run: str = ""  # name of its folder; empty: it was refused before there was one
    key: str = ""
    shards_key: str = ""
    val_bpb: float | None = None  # of the evaluation, over all held-out documents
    documents: int = 0  # that the evaluation scored
    bytes: int = 0  # of these documents
    weights_sha256: str = ""  # of the checkpoint that was scored
    seconds: float = 0.0  # of training, as the run's record has them
    tokens: int = 0  # trained on
    step: int = 0
    reused: bool = False  # whether the run was complete before this trial asked for it


class Trial(Frozen):
    """One proposal with what came of it."""

    number: int  # from 0
    batch: int
    values: dict[str, Any]  # the settings of the space
    overrides: dict[str, Any]  # all that differs from the sweep's recipe: values, a rung's limit
    rung: int = 0
    promoted_from: int | None = None  # the trial of the same values at the rung below
    seeds: tuple[SeedRun, ...]

    @property
    def state(self) -> State:
        return "failed" if any(seed.state == "failed" for seed in self.seeds) else "finished"

    @property
    def reason(self) -> str:
        """Why it failed; empty of a finished one."""
        return next((seed.reason for seed in self.seeds if seed.state == "failed"), "")

    @property
    def val_bpb(self) -> float | None:
        """The mean over its seeds; None where it failed."""
        scores = [seed.val_bpb for seed in self.seeds if seed.val_bpb is not None]
        if self.state == "failed" or not scores or len(scores) < len(self.seeds):
            return None
        return math.fsum(scores) / len(scores)

    @property
    def seconds(self) -> float:
        """Of training, over its seeds, whether or not they were reused."""
        return math.fsum(seed.seconds for seed in self.seeds)

    @property
    def tokens(self) -> int:
        """Trained on, over its seeds."""
        return sum(seed.tokens for seed in self.seeds)

    @property
    def result(self) -> TrialResult:
        """What later proposals depend on."""
        return TrialResult(
            number=self.number, values=self.values, rung=self.rung, val_bpb=self.val_bpb
        )


class RankCorrelation(Frozen):
    """How alike two rungs of halving order the same settings."""

    rung: int  # and the next one
    trials: int  # settings with a score at both
    spearman: float | None  # None of fewer than three


class SweepResult(Frozen):
    """What came of a sweep: `result.json`, but for the trials, which have files of their own."""

    name: str
    key: str
    ended: Literal["trials", "budget", "space"]  # enough trials, budget spent, no settings left
    best: int | None  # number of the best trial; None: all failed
    seconds: float  # of training, over all trials
    tokens: int
    correlations: tuple[RankCorrelation, ...] = ()  # between the rungs of halving
    trials: tuple[Trial, ...] = ()

    @property
    def ranked(self) -> list[Trial]:
        """The trials of the longest limit that have finished, the best first."""
        return ranking(self.trials)

    @property
    def winner(self) -> Trial | None:
        """The best trial: of the longest limit, the lowest mean of bits per byte."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


def ranking(trials: Iterable[Trial]) -> list[Trial]:
    """Of the trials that have finished, those of the longest limit, the best first."""
    finished = [trial for trial in trials if trial.val_bpb is not None]
    rung = max((trial.rung for trial in finished), default=0)
    longest = (trial for trial in finished if trial.rung == rung)
    return sorted(longest, key=lambda trial: (trial.val_bpb, trial.number))
