import pytest

from slm.evaluation.text_quality import Quality, loops, measure, repetition, words
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
def test_a_phrase_said_again_and_again_is_a_loop(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    ["", "a", "She was very, very, very happy.", "ha ha ha", "Row, row, row your boat.", *STORIES],
)
def test_stories_and_emphasis_are_no_loops(text: str) -> None:
    assert not loops(text)


def test_repetition_counts_what_came_before() -> None:
    assert repetition(["a", "b", "c", "d", "e", "f", "g"]) == 0
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repetition([]) == 0


def test_figures_tell_stories_from_what_is_broken() -> None:
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
    again = measure(["There was a girl named Lily. Lily met a boy called Tom."], set())
    assert again.names == 0.5
    nobody = measure(["there was a cat. It slept."], set())
    assert nobody.names is None
    assert Quality.mean([again, nobody]).names == 0.5
    assert Quality.mean([nobody]).names is None


def test_texts_without_words() -> None:
    for texts in ([], [""], ["", "?!"]):
        figures = measure(texts, set())
        assert (figures.loops, figures.repeated, figures.unknown) == (0, 0, 0)
