"""Two trainings compared bit for bit: what they measured, and the tensors that they saved."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from slm.records import Frozen, JournalEntry
from slm.storage import sha256_json

Measurement = tuple[int, str, str]  # step, name, the exact value
COMPARED = {"step": ("train_loss", "grad_norm"), "evaluate": ("val_loss",)}  # of a journal's events


class Compared(Frozen):
    """Something recorded, and the same rebuilt."""

    name: str
    recorded: str
    rebuilt: str

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt


class Difference(Frozen):
    """Where the two first differ, or what is missing to rebuild the run."""

    what: str  # a link of the lineage, or what was compared
    step: int | None = None  # of the training; 0: before it
    tensor: str | None = None  # the first one that differs, in the model's order
    recorded: str | None = None
    rebuilt: str | None = None


class Comparisons:
    """What was compared so far, and where the two first differ."""

    def __init__(self) -> None:
        self.rows: list[Compared] = []
        self.first: Difference | None = None

    def add(self, name: str, recorded: str | None, rebuilt: str | None, step: int = 0) -> bool:
        """Compare two values; return whether they are the same.

        What was never recorded is not compared.
        """
        if recorded is None:
            return True
        row = Compared(name=name, recorded=recorded, rebuilt=rebuilt or "missing")
        self.rows.append(row)
        if not row.same and self.first is None:
            self.first = Difference(what=name, step=step, recorded=recorded, rebuilt=row.rebuilt)
        return row.same

    def add_journals(
        self, name: str, recorded: Iterable[JournalEntry], rebuilt: Iterable[JournalEntry]
    ) -> None:
        """Compare all measurements; where they differ, `first` is the first step that does.

        [(1, "train_loss", a), (2, "train_loss", b)] and [(1, "train_loss", a)] differ at step 2,
        where the second has none.
        """
        old, new = list(measurements(recorded)), list(measurements(rebuilt))
        pair = next((pair for pair in zip_longest(old, new) if pair[0] != pair[1]), None)
        if pair and self.first is None:
            step, what, _ = pair[0] or pair[1]
            before, after = (measurement and measurement[2] for measurement in pair)
            self.first = Difference(what=what, step=step, recorded=before, rebuilt=after)
        hashes = [sha256_json(each) for each in (old, new)]
        self.add(f"{name}: {len(old)} losses and gradient norms", hashes[0], hashes[1])


# ---- figures and tensors ----------------------------------------------------------------------


def exact(value: float | None) -> str:
    """All bits of a figure as text; "none" where it is not finite, which is null in journals."""
    return "none" if value is None or not math.isfinite(value) else float(value).hex()


def measurements(journal: Iterable[JournalEntry]) -> Iterator[Measurement]:
    """Everything in a journal that a training of the same bits repeats."""
    for entry in journal:
        figures: Mapping[str, Any] = entry
        for name in COMPARED.get(entry["event"], ()):
            if name in figures:
                yield entry["step"], name, exact(figures[name])


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that has other bits."""

    step: int
    name: str  # of the weight, or <weight>/<state> of the optimizer
    largest: float | None  # absolute difference; None: missing, of another shape, or not finite


def tensor_differences(
    step: int, recorded: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor]
) -> list[TensorDifference]:
    """The tensors that differ, in the order of `rebuilt`; those that it lacks come last."""
    return [
        TensorDifference(step, name, _largest_difference(recorded.get(name), rebuilt.get(name)))
        for name in dict.fromkeys((*rebuilt, *recorded))
        if not _is_same(recorded.get(name), rebuilt.get(name))
    ]


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether the bits are the same: 0.0 and -0.0 differ, and a NaN is the same as itself."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _largest_difference(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    largest = float((a.double() - b.double()).abs().max())
    return largest if math.isfinite(largest) else None
