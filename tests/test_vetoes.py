"""Copied and broken texts are told from human ones."""

import numpy as np
import pytest

from slm.registry import vetoes


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
