"""Comparing: bits, not values; what has no number is compared all the same."""

import math

import torch

from slm.records import JournalEntry, Shards, ShardSplit, Source, SourceSplit
from slm.reproduction.comparing import (
    CLOCK,
    NOT_REPEATED,
    Comparisons,
    TensorDifference,
    columns,
    is_near,
    tensor_differences,
)


def step(number: int, loss: float | None, norm: float | None) -> JournalEntry:
    return {"event": "step", "time": 0.0, "step": number, "train_loss": loss, "grad_norm": norm}  # type: ignore[typeddict-item]


def test_figures_that_are_not_finite_are_compared_as_none() -> None:
    """A norm that overflowed is null in a journal, and was Infinity in older ones."""
    now = columns([step(1, 2.0, None), step(2, None, 1.0)])
    assert now["step.train_loss"] == [(1, "2.0"), (2, "none")]
    assert now["step.grad_norm"] == [(1, "none"), (2, "1.0")]
    assert now == columns([step(1, 2.0, math.inf), step(2, None, 1.0)])


def test_every_column_is_compared_but_those_of_the_clock_and_interruptions() -> None:
    entries: list[JournalEntry] = [
        {"event": "step", "time": 1.0, "step": 1, "lr": 2.0, "tok_per_sec": 5.0, "added": 3},  # type: ignore[typeddict-unknown-key]
        {"event": "resume", "time": 2.0, "step": 1, "parameters": 3},
        {"event": "end", "time": 3.0},
    ]
    assert list(columns(entries)) == ["step.step", "step.lr", "step.added"]
    named = set(JournalEntry.__annotations__) - {"event"} - set(CLOCK)
    whole: JournalEntry = dict.fromkeys(JournalEntry.__annotations__, 1) | {"event": "step"}  # type: ignore[assignment]
    assert {name.partition(".")[2] for name in columns([whole])} == named


def test_journals_that_differ_name_the_step() -> None:
    compared = Comparisons()
    compared.add("key", None, "never recorded")
    compared.add_journals([step(1, 2.0, 1.0)], [step(1, 2.0, 1.5)])
    assert [row.name for row in compared.differing] == ["journal.step.grad_norm of step 1"]
    assert compared.first is not None
    assert (compared.first.what, compared.first.step) == ("grad_norm", 1)


def test_a_journal_that_has_more_differs_where_the_other_ends() -> None:
    compared = Comparisons()
    both = [step(1, 2.0, 1.0), step(2, 1.0, 1.0)]
    compared.add_journals(both, both[:1])
    assert compared.first is not None
    assert (compared.first.step, compared.first.recorded) == (2, "2")
    assert compared.first.rebuilt == "missing"


def test_the_earliest_step_is_the_first_difference_whichever_column_it_is_in() -> None:
    compared = Comparisons()
    compared.add_journals(
        [step(1, 2.0, 1.0), step(2, 2.0, 1.0)], [step(1, 2.0, 1.5), step(2, 2.5, 1.0)]
    )
    assert compared.first is not None
    assert (compared.first.what, compared.first.step) == ("grad_norm", 1)


def test_what_an_older_record_lacks_is_not_compared_and_what_it_has_is() -> None:
    counts = {"documents": 3, "tokens": 9, "bytes": 8}
    split = {"files": ["a"], **counts}
    new = ShardSplit.model_validate({**split, "counts": {"a": counts}})
    source = Source(key="1", dataset="d", revision="r", splits={})
    held = SourceSplit(files=["a"], documents=3, bytes=8)
    compared = Comparisons()
    compared.add_record("shards", ShardSplit.model_validate(split), new)
    compared.add_record("source", source, source.model_copy(update={"splits": {"val": held}}))
    assert {row.name for row in compared.differing} == {
        f"source.splits.val.{name}" for name in ("files.0", "documents", "bytes")
    }
    assert "shards.counts" not in {row.name for row in compared.rows}


def test_a_field_of_many_values_is_one_row_while_they_are_the_same() -> None:
    many = {str(number): number for number in range(30)}
    shards = Shards(
        key="1", source_key="2", tokenizer_sha256="3", vocab_size=4, eot=5, splits={},
        length_histogram=many,
    )  # fmt: skip
    other = shards.model_copy(update={"length_histogram": {**many, "7": 8}})
    compared = Comparisons()
    compared.add_record("shards", shards, shards)
    assert "shards.length_histogram, 30 values" in {row.name for row in compared.rows}
    compared.add_record("shards", shards, other)
    assert [(row.name, row.recorded, row.rebuilt) for row in compared.differing] == [
        ("shards.length_histogram.7", "7", "8")
    ]


def test_what_is_not_compared_are_fields_that_exist() -> None:
    for kind, reasons in NOT_REPEATED.items():
        assert set(reasons) <= set(kind.model_fields)


def test_counts_are_never_near_and_losses_nearer_by_their_unit() -> None:
    assert is_near("run.val_bpb", "0.5", "0.509")
    assert not is_near("run.val_bpb", "0.5", "0.52")
    assert is_near("step.lr of step 3", "0.0006", "0.000601")
    assert not is_near("step.lr of step 3", "0.0006", "0.0007")
    assert not is_near("run.tokens", "1000", "1001")
    assert not is_near("run.val_bpb", "0.5", "missing")
    assert is_near("run.best", "a", "a")


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
