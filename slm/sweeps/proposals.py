"""What is tried next: a batch of proposals as a pure function of the sweep and earlier batches.

`random` walks through a scrambled Sobol sequence (Owen 1998), which fills a space more evenly than
independent draws. `grid` lists every combination. `tpe` is Optuna's tree-structured Parzen
estimator (Bergstra et al. 2011) on a study in memory, which is rebuilt from the results for each
batch and fed in the order of the trials; its first trials are those of `random`.

No settings are proposed twice, except that halving trains the best of a rung again for longer.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slm.extras import require
from slm.records import Frozen
from slm.sweeps.definition import Sweep
from slm.sweeps.halving import limit_of, promotions
from slm.sweeps.records import TrialResult
from slm.sweeps.space import Dimension, applies, combinations, identity, order, point

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 10  # settings from the Sobol sequence before TPE, as in Optuna
MAX_ASKED = 16  # times that TPE is asked for settings that are new
MAX_SKIPPED = 4096  # points in a row whose settings are not new
WORST = 1e3  # bits per byte of a failed trial where none has finished


class Proposal(Frozen):
    """A trial that is to be run."""

    number: int
    batch: int
    values: dict[str, Any]  # the settings of the space
    overrides: dict[str, Any]  # the same, with the limit of its rung
    rung: int = 0
    promoted_from: int | None = None


def propose(sweep: Sweep, results: Sequence[Sequence[TrialResult]]) -> list[Proposal]:
    """The batch after those that have results, each in the order of its trials; empty: none left.

    A function of its arguments alone: never of the order in which trials finished. A sweep of more
    trials begins with those of one of fewer.
    """
    known = [result for batch in results for result in batch]
    count = min(sweep.batch, sweep.trials - len(known))
    chosen: list[tuple[dict[str, Any], int, int | None]] = []  # values, rung, promoted from
    if sweep.halving:
        promoted = promotions(sweep.halving, known)[: max(count, 0)]
        chosen += [(result.values, result.rung + 1, result.number) for result in promoted]
    for values in _new_settings(sweep, len(results), known, count - len(chosen)):
        chosen.append((values, 0, None))
    return [
        Proposal(
            number=len(known) + place,
            batch=len(results),
            values=values,
            overrides=_overrides(sweep, values, rung),
            rung=rung,
            promoted_from=below,
        )
        for place, (values, rung, below) in enumerate(chosen)
    ]


def _overrides(sweep: Sweep, values: dict[str, Any], rung: int) -> dict[str, Any]:
    """The settings of a trial: those of the space, and the limit of its rung."""
    if sweep.halving is None or rung == sweep.halving.rungs - 1:
        return values
    return {**values, **limit_of(sweep.config(values), sweep.halving, rung)}


def _new_settings(
    sweep: Sweep, batch: int, known: Sequence[TrialResult], count: int
) -> list[dict[str, Any]]:
    """So many settings that were not proposed yet; fewer where no others are left."""
    first = [result for result in known if result.rung == 0]
    taken = {identity(result.values) for result in first}
    every = combinations(sweep.space)
    if every is not None:
        count = min(count, len(every) - len(taken))
    if count <= 0:
        return []
    if sweep.sampler == "grid":
        return [values for values in every or () if identity(values) not in taken][:count]
    quasi_random = max(0, STARTUP_TRIALS - len(first)) if sweep.sampler == "tpe" else count
    new = []
    for values in _sobol(sweep, every, taken, min(count, quasi_random)):
        taken.add(identity(values))
        new.append(values)
    if count > len(new) and sweep.sampler == "tpe":
        new += _tpe(sweep, batch, every, first, taken, count - len(new))
    return new


# ---- quasi-random -----------------------------------------------------------------------------


def _sobol(
    sweep: Sweep, every: list[dict[str, Any]] | None, taken: set[str], count: int
) -> list[dict[str, Any]]:
    """The first points of the sweep's Sobol sequence whose settings are new, or the first new ones
    of all combinations, where the sequence does not come upon them.
    """
    new: list[dict[str, Any]] = []
    seen, skipped = set(taken), 0
    for values in _points(sweep) if count else ():
        if (name := identity(values)) in seen:
            skipped += 1
            if skipped > MAX_SKIPPED:
                break
            continue
        seen.add(name)
        new.append(values)
        skipped = 0
        if len(new) == count:
            return new
    left = [values for values in every or () if identity(values) not in seen]
    return new + left[: count - len(new)]


def _points(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The settings at the points of the sweep's Sobol sequence, without end."""
    import numpy as np
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(sweep.space), seed=np.random.default_rng(sweep.seed))
    exponent = 6
    shares = sequence.random_base2(exponent)
    while True:
        for row in shares:
            yield point(sweep.space, row.tolist())
        shares = sequence.random_base2(exponent)  # as many again: a power of two in all
        exponent += 1


