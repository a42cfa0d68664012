"""The costs that `slm bench scaling` fits, and when it refuses to project one."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    module = importlib.import_module("scaling")
    monkeypatch.delitem(sys.modules, "scaling")
    return module


def points(documents: list[int], each: list[int], noise: float = 0.03) -> list[dict[str, Any]]:
    """Encodings at 2 s, 10 ns per byte and 4 µs per document."""
    rng = np.random.default_rng(1)
    made = []
    for count, size in zip(documents, each, strict=True):
        seconds = (2 + 1e-8 * count * size + 4e-6 * count) * abs(rng.normal(1, noise))
        of = {"stage": "encode", "series": "text", "documents": count, "bytes": count * size}
        also = dict.fromkeys(("own_cpu_seconds", "own_peak_bytes", "peak_bytes"), seconds)
        made.append({**of, **also, "tokens": count * size / 4, "seconds": seconds})
    return made


SIZES = [10**4, 10**5, 10**6, 10**7, 10**3, 10**4, 10**5, 10**6]
EACH = [900] * 4 + [14_400] * 4


def test_the_costs_of_a_byte_and_of_a_document_are_told_apart(scaling: ModuleType) -> None:
    curve = scaling.fit(scaling.ENCODE, points(SIZES, EACH))
    assert curve["refused"] is None
    for (low, high), true in zip(curve["intervals"], (2, 1e-8, 4e-6), strict=True):
        assert low < true * 1.1  # eight points with 3 % of noise
        assert true * 0.9 < high < 2 * true
    assert curve["error"] < 0.1


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (points([1000, 2000, 4000], [900] * 3), "3 points of 6 at least"),
        (points([10**6 + i for i in range(8)], EACH), "its documents differ by a factor of 1.0"),
        (points(SIZES, EACH, noise=0.9), "off the curve"),
        ([], "0 points of 6 at least"),
    ],
)
def test_too_few_too_near_or_scattered_points_are_not_projected(
    scaling: ModuleType, measured: list[dict[str, Any]], reason: str
) -> None:
    curves = {cost: scaling.fit(cost, measured) for cost in scaling.COSTS}
    assert reason in curves[scaling.ENCODE]["refused"]
    rows = [row for row in scaling.at_scale(curves, measured) if "cores" in row["what"]]
    assert all(row["value"] is None and reason in row["refused"] for row in rows)
    assert len(rows) == bool(measured)


def test_what_is_projected_has_an_interval_around_it(scaling: ModuleType) -> None:
    measured = points(SIZES, EACH)
    curves = {cost: scaling.fit(cost, measured) for cost in scaling.COSTS}
    [row] = [row for row in scaling.at_scale(curves, measured) if "cores" in row["what"]]
    assert row["low"] <= row["value"] <= row["high"]
    largest = max(measured, key=lambda p: p["bytes"])
    size = 1e9 * largest["bytes"] / largest["documents"]
    assert row["value"] == pytest.approx((2 + 1e-8 * size + 4e-6 * 1e9) / 3600, rel=0.15)


def test_points_that_are_measured_again_replace_their_own_alone(
    scaling: ModuleType, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0

    def measure(place: Path, plan: dict[str, Any], megabytes: list[int]) -> Any:
        for size in megabytes:
            [point] = points([size * 1000], [900])
            yield {**point, "at": size, "turn": turn}

    for name in ("text", "large"):
        monkeypatch.setitem(scaling.PARTS, name, measure)
    scaling.run(parts=["text", "large"], chosen=[1000, 40, 10], folder=tmp_path)
    turn = 1
    result = scaling.run(parts=["text"], chosen=[10, 70], folder=tmp_path)
    measured = [(point["part"], point["at"], point["turn"]) for point in result["points"]]
    assert measured == [("text", 10, 1), ("text", 40, 0), ("text", 70, 1), ("large", 1000, 0)]
    assert "| encode | text |" in (tmp_path / "scaling.md").read_text()


def test_an_exchange_is_hidden_by_no_more_than_the_last_backward_pass(scaling: ModuleType) -> None:
    for tokens in (65_536, 524_288, 4_194_304):
        computing, exchanging, hidden = scaling.step_seconds(tokens)
        assert 0 < hidden < min(computing, exchanging)
    assert hidden == pytest.approx(2 / 3 * 8192 / 448_687)  # of a pass, however many a step has
    assert exchanging == pytest.approx(8 * 124e6 * 63 / 64 / 25e9)
