"""The held-out documents of a mixture by their source, and how well a model predicts each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm.evaluation.intervals import MIN_DOCUMENTS, RESAMPLES, paired_interval
from slm.evaluation.scoring import DocumentScore, Score
from slm.records import Shards
from slm.tokens.mixture.reading import part_of_val


def held_out_sources(shards: Shards, count: int | None = None) -> list[str]:
    """The source of each held-out document, or of the first `count`, in order.

    Empty for shards of one source.
    """
    if not shards.parts:
        return []
    names = list(shards.parts)
    return [names[part] for part in part_of_val(shards)[:count].tolist()]


def by_source(
    rows: Sequence[DocumentScore], sources: Sequence[str]
) -> dict[str, list[DocumentScore]]:
    """The scores of documents by their source, in the order of their names.

    `sources`: of each document, as of `held_out_sources`.
    """
    groups: dict[str, list[DocumentScore]] = defaultdict(list)
    for row, source in zip(rows, sources, strict=True):
        groups[source].append(row)
    return dict(sorted(groups.items()))


def source_figures(rows: Sequence[DocumentScore], sources: Sequence[str]) -> dict[str, Any]:
    """The totals of each source, and `low` and `high`: the 95 % interval of its bits per byte.

    Both are None of fewer than `MIN_DOCUMENTS`. Weighted by their bytes, the bits per byte of the
    sources have that of the whole as their mean.
    """
    return {
        name: {**Score.total(of_source).figures(), **_interval(of_source)}
        for name, of_source in by_source(rows, sources).items()
    }


def _interval(rows: Sequence[DocumentScore]) -> Mapping[str, float | None]:
    if len(rows) < MIN_DOCUMENTS:
        return {"low": None, "high": None}
    nats = np.array([row.nats for row in rows])
    sizes = np.array([row.bytes for row in rows])
    _, low, high = paired_interval(nats, np.zeros(len(rows)), sizes, resamples=RESAMPLES)
    return {"low": low, "high": high}