# ---- TPE --------------------------------------------------------------------------------------


def _tpe(
    sweep: Sweep,
    batch: int,
    every: list[dict[str, Any]] | None,
    results: Sequence[TrialResult],
    taken: set[str],
    count: int,
) -> list[dict[str, Any]]:
    """What Optuna proposes after these results.

    The settings of this batch so far are pending, which `constant_liar` counts as bad, so that
    those of one batch differ.
    """
    study = _study(sweep, batch, results)
    new: list[dict[str, Any]] = []
    seen = set(taken)
    for _ in range(count):
        for _ in range(MAX_ASKED):
            values = _ask(sweep, study)
            if identity(values) not in seen:
                break
        else:
            values = next(iter(_sobol(sweep, every, seen, 1)), {})
            if not values:
                break
        seen.add(identity(values))
        new.append(values)
    return new


def _study(sweep: Sweep, batch: int, results: Sequence[TrialResult]) -> "optuna.Study":
    """A study in memory with these results, in the order of their trials."""
    require("optuna", "the sampler tpe")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    digest = hashlib.sha256(f"{sweep.seed} {batch}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental options
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=0,
            multivariate=True,
            group=any(dimension.when for dimension in sweep.space.values()),
            constant_liar=True,
            seed=int.from_bytes(digest[:4]),
        )
        study = optuna.create_study(sampler=sampler)
        scores = [result.val_bpb for result in results if result.val_bpb is not None]
        worst = max(scores, default=WORST)
        for result in sorted(results, key=lambda result: result.number):
            params = {k: _to_optuna(sweep.space[k], v) for k, v in result.values.items()}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions={key: _distribution(sweep.space[key]) for key in params},
                    value=worst if result.val_bpb is None else result.val_bpb,
                )
            )
    return study


def _ask(sweep: Sweep, study: "optuna.Study") -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = study.ask()
        values: dict[str, Any] = {}
        for key in order(sweep.space):
            dimension = sweep.space[key]
            if applies(dimension, values):
                values[key] = _from_optuna(dimension, _suggest(trial, key, dimension))
    return {key: values[key] for key in sweep.space if key in values}


def _suggest(trial: "optuna.Trial", key: str, dimension: Dimension) -> Any:
    if dimension.choices:
        last = len(dimension.choices) - 1
        if _ordered(dimension):
            return trial.suggest_int(key, 0, last)
        return trial.suggest_categorical(key, tuple(range(last + 1)))
    low, high = dimension.corners
    suggest = trial.suggest_int if dimension.integer else trial.suggest_float
    return suggest(key, low, high, log=dimension.log)


def _ordered(dimension: Dimension) -> list[Any] | None:
    """Choices that are numbers, in their order; None of others, and of a range."""
    numbers = dimension.choices and all(type(each) in (int, float) for each in dimension.choices)
    return sorted(dimension.choices) if numbers else None


def _distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    """A dimension as Optuna's. Choices are known to it by their place: numbers in their order."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.choices:
        count = len(dimension.choices)
        if _ordered(dimension):
            return IntDistribution(0, count - 1)
        return CategoricalDistribution(tuple(range(count)))
    low, high = dimension.corners
    kind = IntDistribution if dimension.integer else FloatDistribution
    return kind(low, high, log=dimension.log)


def _to_optuna(dimension: Dimension, value: Any) -> Any:
    if dimension.choices:
        return (_ordered(dimension) or list(dimension.choices)).index(value)
    return value


def _from_optuna(dimension: Dimension, param: Any) -> Any:
    if dimension.choices:
        return (_ordered(dimension) or list(dimension.choices))[param]
    return dimension.rounded(param)


def versions() -> dict[str, str]:
    """The libraries whose arithmetic the proposals are of; others may propose other settings."""
    from importlib.metadata import PackageNotFoundError, version

    known = {}
    for name in ("numpy", "scipy", "optuna"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known
