"""Drift: what of a dataset is new, gone or changed, counted exactly; and how languages differ."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slm.errors import CorruptionError
from slm.records import Source, SourceSplit
from slm.retraining import drift

COUNTS = arrays.arrays(np.int64, 8, elements=st.integers(0, 1000)).filter(np.any)
LONG = " ".join(f"word{i}" for i in range(100))


def source(folder: Path, texts: list[str], files: int = 2) -> Source:
    """A source of these documents, cut into files."""
    folder.mkdir(parents=True)
    names = []
    for i in range(files):
        part = texts[i * len(texts) // files : (i + 1) * len(texts) // files]
        names.append(f"train_{i:05d}.parquet")
        pq.write_table(pa.table({"text": pa.array(part, pa.string())}), folder / names[-1])
    split = SourceSplit(files=names, documents=len(texts), bytes=0)
    return Source(key="k", path=folder, dataset="d", revision="r", splits={"train": split})


def compared(folder: Path, before: list[str], now: list[str]) -> tuple[int, int, int]:
    """(new, gone, changed)"""
    then, later = source(folder / "before", before), source(folder / "now", now)
    changes, sample = drift.compare(then, later, 100)
    assert (changes.before, changes.now) == (len(before), len(now))
    assert set(sample) == set(now) - set(before)
    return changes.new, changes.gone, changes.changed


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (["a", "b"], ["b", "a"], (0, 0, 0)),
        (["a", "b"], ["a", "b", "c", "d"], (2, 0, 0)),
        (["a", "a", "b"], ["a"], (0, 1, 0)),
        (["a"], ["a", "a", "a"], (0, 0, 0)),  # a copy is not new
        (["a"], ["b", "b", "c"], (3, 1, 0)),
        (["b", "b", "c"], ["a"], (1, 3, 0)),
        ([LONG, "x"], [LONG + " and more", "x"], (0, 0, 1)),
        ([LONG, "x"], ["Before: " + LONG, "x", "y"], (1, 0, 1)),
        ([LONG], [LONG + " one", LONG + " two"], (1, 0, 1)),  # each serves once
        ([LONG + " one", LONG + " two"], [LONG], (0, 1, 1)),
    ],
)
def test_documents_are_counted_by_their_text(
    tmp_path: Path, before: list[str], now: list[str], expected: tuple[int, int, int]
) -> None:
    assert compared(tmp_path, before, now) == expected


def test_the_sample_depends_on_the_texts_alone(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(50)]
    before = source(tmp_path / "before", ["old"])
    one = drift.compare(before, source(tmp_path / "a", texts, files=1), 10)[1]
    other = drift.compare(before, source(tmp_path / "b", texts[::-1] * 2, files=3), 10)[1]
    assert one == other
    assert len(set(one)) == 10


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    made = source(tmp_path / "a", ["x", "y"])
    (made.path / "train_00001.parquet").write_bytes(b"PAR1 not any more")
    with pytest.raises(CorruptionError, match=r"train_00001\.parquet"):
        drift.compare(made, made, 1)


@given(COUNTS, COUNTS)
def test_the_divergence_is_symmetric_and_within_a_bit(p: drift.Counts, q: drift.Counts) -> None:
    bits = drift.divergence(p, q)
    assert bits == pytest.approx(drift.divergence(q, p))
    assert 0 <= bits <= 1 + 1e-12


@given(COUNTS, st.integers(1, 9))
def test_proportional_counts_do_not_diverge(p: drift.Counts, times: int) -> None:
    assert drift.divergence(p, times * p) == pytest.approx(0, abs=1e-12)


def test_the_divergence_of_what_has_nothing_in_common_is_a_bit() -> None:
    assert drift.divergence(np.array([3, 1, 0, 0]), np.array([0, 0, 2, 5])) == 1
    half = drift.divergence(np.array([1, 0]), np.array([1, 1]))
    assert half == pytest.approx(1 - 0.75 * np.log2(3) + 0.5)  # by hand
