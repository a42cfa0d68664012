"""The minimal pairs of the stories: always the same, balanced, and none of the stories' text."""

import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from slm.evaluation.benchmark.pairs import PAIRS_PER_PARADIGM, Pair, story_pairs
from slm.source.stories import stories
from slm.storage import sha256_json

SHA256 = "80e21768798f821819f6cecda4fec49cd5a98cead7d6b619ad8966c5d228c566"
MIN_PARADIGMS = 8


def by_paradigm() -> dict[str, list[Pair]]:
    pairs = defaultdict(list)
    for pair in story_pairs():
        pairs[pair.paradigm].append(pair)
    return pairs


def words(texts: list[str]) -> Counter[str]:
    return Counter(word for text in texts for word in re.findall(r"\w+", text))


def test_they_never_change() -> None:
    """A score is of these pairs: others need another name of the task."""
    assert sha256_json(story_pairs()) == SHA256


def test_a_few_hundred_of_each_paradigm() -> None:
    pairs = by_paradigm()
    assert len(pairs) >= MIN_PARADIGMS
    for group in pairs.values():
        assert len({pair.good for pair in group}) == len(group) == PAIRS_PER_PARADIGM
        assert all(pair.good != pair.bad for pair in group)
    rights, wrongs = ({pair[i] for pair in story_pairs()} for i in (1, 2))
    assert not rights & wrongs


def test_every_template_was_filled() -> None:
    assert not any(re.search(r"[<>()/{}\[\]|]", pair.good + pair.bad) for pair in story_pairs())


def test_the_frequency_of_words_decides_nothing() -> None:
    """Each word is in as many right sentences of a paradigm as wrong ones."""
    for group in by_paradigm().values():
        assert words([pair.good for pair in group]) == words([pair.bad for pair in group])


def test_each_pair_is_one_change() -> None:
    """What two sentences differ in is a word or two; of `who did what` it is their order."""
    for paradigm, group in by_paradigm().items():
        for pair in group:
            good, bad = words([pair.good]), words([pair.bad])
            if paradigm == "who did what":
                assert good == bad
            else:
                assert 1 <= max((good - bad).total(), (bad - good).total()) <= 3


@pytest.mark.parametrize(
    "count", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_none_is_in_the_training_text(count: int) -> None:
    """Of 20,000 stories, those of `quickstart`: no story has the text of a pair."""
    texts = {text for pair in story_pairs() for text in (pair.good, pair.bad)}
    for story in stories(0, 0, count):
        sentences = re.split(r'(?<=[.!?])"?\s+', story)
        pieces = {*sentences, *map(" ".join, pairwise(sentences))}
        assert not pieces & texts


def test_the_right_sentences_have_the_right_article() -> None:
    texts = [pair.good for pair in story_pairs()]
    texts += [pair.bad for pair in story_pairs() if pair.paradigm != "article"]
    assert not [text for text in texts if re.search(r"(?i)\b(a [aeiou]|an [^aeiou])", text)]
