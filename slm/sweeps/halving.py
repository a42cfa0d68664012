"""Successive halving by budgets that are whole schedules.

The loss of a long run at an early step does not predict its final loss: while the learning rate is
high, runs are ordered by their noise, and the decay to come reorders them. So a trial is never
ended early. Its short form is a run of its own, whose limit is a fraction of the full one and whose
learning rate decays within it; the best of those are trained again, from their first step, with the
next longer limit.

Who is promoted follows ASHA (Li et al. 2020, arXiv:1810.05934, algorithm 2), with the results of
whole batches in place of whatever has finished: of `n` settings with a result at a rung, the best
`n // factor` that were not promoted yet.
"""

from collections.abc import Sequence
from typing import Any

from slm.config import LIMITS, PipelineConfig
from slm.errors import UserError
from slm.records import Frozen
from slm.sweeps.records import RankCorrelation, TrialResult
from slm.sweeps.space import identity

MIN_FACTOR = 2
MIN_PAIRS = 3  # of a correlation


class Halving(Frozen):
    """How many times shorter each rung is than the next, and the number of rungs."""

    factor: int = 3
    rungs: int = 2

    @property
    def text(self) -> str:
        return f"{self.factor}:{self.rungs}"


def parse_halving(text: str | int) -> Halving:
    """`3` or `3:2` → the factor and the rungs. Raises UserError."""
    try:
        factor, _, rungs = str(text).partition(":")
        halving = Halving(factor=int(factor), rungs=int(rungs or 2))
    except ValueError as error:
        raise UserError(
            f"halving={text!r} is not FACTOR or FACTOR:RUNGS, such as 3 or 3:2"
        ) from error
    if halving.factor < MIN_FACTOR or halving.rungs < 2:
        raise UserError(f"halving={text!r}: the factor and the rungs are at least 2")
    return halving


def limit_of(config: PipelineConfig, halving: Halving, rung: int) -> dict[str, Any]:
    """The setting of the training's limit at a rung; empty at the last, which has the full one."""
    if rung >= halving.rungs - 1:
        return {}
    name = next(name for name in LIMITS if getattr(config.train, name) is not None)
    full = getattr(config.train, name)
    part = full / halving.factor ** (halving.rungs - 1 - rung)
    return {f"train.{name}": max(1, round(part)) if isinstance(full, int) else part}


def promotions(halving: Halving, results: Sequence[TrialResult]) -> list[TrialResult]:
    """The results whose settings are trained again at the next rung, the highest rungs first."""
    chosen = []
    for rung in reversed(range(halving.rungs - 1)):
        here = [result for result in results if result.rung == rung]
        above = {identity(result.values) for result in results if result.rung == rung + 1}
        best = sorted(
            (result for result in here if result.val_bpb is not None),
            key=lambda result: (result.val_bpb, result.number),
        )[: len(here) // halving.factor]
        chosen += [result for result in best if identity(result.values) not in above]
    return chosen


def rank_correlations(halving: Halving, results: Sequence[TrialResult]) -> list[RankCorrelation]:
    """Spearman's correlation of the scores at each rung and the next, over settings with both.

    These are the best of the lower rung alone, which makes it smaller than it is over all.
    """
    correlations = []
    for rung in range(halving.rungs - 1):
        lower, upper = (
            {
                identity(result.values): result.val_bpb
                for result in results
                if result.rung == each and result.val_bpb is not None
            }
            for each in (rung, rung + 1)
        )
        both = [name for name in lower if name in upper]
        correlations.append(
            RankCorrelation(
                rung=rung,
                trials=len(both),
                spearman=_spearman([lower[n] for n in both], [upper[n] for n in both]),
            )
        )
    return correlations


def _spearman(first: list[float], second: list[float]) -> float | None:
    """None of fewer than three pairs, and where all of a side are the same."""
    if len(first) < MIN_PAIRS or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)
