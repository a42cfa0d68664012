"""The worked examples in docstrings are right."""

import doctest
import importlib

import pytest

MODULES = [
    "cleaning",
    "loader",
    "tokenizer.lookup",
    "tokenizer.pretokenize",
    "tokenizer.trimming",
]


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"slm.tokens.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
