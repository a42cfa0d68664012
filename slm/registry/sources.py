"""The sources of a mixture in the gate: challenger and champion on each one's documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.evaluation.intervals import MIN_DOCUMENTS, paired_interval
from slm.evaluation.scoring import bits_per_byte
from slm.records import SourceDifference

Floats: TypeAlias = npt.NDArray[np.float64]


def check_margins(margins: Mapping[str, float], sources: Sequence[str]) -> None:
    """Raises UserError where `registry.margins` has a source without held-out documents.

    `sources`: of each document that the gate scores.
    """
    known = ", ".join(f"{name}: {count:,}" for name, count in sorted(Counter(sources).items()))
    for name in margins:
        if name not in sources:
            documents = f"with these documents: {known}" if known else "and is of one source"
            raise UserError(
                f"registry.margins has {name}, a source that the held-out text of the version does "
                f"not have ({documents}): name a source of data.sources, or raise "
                "registry.gate_documents"
            )


def compare_sources(
    sources: Sequence[str],
    challenger: Floats,
    champion: Floats | None,
    sizes: npt.NDArray[np.int64],
    margins: Mapping[str, float],
) -> tuple[SourceDifference, ...]:
    """Both models on the documents of each source, in the order of their names.

    Args:
        sources: of each document; empty where there is one alone, and so nothing to compare.
        challenger, champion: nats spent on each document, (N,); None: there is no champion.
        sizes: UTF-8 bytes of each document, (N,).
        margins: those of `registry.margins`.
    """
    return tuple(
        _compared(name, np.array(sources) == name, challenger, champion, sizes, margins.get(name))
        for name in sorted(set(sources))
    )


def _compared(
    name: str,
    own: npt.NDArray[np.bool_],
    challenger: Floats,
    champion: Floats | None,
    sizes: npt.NDArray[np.int64],
    margin: float | None,
) -> SourceDifference:
    """`own`: which documents are of this source, (N,)."""
    ours, size = challenger[own], int(sizes[own].sum())
    result = SourceDifference(
        source=name,
        documents=int(own.sum()),
        val_bpb=bits_per_byte(float(ours.sum()), size),
        margin=margin,
    )
    if champion is None:
        return result
    theirs = champion[own]
    difference, low, high = paired_interval(ours, theirs, sizes[own])
    measured: dict[str, float] = {
        "champion_bpb": bits_per_byte(float(theirs.sum()), size), "difference": difference,
    }  # fmt: skip
    if result.documents >= MIN_DOCUMENTS:
        measured |= {"low": low, "high": high}
    return result.model_copy(update=measured)


def worse_sources(compared: Sequence[SourceDifference]) -> list[str]:
    """What speaks against a challenger: a source on which it may be worse than by its margin."""
    return [
        f"on the source {each.source} it may be worse than the champion by more than the margin "
        f"{each.margin:g}: {each.figures}"
        for each in compared
        if each.margin is not None
        and each.difference is not None
        and (each.high is None or each.high >= each.margin)
    ]
