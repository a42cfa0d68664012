import random

import pytest

from slm.evaluation.grammar import ungrammatical
from slm.source.stories import stories

STORIES = list(stories(1, 0, 10))


@pytest.mark.parametrize(
    "sentence",
    ["She saw a apple.", "He sat on the the chair.", "They wanted play with the ball.",
     "The dog wagged it's tail."],
)  # fmt: skip
def test_a_fault_is_detected(sentence: str) -> None:
    assert ungrammatical([sentence]) == 1
    assert ungrammatical([f"The cat slept. {sentence}"]) == 0.5


def test_style_spelling_and_names_do_not_count() -> None:
    sentences = "Zorbly was very, very happy. ok, said tom! A cat and a dog, both grumped."
    assert ungrammatical([sentences]) == 0


def test_words_in_disorder_have_more_faults_than_stories() -> None:
    disorder = random.Random(0)
    shuffled = []
    for story in STORIES:
        words = story.split()
        disorder.shuffle(words)
        shuffled.append(" ".join(words))
    assert ungrammatical(STORIES) < 0.02
    assert ungrammatical(shuffled) > 0.08


@pytest.mark.parametrize("text", ["", "  ", "?!...", "\ufffd\0\x85", "(" * 500, "🙂" * 50])
def test_texts_without_sentences(text: str) -> None:
    assert ungrammatical([text]) == 0
    assert ungrammatical([]) == 0
