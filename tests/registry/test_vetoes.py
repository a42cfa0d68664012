"""Broken texts are told from human ones."""

import numpy as np
import pytest

from slm.registry import vetoes


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
