"""Runs grouped over their seeds, and ranked where they were scored on the same held-out documents.

Who is the best, and how sure that is, comes from `slm.evaluation.ranking`, as of a sweep.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.comparison.reading import SEED, ReadRun
from slm.comparison.results import Difference, Group, Ranking
from slm.evaluation.ranking import Floats, by_held_out_text, known, rank, rank_by_mean, too_few
from slm.evaluation.ranking import Ranking as Ranked

MAX_MATRIX = 20  # groups that are compared each with each
Members = list[ReadRun]  # of a group, in the order of their seeds


def rankings(runs: Sequence[ReadRun], shown: Sequence[str]) -> list[Ranking]:
    """A ranking for each set of held-out documents, the one of most runs first.

    Args:
        runs: those that are ranked; each has the scores of its documents.
        shown: the settings that a group is shown with.
    """
    same = by_held_out_text([(run.sizes, run.fingerprint) for run in runs])
    texts = [[runs[i] for i in members] for members in same]
    return [
        _ranking(members, shown, _why_apart(texts[0], members) if number else None)
        for number, members in enumerate(texts)
    ]


# ---- who is compared with whom ----------------------------------------------------------------


def _why_apart(first: Sequence[ReadRun], members: Sequence[ReadRun]) -> str:
    """Why the members are not in the ranking of `first`."""
    ours, theirs = members[0], first[0]
    fewer, more = sorted((ours.sizes, theirs.sizes), key=len)
    if len(fewer) < len(more) and (more[: len(fewer)] == fewer).all():
        if len(ours.sizes) < len(theirs.sizes):
            return f"scored on the first {len(fewer):,} of the {len(more):,} documents above"
        return f"scored on {len(more):,} documents, of which those above are the first"
    changed = [
        f"{key}={_value(ours.settings[key])} instead of {_value(theirs.settings[key])}"
        for key in sorted(set(ours.settings) & set(theirs.settings))
        if key.startswith(("data.", "evaluate.")) and ours.settings[key] != theirs.settings[key]
    ]
    return f"scored on other held-out text: {', '.join(changed) or 'the dataset has changed'}"


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


def grouped(runs: Sequence[ReadRun]) -> list[Members]:
    """Runs that differ in nothing but their seed, together."""
    groups: dict[str, Members] = defaultdict(list)
    for run in runs:
        fields = {**run.settings, **run.inputs, SEED: None, "recipe": None}
        groups[repr(sorted(fields.items()))].append(run)
    return [
        sorted(members, key=lambda run: (run.seed or 0, run.name)) for members in groups.values()
    ]


# ---- scores -----------------------------------------------------------------------------------


def _ranking(runs: Sequence[ReadRun], shown: Sequence[str], why_apart: str | None) -> Ranking:
    groups = grouped(runs)
    sources = runs[0].sources if all(run.sources == runs[0].sources for run in runs) else []
    sizes, bits = runs[0].sizes, [_by_seed(members) for members in groups]
    if too_few(len(sizes)):
        ranked = rank_by_mean([each.mean(0).sum() / sizes.sum() for each in bits])
    else:
        ranked = rank(bits, sizes)
    order: list[int] = np.argsort(ranked.mean, kind="stable").tolist()
    mean, low, high = (ends.tolist() for ends in (ranked.mean, ranked.low, ranked.high))
    return Ranking(
        documents=len(sizes),
        bytes=int(sizes.sum()),
        why_apart=why_apart,
        groups=[
            _group(
                groups[i],
                shown,
                (mean[i], known(low[i]), known(high[i])),
                _to_best(ranked, i),
                _by_source(bits[i].mean(0), sizes, sources),
            )
            for i in order
        ],
        comparisons=len(groups) - 1,
        seed_sd=ranked.seed_sd,
        matrix=_matrix(ranked, order) if 2 < len(groups) <= MAX_MATRIX else None,
    )


def _to_best(ranked: Ranked, i: int) -> Difference | None:
    if i == ranked.best:
        return None
    return Difference(
        difference=float(ranked.difference[i]),
        low=known(ranked.difference_low[i]),
        high=known(ranked.difference_high[i]),
    )


def _matrix(ranked: Ranked, order: Sequence[int]) -> list[list[Difference | None]]:
    """Every group minus every other one, the best first."""
    between = ranked.mean[:, None] - ranked.mean  # (T, T)
    low, high = between - ranked.reach, between + ranked.reach
    return [
        [
            None
            if i == j
            else Difference(
                difference=float(between[i, j]), low=known(low[i, j]), high=known(high[i, j])
            )
            for j in order
        ]
        for i in order
    ]


def _by_seed(members: Members) -> Floats:
    """(S, D): bits of each seed on each document; of runs that repeat a seed, such as on another
    machine, their mean.
    """
    bits: dict[int | None, list[Floats]] = defaultdict(list)
    for run in members:
        bits[run.seed].append(run.bits)
    return np.stack([np.mean(each, axis=0) for each in bits.values()])


def _by_source(
    bits: Floats, sizes: npt.NDArray[np.int64], sources: Sequence[str]
) -> dict[str, float]:
    """Bits per byte of the documents of each source, by its name.

    Args:
        bits, sizes: bits spent on each document and its bytes, (D,).
        sources: of each document; empty where it is not known, or there is one alone.
    """
    own = {name: np.array(sources) == name for name in sorted(set(sources))}
    return {name: float(bits[mask].sum() / sizes[mask].sum()) for name, mask in own.items()}


def _group(
    members: Members,
    shown: Sequence[str],
    score: tuple[float, float | None, float | None],
    to_best: Difference | None,
    sources: dict[str, float],
) -> Group:
    first = members[0]
    curves = [run.curve.val_bpb for run in members if run.curve and run.curve.val_bpb]
    value, low, high = score
    tasks = dict.fromkeys(task for run in members for task in run.scores)
    return Group(
        runs=[run.name for run in members],
        seeds=list(dict.fromkeys(run.seed for run in members if run.seed is not None)),
        settings={key: value_of(first, key) for key in shown},
        val_bpb=value,
        low=low,
        high=high,
        tokens=fmean(run.tokens for run in members),
        seconds=_mean([run.seconds for run in members]),
        flops=_mean([run.flops for run in members]),
        best_slice_val_bpb=_mean([min(curve) for curve in curves]),
        last_slice_val_bpb=_mean([curve[-1] for curve in curves]),
        benchmarks={
            task: fmean(run.scores[task].accuracy for run in members if task in run.scores)
            for task in tasks
        },
        sources=sources,
        to_best=to_best,
    )


def value_of(run: ReadRun, key: str) -> Any:
    """The value of a setting, or of what a run was made from."""
    return run.settings[key] if key in run.settings else run.inputs.get(key)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, where every value is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
