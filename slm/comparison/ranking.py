"""Runs grouped over their seeds, and ranked where they were scored on the same held-out documents.

What is computed, for the groups of a ranking:

- The score of a group is the mean over its seeds. Its interval is over documents (the paired
  bootstrap of the gate, drawn once for all groups) and, where it has several seeds, over seeds
  (Student's t); their reaches add up as squares.
- Each group is compared with the best on the same documents. With m such comparisons, each interval
  is of the confidence 1 - 0.05/m (Bonferroni; Dunn 1961), so that all hold together with 95 %. The
  best is chosen by the same figures, which comparisons with the best allow (Hsu 1981).
- Up to MAX_MATRIX groups are compared each with each, m being the number of pairs.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.comparison.reading import SEED, ReadRun
from slm.comparison.results import Difference, Group, Ranking
from slm.evaluation.intervals import (
    CONFIDENCE,
    combined,
    percentiles,
    resampled_scores,
    seed_reach,
)

MAX_MATRIX = 20  # groups that are compared each with each
Members = list[ReadRun]  # of a group, in the order of their seeds


def rankings(runs: Sequence[ReadRun], shown: Sequence[str]) -> list[Ranking]:
    """A ranking for each set of held-out documents, the one of most runs first.

    Args:
        runs: those that are ranked; each has the scores of its documents.
        shown: the settings that a group is shown with.
    """
    texts = by_held_out_text(runs)
    return [
        _ranking(members, shown, _why_apart(texts[0], members) if number else None)
        for number, members in enumerate(texts)
    ]


# ---- who is compared with whom ----------------------------------------------------------------


def by_held_out_text(runs: Sequence[ReadRun]) -> list[list[ReadRun]]:
    """The runs by what they were scored on: as many documents, of the same bytes and text.

    A run whose evaluation has no fingerprint of its text is taken by the lengths alone.
    """
    by_sizes: dict[bytes, list[ReadRun]] = defaultdict(list)
    for run in runs:
        by_sizes[run.sizes.tobytes()].append(run)
    texts: list[list[ReadRun]] = []
    for same_sizes in by_sizes.values():
        known = list(dict.fromkeys(r.fingerprint for r in same_sizes if r.fingerprint is not None))
        by_text: dict[float | None, list[ReadRun]] = defaultdict(list)
        for run in same_sizes:
            by_text[run.fingerprint or (known[0] if known else None)].append(run)
        texts += by_text.values()
    return sorted(texts, key=lambda members: (-len(members), -len(members[0].sizes)))


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
    seeds = [_by_seed(members) for members in groups]
    means = [fmean(scores) for scores in seeds]
    order = sorted(range(len(groups)), key=lambda i: (means[i], groups[i][0].name))
    groups, seeds = [groups[i] for i in order], [seeds[i] for i in order]
    means = [means[i] for i in order]
    bits = np.stack([np.mean([run.bits for run in members], axis=0) for members in groups], axis=1)
    resampled = resampled_scores(bits, groups[0][0].sizes)  # (R, K)
    compared = _Compared(means, seeds, resampled)
    others = len(groups) - 1
    return Ranking(
        documents=len(bits),
        bytes=int(groups[0][0].sizes.sum()),
        why_apart=why_apart,
        groups=[
            _group(
                members,
                shown,
                (means[i], *compared.interval(i)),
                compared.difference(i, 0, others) if i else None,
            )
            for i, members in enumerate(groups)
        ],
        comparisons=others,
        matrix=compared.matrix() if 2 < len(groups) <= MAX_MATRIX else None,
    )


def _by_seed(members: Members) -> list[float]:
    """The score of each seed; of runs that repeat one, such as on another machine, their mean."""
    scores: dict[int | None, list[float]] = defaultdict(list)
    for run in members:
        scores[run.seed].append(float(run.bits.sum() / run.sizes.sum()))
    return [fmean(each) for each in scores.values()]


class _Compared:
    """The scores of K groups, and how sure they and their differences are."""

    def __init__(
        self,
        means: Sequence[float],
        seeds: Sequence[Sequence[float]],
        resampled: npt.NDArray[np.float64],  # (R, K)
    ) -> None:
        self._means, self._seeds, self._resampled = means, seeds, resampled

    def interval(self, i: int) -> tuple[float, float]:
        """The 95 % interval of a group's score."""
        tail = (1 - CONFIDENCE) / 2
        by_documents = percentiles(self._resampled[:, i], tail)
        return combined(self._means[i], by_documents, seed_reach(self._seeds[i], tail=tail))

    def difference(self, i: int, j: int, comparisons: int) -> Difference:
        """Group i minus group j, as one of so many comparisons."""
        tail = (1 - CONFIDENCE) / 2 / comparisons
        by_documents = percentiles(self._resampled[:, i] - self._resampled[:, j], tail)
        difference = self._means[i] - self._means[j]
        by_seeds = seed_reach(self._seeds[i], self._seeds[j], tail=tail)
        low, high = combined(difference, by_documents, by_seeds)
        return Difference(difference=difference, low=low, high=high)

    def matrix(self) -> list[list[Difference | None]]:
        """Every group minus every other one; the lower half mirrors the upper."""
        count = len(self._means)
        rows: list[list[Difference | None]] = [[None] * count for _ in range(count)]
        for i in range(count):
            for j in range(i):
                lower = self.difference(i, j, count * (count - 1) // 2)
                rows[i][j] = lower
                rows[j][i] = Difference(
                    difference=-lower.difference, low=-lower.high, high=-lower.low
                )
        return rows


def _group(
    members: Members,
    shown: Sequence[str],
    score: tuple[float, float, float],
    to_best: Difference | None,
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
        to_best=to_best,
    )


def value_of(run: ReadRun, key: str) -> Any:
    """The value of a setting, or of what a run was made from."""
    return run.settings[key] if key in run.settings else run.inputs.get(key)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, where every value is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
