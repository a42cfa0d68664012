"""What is tried next: a batch of proposals as a pure function of the sweep and earlier batches."""

from collections.abc import Sequence
from typing import Any

from slm.records import Frozen
from slm.sweeps.definition import Sweep
from slm.sweeps.records import TrialResult


class Proposal(Frozen):
    """A trial that is to be run."""

    number: int
    batch: int
    values: dict[str, Any]  # the settings of the space
    overrides: dict[str, Any]  # the same, with the limit of its rung
    rung: int = 0
    promoted_from: int | None = None
    repeats: int | None = None


def propose(sweep: Sweep, results: Sequence[Sequence[TrialResult]]) -> list[Proposal]:
    """The batch after those that have results, each in the order of its trials; empty: none left.

    A function of its arguments alone: never of the order in which trials finished.
    """
    raise NotImplementedError
