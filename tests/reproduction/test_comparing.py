"""Comparing: bits, not values; what has no number is compared all the same."""

import math

import torch

from slm.records import JournalEntry
from slm.reproduction.comparing import (
    Comparisons,
    TensorDifference,
    measurements,
    tensor_differences,
)


def step(number: int, loss: float | None, norm: float | None) -> JournalEntry:
    return {"event": "step", "time": 0.0, "step": number, "train_loss": loss, "grad_norm": norm}  # type: ignore[typeddict-item]


def test_figures_that_are_not_finite_are_compared_as_none() -> None:
    """A norm that overflowed is null in a journal, and was Infinity in older ones."""
    now = list(measurements([step(1, 2.0, None), step(2, None, 1.0)]))
    assert [value for _, _, value in now] == [(2.0).hex(), "none", "none", (1.0).hex()]
    assert now == list(measurements([step(1, 2.0, math.inf), step(2, None, 1.0)]))


def test_times_and_speed_are_not_compared() -> None:
    entries: list[JournalEntry] = [
        {"event": "step", "time": 1.0, "step": 1, "train_loss": 2.0, "tok_per_sec": 5.0},
        {"event": "evaluate", "time": 2.0, "step": 1, "val_loss": 3.0, "val_bpb": 1.0},
        {"event": "end", "time": 3.0},
    ]
    assert [(name, step) for step, name, _ in measurements(entries)] == [
        ("train_loss", 1),
        ("val_loss", 1),
    ]


def test_journals_that_differ_name_the_step() -> None:
    compared = Comparisons()
    compared.add("key", None, "never recorded")
    compared.add_journals("journal", [step(1, 2.0, 1.0)], [step(1, 2.0, 1.5)])
    assert [row.same for row in compared.rows] == [False]
    assert compared.first is not None
    assert (compared.first.what, compared.first.step) == ("grad_norm", 1)


def test_a_journal_that_has_more_differs_where_the_other_ends() -> None:
    compared = Comparisons()
    both = [step(1, 2.0, 1.0), step(2, 1.0, 1.0)]
    compared.add_journals("journal", both, both[:1])
    assert compared.first is not None
    assert (compared.first.step, compared.first.recorded) == (2, (1.0).hex())
    assert compared.first.rebuilt is None


def test_tensors_differ_by_their_bits() -> None:
    same = {"a": torch.tensor([math.nan, 1.0])}
    assert tensor_differences(3, same, {"a": same["a"].clone()}) == []
    recorded = {
        "zero": torch.tensor([0.0]),
        "far": torch.tensor([1.0, 2.0]),
        "nan": torch.tensor([1.0]),
        "gone": torch.tensor([1.0]),
    }
    rebuilt = {
        "far": torch.tensor([1.0, 2.5]),
        "zero": torch.tensor([-0.0]),
        "nan": torch.tensor([math.nan]),
    }
    assert tensor_differences(3, recorded, rebuilt) == [
        TensorDifference(3, "far", 0.5),
        TensorDifference(3, "zero", 0.0),
        TensorDifference(3, "nan", None),
        TensorDifference(3, "gone", None),
    ]
