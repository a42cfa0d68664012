"""The embedded corpus: short children's stories from our own grammar.

These stories are synthetic. They are put together from the word tables in ``words`` and
the plots in ``plots``, so a small model learns them quickly and reaches a low loss. That
loss shows that the pipeline works; it cannot be compared with a loss on TinyStories or on any
text that people wrote.

A story is a pure function of (seed, index): the same two numbers give the same bytes on every
platform and Python version. The choices come from splitmix64 (Steele, Lea and Flood, "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014) and not from the module ``random``,
whose methods may change between versions.

The tables are plain text, parsed once:

``rule NAME``
    alternatives follow, one per line that starts with ``- `` (an indented line continues it);
``plot NAME OPENING HELPERS``
    how the plot opens and the kinds of helper that suit it. ``cast`` names the columns of the rows
    that start with ``= ``; the first two columns name the heroes and the places that fit. ``beat``
    starts a list of alternatives, ``beat maybe`` one that is left out now and then, and
    ``paragraph`` starts a new paragraph.

In a template ``[a|b]`` picks one of its parts, ``{key}`` is the value that the story holds under
that key, or else an alternative of the rule of that name, ``{Key}`` the same with a capital letter
and ``{a key}`` the same after "a" or "an".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

from slm.source.stories.plots import PLOTS
from slm.source.stories.words import WORDS

STORIES_VERSION = 1
"""Goes up whenever a byte of any story changes."""

_MASK = (1 << 64) - 1
_PRONOUNS = {
    "he": ("he", "him", "his", "himself"),
    "she": ("she", "her", "her", "herself"),
}
_PLACE_RULES = ("scene", "errand", "spot", "nook")
_MAYBE_PERCENT = 55
_CODA_PERCENT = 25
_ONE_PARAGRAPH_PERCENT = 20

T = TypeVar("T")


class Slot(NamedTuple):
    key: str
    capital: bool
    article: bool


class Choice(NamedTuple):
    parts: "tuple[Template, ...]"


Template = tuple[str | Slot | Choice, ...]


class Beat(NamedTuple):
    alternatives: tuple[Template, ...]
    maybe: bool


@dataclass(frozen=True)
class Plot:
    name: str
    opening: str
    helpers: list[str]
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[Template, ...]] = field(default_factory=list)
    paragraphs: list[list[Beat]] = field(default_factory=list)


@dataclass(frozen=True)
class Grammar:
    rules: dict[str, tuple[Template, ...]]
    plots: tuple[Plot, ...]


def story(seed: int, index: int) -> str:
    """The story number ``index`` of the collection ``seed``: about 1 kB of printable ASCII.

    Paragraphs are separated by an empty line; there is no newline at the end. Any integers are
    accepted; they count modulo 2**64.
    """
    return Storyteller(story_grammar(), Draws(seed, index)).tell()


def stories(seed: int, start: int, stop: int) -> Iterator[str]:
    """The stories ``start`` to ``stop - 1`` of the collection ``seed``, in order."""
    for index in range(start, stop):
        yield story(seed, index)


class Draws:
    """Splitmix64, its state started from a hash of (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        self._state = _mix(_mix(seed & _MASK) + index & _MASK)

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        self._state = self._state + 0x9E3779B97F4A7C15 & _MASK
        return _mix(self._state) * n >> 64

    def pick(self, items: "list[T] | tuple[T, ...]") -> T:
        return items[self.below(len(items))]


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


class Storyteller:
    """Tells one story: casts it (``slots`` then holds every name, pronoun and thing), then
    expands the beats of its plot in order."""

    def __init__(self, grammar: Grammar, draws: Draws) -> None:
        self.grammar = grammar
        self.draws = draws
        self.slots: dict[str, str] = {}

    def tell(self) -> str:
        plot = self.draws.pick(self.grammar.plots)
        self._cast(plot)
        paragraphs = [[self.rule(f"open {plot.opening}")]]
        for number, beats in enumerate(plot.paragraphs):
            sentences = [] if number else paragraphs.pop()
            for beat in beats:
                if not beat.maybe or self.draws.below(100) < _MAYBE_PERCENT:
                    sentences.append(self.expand(self.draws.pick(beat.alternatives)))
            paragraphs.append(sentences)
        if self.draws.below(100) < _CODA_PERCENT:
            paragraphs[-1].append(self.rule("coda"))
        separator = " " if self.draws.below(100) < _ONE_PARAGRAPH_PERCENT else "\n\n"
        return separator.join(" ".join(sentences) for sentences in paragraphs)

    def _cast(self, plot: Plot) -> None:
        """Choose a row of the plot, then a hero, a place and a helper who fit it."""
        row = self.draws.pick(plot.rows)
        heroes, places = (self.expand(cell).split() for cell in row[:2])
        hero = self.draws.pick(heroes)
        kind, gender, home, look = self._fields(f"hero {hero}")
        place = self.draws.pick(places)
        if place == "any":
            place = self.rule("place any")
        self.slots.update(kind=kind, home=home, who=look)
        self.slots["name"] = self.rule(f"name {hero} {gender}")
        self._pronouns("", gender)
        self.slots["elder"], elder_gender = self._fields(f"elder {hero}")
        self._pronouns("elder_", elder_gender)
        self.slots["place"] = self.rule(f"place {place}")
        helpers = [kind for kind in plot.helpers if (hero, kind) != ("animal", "child")]
        self._cast_helper(self.draws.pick(helpers), place, gender)
        for key in _PLACE_RULES:
            self.slots[key] = self.rule(f"{key} {place}")
        for column, cell in zip(plot.columns[2:], row[2:], strict=True):
            self.slots[column] = self.expand(cell)

    def _cast_helper(self, kind: str, place: str, hero_gender: str) -> None:
        """A second character, mostly of the other gender so that pronouns stay clear."""
        same = kind != "child" and self.draws.below(10) == 0
        gender = "she" if (hero_gender == "she") == same else "he"
        name = self.slots["name"]
        while name in (self.slots["name"], self.slots["kind"]):
            name = self.rule(f"helper {kind} {place if kind == 'animal' else gender}")
        if kind == "child":
            noun = "girl" if gender == "she" else "boy"
            self.slots.update(pal=name, a_pal=f"a {noun} named {name}")
        else:
            look = self.rule(f"look {kind}")
            self.slots.update(pal=f"the {name}", a_pal=_with_article(f"{look} {name}"))
        self._pronouns("pal_", gender)
        self.slots["pal_detail"] = self.rule(f"detail {kind}")

    def _pronouns(self, prefix: str, gender: str) -> None:
        for key, word in zip(("he", "him", "his", "himself"), _PRONOUNS[gender], strict=True):
            self.slots[prefix + key] = word

    def _fields(self, rule: str) -> list[str]:
        return self.rule(rule).split(" ; ")

    def rule(self, name: str) -> str:
        """One alternative of a rule, expanded."""
        return self.expand(self.draws.pick(self.grammar.rules[name]))

    def expand(self, template: Template) -> str:
        """The template with its choices made and its slots filled."""
        out = []
        for node in template:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, Choice):
                out.append(self.expand(self.draws.pick(node.parts)))
            else:
                text = self.slots.get(node.key) or self.rule(node.key)
                if node.article:
                    text = _with_article(text)
                out.append(text[0].upper() + text[1:] if node.capital else text)
        return "".join(out)


