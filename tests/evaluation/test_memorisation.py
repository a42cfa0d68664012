from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.evaluation import memorisation
from slm.evaluation.memorisation import (
    MIN_COPY,
    Copy,
    blank_ids,
    longest_copies,
    memorised_share,
)
from slm.tokens.tokenizer.bpe import Tokenizer

VOCAB_SIZE = 50


def brute_force(text: np.ndarray, shards: list[np.ndarray]) -> Copy:
    """The longest copied span, by a search for every span."""
    for length in range(len(text), MIN_COPY - 1, -1):
        for start in range(len(text) - length + 1):
            span = bytes(text[start : start + length].astype(np.uint8))
            if any(span in bytes(shard.astype(np.uint8)) for shard in shards):
                return Copy(start, length)
    return Copy(0, 0)


ids = st.lists(st.integers(0, 2), max_size=40).map(lambda tokens: np.array(tokens, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(ids, max_size=4), shards=st.lists(ids, max_size=3), window=st.integers(1, 30))
def test_it_finds_what_brute_force_finds(
    texts: list[np.ndarray], shards: list[np.ndarray], window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorisation, "WINDOW", window)
        copies = longest_copies(texts, shards, VOCAB_SIZE)
    assert copies == [brute_force(text, shards) for text in texts]


def test_no_copied_span_crosses_an_end_of_text() -> None:
    eot = VOCAB_SIZE - 1
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, eot, 30) for _ in range(5)]
    train = np.concatenate([part for d in documents for part in ([eot], d)]).astype(np.uint16)
    text = np.concatenate(documents)
    nothing = np.array([])
    copy, empty = longest_copies([text, nothing], [train], VOCAB_SIZE)
    assert (copy, empty) == (Copy(0, 30), Copy(0, 0))
    edges = [np.concatenate((a[-6:], b[:6])) for a, b in pairwise(documents)]
    assert all(copy.length == 0 for copy in longest_copies(edges, [train], VOCAB_SIZE))


def test_runs_of_blanks_are_nobodys_text() -> None:
    blanks, words = np.zeros(100, np.int64), np.arange(1, 13)
    train = np.concatenate((blanks, words, blanks))
    texts = [blanks, np.concatenate((blanks, words, blanks)), words]
    assert longest_copies(texts, [train], VOCAB_SIZE, blank={0}) == [
        Copy(0, 0),
        Copy(100, 12),
        Copy(0, 12),
    ]
    few = np.concatenate((words[:5], blanks[: MIN_COPY - 1], words[:5]))  # a few are layout
    (copy,) = longest_copies([few], [few], VOCAB_SIZE, blank={0})
    assert copy == Copy(0, len(few))


def test_blanks_are_the_tokens_of_white_space_alone() -> None:
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)] + [b" \n", b" a"])
    text = np.array([ord("a"), ord(" "), 256, 257, ord("\t")])
    assert blank_ids(tokenizer, [text, text[:1]]) == {ord(" "), ord("\t"), 256}


def test_a_model_that_copies_stands_out_from_human_text() -> None:
    human = [8] * 95 + [16] * 5
    assert memorised_share([128, 128, 8, 8], human) == 0.5
    assert memorised_share(human, human) <= 0.05
    assert memorised_share([64] * 10, [64] * 10) == 0  # templates are no memorisation


def test_a_duplicate_among_the_held_out_texts_does_not_move_the_threshold() -> None:
    human = [8] * 89 + [150]
    assert memorised_share([60, 70, 80, 9], human) == 1
    assert memorised_share([60, 70, 80, 8], [8] * 90) == 0.75
    assert memorised_share([], human) == memorised_share([], []) == 0
