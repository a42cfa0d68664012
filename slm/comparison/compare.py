"""Compare any number of runs: `slm.compare`, and what the command `slm compare` shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm.comparison.ranking import rankings, value_of
from slm.comparison.reading import SEED, ReadRun, read_run
from slm.comparison.references import named_runs
from slm.comparison.results import ComparedRun, Comparison, Point
from slm.history.compare import compare_pair
from slm.registry.opening import Given
from slm.run_folder import DataRoot
from slm.storage import hashing_once

PAGES = "comparisons"  # in the data folder


@hashing_once()
def compare(
    *runs: Given, html: str | Path | bool | None = None, root: Path | None = None
) -> Comparison:
    """Compare two or more runs, from their records alone: no weights are read.

    >>> compared = slm.compare("quickstart-*")
    >>> best = compared.rankings[0].groups[0]
    >>> best.settings, best.val_bpb, best.low, best.high, compared.rankings[0].tied
    >>> slm.compare("latest", "slm@champion").pair.interval

    Runs that differ in nothing but `train.seed` are one group. Groups are ranked where they were
    scored on the same held-out documents, each compared with the best; runs that are not finished
    or not evaluated are in no ranking.

    Args:
        runs: each a run, as of `slm.open_run`, or a pattern of names such as `quickstart-*`.
        html: where to write the comparison as a page, one file; True: under `data/comparisons/`.
        root: the data folder; None: as of `DataRoot`.

    Returns a `Comparison`; of exactly two runs its `pair` has both in detail: every setting, the
    interval of the difference, the benchmarks item by item, the samples.

    Raises UserError where a name means no run, and where fewer than two are named.
    """
    folders, notes = named_runs(runs, root)
    pair = compare_pair(*folders) if len(folders) == 2 else None
    read = [read_run(folder) for folder in folders]
    kept, twice = _once_per_key(read)
    differing = _differing(kept)
    compared = Comparison(
        runs=[_compared(run, [*differing, SEED]) for run in kept],
        settings={key: _values(kept, key) for key in differing},
        rankings=rankings([run for run in kept if not run.reason], differing),
        notes=[*notes, *twice],
        pair=pair,
    )
    if not html:
        return compared
    from slm.comparison.page import write_page

    path = _default_page(compared, root) if html is True else Path(html)
    return compared.model_copy(update={"html": write_page(compared, read, path)})


def _once_per_key(runs: Sequence[ReadRun]) -> tuple[list[ReadRun], list[str]]:
    """The runs without those that are the same result under another name, and a note of these."""
    first: dict[str, ReadRun] = {}
    notes = []
    for run in runs:
        key = run.record.key if run.record else run.name
        if key in first:
            notes.append(f"{run.name} is left out: it is the same result as {first[key].name}")
        first.setdefault(key, run)
    return list(first.values()), notes


def _differing(runs: Sequence[ReadRun]) -> list[str]:
    """The settings in which the runs differ, but for the seed; then what else they were made from.

    Other shards, or other starting weights, are shown only where no setting shows them.
    """
    known = [run for run in runs if run.settings]
    if not known:
        return []
    names = [key for key in known[0].settings if key != SEED and _varies(known, key)]
    explained = {
        "shards": any(name.startswith("data.") for name in names),
        "starting weights": "train.init_from" in names,
        "made from": False,
    }
    inputs = [key for key, shown in explained.items() if not shown and _varies(known, key)]
    return [*names, *inputs]


def _varies(runs: Sequence[ReadRun], key: str) -> bool:
    first = value_of(runs[0], key)
    return any(value_of(run, key) != first for run in runs)


def _values(runs: Sequence[ReadRun], key: str) -> list[Any]:
    """The values of a setting, each once, in their order."""
    values: list[Any] = []
    for run in runs:
        if run.settings and (value := value_of(run, key)) not in values:
            values.append(value)
    numbers = [value for value in values if isinstance(value, int | float)]
    return sorted(numbers) if len(numbers) == len(values) else values


def _compared(run: ReadRun, shown: Sequence[str]) -> ComparedRun:
    curve = run.curve
    scores = curve.val_bpb if curve else ()
    return ComparedRun(
        run=run.name,
        state=run.state,
        not_ranked=run.reason,
        settings={key: value_of(run, key) for key in shown} if run.settings else {},
        seed=run.seed,
        step=run.tokens // run.per_step if run.per_step else 0,
        tokens=run.tokens,
        seconds=run.seconds,
        flops=run.flops,
        parameters=(run.record and run.record.parameters) or (curve and curve.parameters) or None,
        best_slice_val_bpb=min(scores, default=None),
        last_slice_val_bpb=scores[-1] if scores else None,
        val_bpb=run.evaluation.val_bpb if run.evaluation else None,
        benchmarks=run.scores,
        curve=_points(run),
    )


def _points(run: ReadRun) -> list[Point]:
    if run.curve is None:
        return []
    points: list[Point] = []
    for step, seconds, bpb in zip(
        run.curve.steps, run.curve.seconds, run.curve.val_bpb, strict=True
    ):
        tokens = step * run.per_step
        flops = run.flops_per_token and run.flops_per_token * tokens
        points.append((tokens, seconds or None, flops, bpb))
    return points


def _default_page(compared: Comparison, root: Path | None) -> Path:
    """A file of its own for each set of runs: another comparison of the same runs replaces it."""
    from slm.storage import sha256_json

    digest = sha256_json(sorted(run.run for run in compared.runs))
    first = compared.runs[0].run.rpartition("-")[0] or compared.runs[0].run
    return DataRoot(root).path / PAGES / f"{first}-{digest[:12]}.html"