def _with_article(noun: str) -> str:
    """The noun after "a" or "an"; the spelling decides, so the tables avoid words like "hour"."""
    vowel = noun[0] in "aeiou"
    return f"{'an' if vowel else 'a'} {noun}"


def parse_rules(text: str) -> dict[str, tuple[Template, ...]]:
    """The rules of a table that has nothing else, by name."""
    return {head.removeprefix("rule "): tuple(map(_parse, items)) for head, *items in _blocks(text)}


@cache
def story_grammar() -> Grammar:
    rules: dict[str, tuple[Template, ...]] = {}
    plots: list[Plot] = []
    for head, *items in _blocks(WORDS + PLOTS):
        word, *rest = head.split(maxsplit=1)
        if word == "rule":
            rules[rest[0]] = tuple(map(_parse, items))
        elif word == "plot":
            name, opening, *helpers = rest[0].split()
            plots.append(Plot(name, opening, helpers))
            plots[-1].paragraphs.append([])
        elif word == "cast":
            plots[-1].columns.extend(rest[0].split(" ; "))
            plots[-1].rows.extend(tuple(map(_parse, item.split(" ; "))) for item in items)
        elif word == "beat":
            beat = Beat(tuple(map(_parse, items)), maybe=rest == ["maybe"])
            plots[-1].paragraphs[-1].append(beat)
        else:
            assert word == "paragraph", f"unknown word {word!r} in the story tables"
            plots[-1].paragraphs.append([])
    return Grammar(rules, tuple(plots))


def _blocks(text: str) -> Iterator[list[str]]:
    """Groups of one head line and its items, the indented lines joined to their items."""
    block: list[str] = []
    for line in filter(None, text.splitlines()):
        if line.startswith(" "):
            block[-1] += " " + line.strip()
        elif line.startswith(("- ", "= ")):
            block.append(line[2:])
        else:
            if block:
                yield block
            block = [line]
    yield block


def _parse(text: str) -> Template:
    """Compile one template: plain text, ``{slots}`` and ``[choices|that nest]``."""
    stack: list[list[list[str | Slot | Choice]]] = [[[]]]
    for token in re.findall(r"\{[^}]*\}|[\[\]|]|[^\[\]|{}]+", text):
        if token == "[":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == "]":
            parts = stack.pop()
            stack[-1][-1].append(Choice(tuple(map(tuple, parts))))
        elif token[0] == "{":
            word, _, noun = token[1:-1].rpartition(" ")
            capital = (word or noun)[0].isupper()
            stack[-1][-1].append(Slot(noun.lower(), capital, article=word.lower() == "a"))
        else:
            stack[-1][-1].append(token)
    assert len(stack) == 1, f"brackets do not match in {text!r}"
    assert len(stack[0]) == 1, f"a choice needs brackets in {text!r}"
    return tuple(stack[0][0])
