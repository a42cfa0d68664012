"""The worked examples in the docstrings of array code are right."""

import doctest
import importlib

import pytest

MODULES = (
    "slm.evaluation.duplicates",
    "slm.evaluation.memorisation",
    "slm.evaluation.ngrams",
    "slm.evaluation.rolling_hash",
    "slm.evaluation.scoring",
    "slm.model.int8",
    "slm.model.gpt",
    "slm.model.loss",
    "slm.model.batch",
    "slm.model.next_token",
    "slm.project.fit",
    "slm.tokens.cleaning",
    "slm.tokens.loader",
    "slm.tokens.mixture.order",
    "slm.tokens.permutation",
    "slm.tokens.tokenizer.lookup",
    "slm.tokens.tokenizer.pretokenize",
    "slm.tokens.tokenizer.trimming",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
