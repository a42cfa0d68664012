import hashlib
import re
from collections.abc import Iterator

import pytest

from slm.source.stories import (
    STORIES_VERSION,
    Choice,
    Draws,
    Grammar,
    Slot,
    Storyteller,
    Template,
    stories,
    story,
    story_grammar,
)

GOLDEN = {
    "version": 1,
    "sha256": "200058ab75659c29d34731b0d143805fc22b29199c92463e060b1ffa255cfda8",
}


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(stories(0, 0, 20_000))


def test_first_thousand_stories_are_golden(many: list[str]) -> None:
    """When this fails on purpose, bump STORIES_VERSION and write the new hash next to it."""
    digest = hashlib.sha256("\x00".join(many[:1000]).encode()).hexdigest()
    assert {"version": STORIES_VERSION, "sha256": digest} == GOLDEN


def test_story_is_a_pure_function_of_seed_and_index(many: list[str]) -> None:
    backwards = [story(0, index) for index in reversed(range(300))]
    assert backwards[::-1] == many[:300]
    assert list(stories(0, 120, 125)) == many[120:125]
    assert list(stories(0, 5, 5)) == []


def test_seeds_give_different_collections(many: list[str]) -> None:
    assert not set(many) & set(stories(1, 0, 2000))
    assert not set(many) & set(stories(-1, 0, 2000))


def test_no_story_comes_twice(many: list[str]) -> None:
    assert len(set(many)) == len(many)


def test_vocabulary_and_length(many: list[str]) -> None:
    words = {word for text in many[:3000] for word in re.findall(r"[a-z]+", text.lower())}
    assert len(words) >= 1500
    lengths = sorted(len(text.split()) for text in many)
    assert lengths[len(lengths) // 100] >= 100
    assert lengths[-len(lengths) // 100] <= 250


def test_sample_prompt_occurs(many: list[str]) -> None:
    assert sum(text.startswith("A little girl went to the woods") for text in many) >= 10
    assert sum(text.startswith("A little girl went to the ") for text in many) >= 100


def test_text_is_clean(many: list[str]) -> None:
    for text in many:
        assert re.fullmatch(r"[ -~\n]+", text), text
        assert not re.search(r"[\[\]{}|;_]", text), text
        assert not re.search(r"  | \n|\n |\n{3}|(?<!\n)\n(?!\n)| [.,!?]|\.\.|[!?]\.|,,", text), text
        assert text[-1] in '.!?"', text


def test_quotes_open_and_close_within_a_paragraph(many: list[str]) -> None:
    for paragraph in "\n\n".join(many).split("\n\n"):
        for number, part in enumerate(paragraph.split('"')[:-1]):
            inside = number % 2 == 1
            assert not part or part[-1] in (",.!?" if inside else " "), paragraph
        assert paragraph.count('"') % 2 == 0, paragraph


def test_sentences_start_with_a_capital(many: list[str]) -> None:
    for paragraph in "\n\n".join(many).split("\n\n"):
        parts = paragraph.split('"')
        for part in parts:
            assert not re.search(r"[.!?] [a-z]", part), paragraph
        for before, narration in zip(parts[1::2], parts[2::2], strict=False):
            assert not (before[-1] == "." and re.match(r" [a-z]", narration)), paragraph
            assert not (
                before[-1] == "," and re.match(r" [A-Z]", narration) and _is_pronoun(narration)
            )
        assert not paragraph[0].islower(), paragraph


def _is_pronoun(narration: str) -> bool:
    return re.match(r" (He|She|His|Her|They|The|A|An)\b", narration) is not None


def test_articles_agree(many: list[str]) -> None:
    wrong = re.compile(r"\b([Aa] [aeiou]\w*|[Aa]n [^aeiou\W]\w*)")
    assert {match[0] for text in many for match in wrong.finditer(text)} == set()


def test_no_word_is_doubled(many: list[str]) -> None:
    doubled = {m[0] for text in many for m in re.finditer(r"\b(\w+) \1\b", text)}
    assert doubled == set()


def test_hero_stays_through_the_story() -> None:
    for index in range(2000):
        teller = Storyteller(story_grammar(), Draws(0, index))
        text = teller.tell()
        name = teller.slots["name"]
        assert text.count(name) >= 2, text
        later = text[len(text) // 2 :]
        assert name in later or teller.slots["kind"] in later or teller.slots["he"] in later, text
        assert teller.slots["pal"] != name


def test_every_key_of_every_template_is_known() -> None:
    """Rare rows and alternatives too, which no sampled story may have used."""
    grammar = story_grammar()
    teller = Storyteller(grammar, Draws(0, 0))
    teller.tell()
    common = {key for key in teller.slots if key not in _columns(grammar)}
    for rule in grammar.rules.values():
        for template in rule:
            assert set(_keys(template)) <= common | grammar.rules.keys()
    for plot in grammar.plots:
        known = common | grammar.rules.keys() | set(plot.columns[2:])
        for row in plot.rows:
            assert len(row) == len(plot.columns), plot.name
            assert {key for cell in row for key in _keys(cell)} <= known, plot.name
        for beat in (beat for paragraph in plot.paragraphs for beat in paragraph):
            for template in beat.alternatives:
                assert set(_keys(template)) <= known, (plot.name, template)


def test_every_hero_and_place_of_the_rows_has_its_rules() -> None:
    grammar = story_grammar()
    for plot in grammar.plots:
        assert f"open {plot.opening}" in grammar.rules
        for heroes, places in (row[:2] for row in plot.rows):
            for hero in str(heroes[0]).split():
                assert f"hero {hero}" in grammar.rules, plot.name
            for place in str(places[0]).split():
                assert f"place {place}" in grammar.rules, plot.name


def _columns(grammar: Grammar) -> set[str]:
    return {column for plot in grammar.plots for column in plot.columns[2:]}


def _keys(template: Template) -> Iterator[str]:
    for node in template:
        if isinstance(node, Slot):
            yield node.key
        elif isinstance(node, Choice):
            for part in node.parts:
                yield from _keys(part)
