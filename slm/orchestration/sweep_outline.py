"""A sweep without Prefect, as a plain call: `slm.sweep`."""

from collections.abc import Callable, Mapping
from typing import Any

from slm.sweeps.definition import Sweep
from slm.sweeps.driver import RunTrial
from slm.sweeps.records import SweepResult, Trial


def sweep(
    name: str,
    space: Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    **fields: Any,
) -> SweepResult:
    """Run a sweep of `pipelines.yaml`, or of a recipe over a space; resume it if it was begun.

    >>> slm.sweep("quickstart", {"train.learning_rate": "log:1e-3:1e-2"}, trials=12).winner.values

    Args:
        name: a name under `sweeps:`, or, with a space, of a recipe.
        space: by dotted key, as on the command line.
        workers: trials that run at a time.
        fields: other fields of the sweep: overrides, sampler, trials, batch, seeds, seed, budget,
            halving.
    """
    raise NotImplementedError


def with_inputs(sweep: Sweep) -> Sweep:
    """The same, with the hash of what its config only names: local files, a branch, weights.

    The sweep's key has it: other data are another sweep.
    """
    raise NotImplementedError


def carry_out(
    sweep: Sweep,
    *,
    workers: int = 1,
    run_trial: RunTrial | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> SweepResult:
    """Run a sweep in the data folder in use, its inputs fixed first, its source and shards shared.

    `run_trial`: None: `train_and_evaluate`.
    """
    raise NotImplementedError
