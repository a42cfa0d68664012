"""Verbatim runs, repetition and broken texts, against plain implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm import vetoes


def contains(train: list[int], window: list[int]) -> bool:
    n = len(window)
    return any(train[i : i + n] == window for i in range(len(train) - n + 1))


def plain_longest(text: list[int], train: list[int]) -> int:
    lengths = [
        n
        for n in vetoes.RUNS
        if any(contains(train, text[i : i + n]) for i in range(len(text) - n + 1))
    ]
    return max(lengths, default=0)


ids = st.lists(st.integers(0, 2), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(ids, min_size=1, max_size=4), ids, st.integers(1, 7))
def test_longest_runs_are_those_of_a_plain_search(
    texts: list[list[int]], train: list[int], window: int
) -> None:
    arrays = [np.array(text, np.int64) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vetoes, "WINDOW", window)  # so that runs cross from one chunk to the next
        found = vetoes.longest_runs(arrays, [np.array(train, np.int64)], 3)
    assert found == [plain_longest(text, train) for text in texts]


def test_a_copied_passage_is_found_in_a_large_shard() -> None:
    draws = np.random.default_rng(0)
    train = draws.integers(0, 4096, 2_500_000).astype(np.uint16)
    seam = vetoes.WINDOW - 50  # across the seam of two chunks
    texts = [train[seam : seam + 100], draws.integers(0, 4096, 100).astype(np.uint16)]
    assert vetoes.longest_runs(texts, [train], 4096) == [64, 0]


def test_a_model_that_copies_stands_out_from_human_text() -> None:
    human = [8] * 95 + [16] * 5
    assert vetoes.memorised_share([128, 128, 8, 8], human) == 0.5
    assert vetoes.memorised_share(human, human) <= 0.05
    assert vetoes.memorised_share([64] * 10, [64] * 10) == 0  # templates are no memorisation


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Once upon a time there was a girl named Lucy.", None),
        ("", "empty"),
        (" \n ", "empty"),
        ("a \ufffd b", "invalid"),
        ("a dog and " * 10, "repetitive"),
    ],
)
def test_broken_texts_are_named(text: str, why: str | None) -> None:
    words = [hash(word) for word in text.split()]
    assert vetoes.degenerate(text, np.array(words, np.int64)) == why
