"""Cleaning: what is repaired, what is dropped, and that both are counted."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import CleanConfig
from slm.source.stories import story
from slm.tokens.cleaning import (
    ALSO_IN_TRAIN,
    ALSO_IN_VAL,
    DUPLICATE,
    EMPTY,
    EXAMPLE_CHARS,
    FIXED,
    NEAR_DUPLICATE,
    TOO_LONG,
    TOO_SHORT,
    Duplicates,
    HashSet,
    Tally,
    clean,
    document_hash,
    signature,
)


def _hashes(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(document_hash(text.encode()) for text in texts), "<u8")


def _reasons(settings: CleanConfig, texts: list[str], val: list[bool]) -> list[str]:
    signatures = np.array([signature(text) for text in texts])
    places = np.arange(len(texts), dtype=np.uint32)
    return Duplicates(settings).decide(_hashes(texts), signatures, np.array(val), places)[0]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_by_default_every_text_with_something_in_it_stays_as_it_is(text: str) -> None:
    tally = Tally()
    kept = clean(text, CleanConfig(), tally)
    if text.strip():
        assert kept == text
        assert tally == Tally()
    else:
        assert kept is None
        assert tally.dropped[EMPTY]["documents"] == 1


def test_lengths_are_bounded_and_counted() -> None:
    settings, tally = CleanConfig(min_chars=3, max_chars=5), Tally()
    kept = [clean(text, settings, tally) for text in ("ab", "abc", "abcde", "abcdef", "", "\n")]
    assert kept == [None, "abc", "abcde", None, None, None]
    counts = {reason: entry["documents"] for reason, entry in tally.dropped.items()}
    assert counts == {TOO_SHORT: 1, TOO_LONG: 1, EMPTY: 2}


def test_mojibake_is_repaired_and_nothing_else() -> None:
    settings, tally = CleanConfig(fix_text=True), Tally()
    assert clean("It’s schön", settings, tally) == "It’s schön"
    assert clean("schÃ¶n", settings, tally) == "schön"
    assert clean("e\u0301", settings, tally) == "é"
    untouched = "a\0b \ufb01 “quotes” &amp; <b>\r\nend \x1b[0m"
    assert clean(untouched, settings, tally) == untouched
    assert tally.changed[FIXED]["documents"] == 2
    assert tally.changed[FIXED]["examples"][0] == ["schÃ¶n", "schön"]


def test_examples_are_few_and_short_and_json() -> None:
    tally = Tally()
    for i in range(10):
        tally.drop(TOO_LONG, f"{i} " + "x" * 10_000)
    other = Tally()
    other.drop(TOO_LONG, "y")
    tally.add(other)
    entry = json.loads(json.dumps(tally.dropped))[TOO_LONG]
    assert entry["documents"] == 11
    assert [example[0] for example in entry["examples"]] == ["0", "1", "2"]
    assert max(map(len, entry["examples"])) <= EXAMPLE_CHARS


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=12))
def test_a_set_of_hashes_is_a_set(batches: list[list[int]]) -> None:
    seen: set[int] = set()
    hash_set = HashSet()
    for batch in batches:
        hashes = np.array(batch, np.uint64)
        assert hash_set.contains(hashes).tolist() == [value in seen for value in batch]
        expected = []
        for value in batch:
            expected.append(value not in seen)
            seen.add(value)
        assert hash_set.add(hashes).tolist() == expected
    assert len(hash_set.levels) <= 8


def test_documents_of_val_are_dropped_from_train_and_no_others() -> None:
    texts, val = ["a", "b", "a", "c", "c"], [True, True, False, False, False]
    assert _reasons(CleanConfig(), texts, val) == ["", "", ALSO_IN_VAL, "", ""]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.integers(1, 12))
def test_no_document_is_in_both_splits_however_the_batches_are_cut(
    drawn: list[tuple[int, bool]], size: int
) -> None:
    hashes = np.array([number for number, _ in drawn], np.uint64)
    val = np.array([is_val for _, is_val in drawn], bool)
    signatures = np.empty((len(drawn), 0), np.uint32)
    duplicates = Duplicates(CleanConfig(fix_text=True))
    reasons = []
    for i in range(0, len(drawn), size):
        batch = slice(i, i + size)
        places = np.arange(len(drawn), dtype=np.uint32)[batch]
        reasons += duplicates.decide(hashes[batch], signatures[batch], val[batch], places)[0]
    first: dict[int, bool] = {}
    for (number, is_val), reason in zip(drawn, reasons, strict=True):
        crosses = first.setdefault(number, is_val) != is_val
        assert reason == ("" if not crosses else ALSO_IN_TRAIN if is_val else ALSO_IN_VAL)


def test_everywhere_only_the_first_of_equals_stays() -> None:
    settings = CleanConfig(exact_duplicates="everywhere")
    texts, val = ["a", "a", "a", "c", "c"], [True, True, False, False, False]
    expected = ["", DUPLICATE, ALSO_IN_VAL, "", DUPLICATE]
    assert _reasons(settings, texts, val) == expected


def test_duplicates_are_found_across_batches() -> None:
    duplicates = Duplicates(CleanConfig(exact_duplicates="everywhere"))
    none = np.empty((2, 0), np.uint32)
    train = np.zeros(2, bool)
    rows = np.array([3, 4], np.uint32)
    assert duplicates.decide(_hashes(["a", "b"]), none, train, rows) == (["", ""], [-1, -1])
    later = duplicates.decide(_hashes(["c", "a"]), none, train, rows + 2)
    assert later == (["", DUPLICATE], [-1, 3])


def test_near_duplicates_are_those_that_share_most_of_their_words() -> None:
    first, other = story(1, 0), story(1, 1)
    texts = [first, other, first + " The end.", first.upper(), story(1, 2)]
    reasons = _reasons(CleanConfig(near_duplicates=0.8), texts, [False] * 5)
    assert reasons == ["", "", NEAR_DUPLICATE, NEAR_DUPLICATE, ""]
    assert _reasons(CleanConfig(near_duplicates=1.0), texts[:3], [False] * 3) == ["", "", ""]


@pytest.mark.parametrize("text", ["", "one", "one two three four five"])
def test_short_texts_have_a_signature(text: str) -> None:
    assert signature(text).tolist() == signature(text.upper()).tolist()
