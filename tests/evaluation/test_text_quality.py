import numpy as np
import pytest

from slm.evaluation.text_quality import Quality, degenerate, loops, measure, repetition, words
from slm.source.stories import stories

STORIES = list(stories(1, 0, 20))
KNOWN = {word for text in stories(1, 20, 400) for word in words(text)}


@pytest.mark.parametrize(
    "text",
    [
        "She said no. " + "The cat sat. " * 3,
        "and then and then and then and then and then",
        "He was very very very very very very very very happy",
        "aaaaaaaaaaaaaaaaaaaaaaaaa",
        "....................",
        "\ufffd" * 30,
    ],
)
def test_a_phrase_repeated_over_and_over_is_a_loop(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    ["", "a", "She was very, very, very happy.", "ha ha ha", "Row, row, row your boat.", *STORIES],
)
def test_stories_and_emphasis_are_no_loops(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Once upon a time there was a girl named Lucy.", None),
        ("", "empty"),
        (" \n ", "empty"),
        ("a \ufffd b", "invalid"),
        ("a dog and " * 10, "repetitive"),
        ("Once\n" + " \n\n  " * 20 + "there", "blank"),
        ("\n".join(f"        value_{i} = {i}" for i in range(9)), None),  # indented code
    ],
)
def test_degenerate_texts_are_named(text: str, why: str | None) -> None:
    ids = [hash(word) for word in text.split()]
    assert degenerate(text, np.array(ids, np.int64)) == why


def test_repetition_counts_what_occurred_before() -> None:
    assert repetition(["a", "b", "c", "d", "e", "f", "g"]) == 0
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repetition([]) == 0


def test_figures_separate_stories_from_broken_texts() -> None:
    human = measure(STORIES, KNOWN)
    assert human.loops == 0
    assert human.unknown < 0.05
    same = measure([STORIES[0]] * 20, KNOWN)
    assert same.likeness == 1
    assert same.distinct < human.distinct / 3
    nonsense = measure(["the blorf mixted a dornly woopse"] * 2, KNOWN)
    assert nonsense.unknown > 0.5
    assert measure(["the cat and the dog " * 20], KNOWN).loops == 1


def test_names_are_those_with_a_capital_within_a_sentence() -> None:
    half = measure(["There was a girl named Lily. Lily met a boy called Tom."], set())
    assert half.names == 0.5
    nobody = measure(["there was a cat. It slept."], set())
    assert nobody.names is None
    assert Quality.mean([half, nobody]).names == 0.5
    assert Quality.mean([nobody]).names is None


def test_texts_without_words() -> None:
    for texts in ([], [""], ["", "?!"]):
        figures = measure(texts, set())
        assert (figures.loops, figures.repeated, figures.unknown) == (0, 0, 0)
