"""The benchmark `stories`: minimal pairs in the vocabulary of the embedded stories.

A pair is two sentences (or two pairs of sentences) that differ in one thing, of which one is right:
a model that gives the right one the higher probability has learned more than which words are
common. As in BLiMP (Warstadt et al. 2020), each paradigm is made from templates and asks one
question; here they are in words that a model of the embedded stories has read.

A template is in the language of `slm.source.stories`, with two kinds of marks: `<a/b>` is a
condition, `(x/y)` the form that it decides. Each drawing gives two pairs, one of each condition:

    The <cat/cats> (was/were) tired.   →   The cat was tired.    not   The cat were tired.
                                           The cats were tired.  not   The cats was tired.

So each form is right as often as it is wrong, and the frequency of words decides nothing: a model
of single words is right in exactly half of the pairs. No sentence is one of the stories: most
templates have words or a form that no plot has, and a test counts.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from slm.source.stories import Draws, Grammar, Storyteller, Template, parse_rules, story_grammar

PAIRS_PER_PARADIGM = 300

PARADIGMS = """
rule agreement
- The <{animal}/{animals}> (was/were) {mood}.
- There (was/were) <a {thing}/two {things}> near the {mark}.
- The <{thing}/{things}> (was/were) {look}.
- {Girl} saw that the <{animal}/{animals}> (was/were) {mood}.
- "The <{thing}/{things}> (is/are) {look}," said {girl}.
- "My <{thing}/{things}> (is/are) gone," said {boy}.
- There (was/were) <a {animal}/many {animals}> near {a_place}.
- {Boy} knew that the <{thing}/{things}> (was/were) {look}.

rule agreement across a phrase
- The <{animal}/{animals}> near the <{marks}/{mark}> (was/were) {mood}.
- The <{thing}/{things}> next to the <{marks}/{mark}> (was/were) {look}.
- The <{thing}/{things}> behind the <{marks}/{mark}> (was/were) {look}.
- "The <{thing}/{things}> of the <boys/boy> (is/are) {look}," said {girl}.
- The <{animal}/{animals}> that had seen the <{things}/{thing}> (was/were) {mood}.
- "The <{animal}/{animals}> near the <{marks}/{mark}> (is/are) {mood}," said {boy}.

rule pronoun gender
- Once upon a time, there was a little <girl/boy> named <{girl}/{boy}>. (She/He) was {mood}.
- One day <{girl}/{boy}> went to {a_place}. (She/He) was {mood}.
- <{Girl}/{Boy}> was {mood}, so (she/he) sat down near the {mark}.
- Everybody helped <{girl}/{boy}>, because (she/he) was {mood}.
- The little <girl/boy> was {mood}. (She/He) had lost the {thing}.
- The {trait} <woman/man> smiled, and (she/he) gave them a {thing}.
- <{Girl}/{Boy}> sat down near the {mark} and closed (her/his) eyes.
- A little <girl/boy> lived near {a_place}. (Her/His) name was <{girl}/{boy}>.

rule pronoun number
- {Boy} found <a {thing}/two {things}>. (It was/They were) {look}.
- {Girl} had <a {thing}/three {things}> and put (it/them) into a sack.
- The <{thing}/{things}> fell down, and {girl} could not see (it/them).
- {Boy} liked the <{thing}/{things}>, because (it was/they were) {look}.
- "Where <is/are> the <{thing}/{things}>?" asked {girl}. "(It is/They are) near the {mark}."
- When the <{animal}/{animals}> woke up, (it was/they were) [happy|hungry|angry|afraid|sad].

rule pronoun case
- {Boy} was {mood}. <The {animal} saw/Then> (him/he) <and came closer/sat down>.
- {Boy} was near the {mark}. <A {animal} followed/Suddenly> (him/he) <for a while/saw a {animal}>.
- {Boy} was {mood}. <Nobody could hear/After that> (him/he) <for a while/never found the {thing}>.
- The {animals} were {mood}. <{Girl} liked/Soon> (them/they) <very much/liked {girl}>.
- The {animals} were near the {mark}. <{Boy} saw/Then> (them/they) <in the evening/saw {boy}>.
- {Boy} had a {thing}. <{Girl} asked/Suddenly> (him/he) <about it/dropped it>.

rule reflexive
- A little <girl/boy> named <{girl}/{boy}> saw (herself/himself) in the [mirror|water|window].
- <{Girl}/{Boy}> made a {thing} for (herself/himself).
- <{Girl}/{Boy}> was {mood} and talked to (herself/himself).
- The {trait} <woman/man> wanted to keep the {thing} for (herself/himself).
- "Where is the {thing}?" <{girl}/{boy}> asked (herself/himself).
- The {trait} <girls/girl> hid (themselves/herself) behind the {mark}.
- The {trait} <boys/boy> hid (themselves/himself) behind the {mark}.
- The <{animals}/{animal}> near the {mark} could see (themselves/itself) in the water.

rule tense
- (Yesterday/Tomorrow) {girl} <went/will go> to {a_place}.
- <Once/Tomorrow> {boy} (was/will be) very {mood}.
- {Girl} <went/will go> to {a_place} (yesterday/tomorrow).
- <One day/Next year> {girl} (saw/will see) a {animal} near the {mark}.
- {Boy} <found/will find> the {thing} (last/next) week.
- {Girl} and {boy} <came/will come> home (two days ago/in two days).
- As soon as {girl} <found/finds> the {thing}, {boy} (was/will be) [glad|happy|sad|angry].
- When {boy} <comes/came> home, {girl} (will be/was) [glad|happy|sad|angry].

rule verb form
- {Girl} <did not/once> ({see}/{saw}) the {thing}.
- {Boy} <wanted to/quickly> ({see}/{saw}) the {animal}.
- {Girl} <could not/suddenly> ({see}/{saw}) a {thing} near the {mark}.
- {Boy} <tried to/then> ({see}/{saw}) the {things}.
- Nobody <could/ever> ({see}/{saw}) the {animals}.
- {Girl} <had to/soon> ({see}/{saw}) {boy}.

rule who did what
- <{one}/{other}> asked <{other}/{one}> for help. So ({other}/{one}) helped ({one}/{other}).
- <{one}/{other}> gave <{other}/{one}> a {thing}. "Thank you," said ({other}/{one}) to
  ({one}/{other}).
- <{one}/{other}> asked <{other}/{one}> a question. ({other}/{one}) gave ({one}/{other}) an answer.
- <{one}/{other}> ran away from <{other}/{one}>. ({other}/{one}) ran after ({one}/{other}).
- <{one}/{other}> told <{other}/{one}> a story. ({other}/{one}) listened to ({one}/{other}).
- <{one}/{other}> hid behind the {mark}. ({other}/{one}) looked for ({one}/{other}).
- <{one}/{other}> fell into the water. ({other}/{one}) pulled ({one}/{other}) out.
- <{one}/{other}> could not find <{other}/{one}>, because ({other}/{one}) was hiding from
  ({one}/{other}).
- <{one}/{other}> had a {thing}, and <{other}/{one}> wanted it. So ({one}/{other}) gave it to
  ({other}/{one}).
- <{one}/{other}> lost a {thing}. <{other}/{one}> found it. ({other}/{one}) gave it back to
  ({one}/{other}).

rule determiner and noun
- {Girl} saw <a/three> ({animal}/{animals}) near the {mark}.
- {Boy} had <one/two> ({thing}/{things}).
- "Look at <this/these> ({thing}/{things})," said {girl}.
- There <was a/were many> ({thing}/{things}) behind the {mark}.
- {Girl} wanted to see <every/all the> ({thing}/{things}).
- {Boy} met <one/seven> ({animal}/{animals}) near {a_place}.

rule article
- {Girl} saw (a/an) <{plain}/{vowel}> near the {mark}.
- {Boy} dreamed of (a/an) <{plain}/{vowel}>.
- It was (a/an) <{plain}/{vowel}>, and {girl} was {mood}.
- "I want (a/an) <{plain}/{vowel}>," said {boy}.
- {Girl} told {boy} about (a/an) <{plain}/{vowel}>.
- There was (a/an) <{plain}/{vowel}> behind the {mark}.

rule negation
- {Girl} <was/was not> {mood}, and {boy} <was/was not> {mood} (too/either).
- {Girl} <had/had no> {things}, and {boy} <had/had no> {things} (too/either).
- {Girl} was <very/not> {mood}, and (so/neither) was {boy}.
- {Boy} <could/could not> see the {mark}, and (so/neither) could {girl}.
- {Girl} <laughed/did not laugh> at the {animal}, and (so/neither) did {boy}.
- {Boy} <ran/did not run> to {a_place}, and {girl} <ran/did not run> there (too/either).

"""

# Nouns with their two forms, verbs likewise, and the rest. Each is a word of the stories, or the
# other form of one.
WORDS = """
rule animal
- [dog ; dogs|horse ; horses|duck ; ducks|frog ; frogs|bird ; birds|crow ; crows|lamb ; lambs]
- [pigeon ; pigeons|snail ; snails|butterfly ; butterflies|swallow ; swallows|sailor ; sailors]

rule thing
- [pear ; pears|ball ; balls|basket ; baskets|bell ; bells|boat ; boats|box ; boxes|bag ; bags]
- [letter ; letters|pumpkin ; pumpkins|seed ; seeds|shell ; shells|stick ; sticks|shoe ; shoes]
- [flower ; flowers|feather ; feathers|button ; buttons|picture ; pictures|bucket ; buckets]
- [cookie ; cookies|key ; keys|rope ; ropes|wheel ; wheels|board ; boards]

rule mark
- [tree ; trees|stone ; stones|door ; doors|wall ; walls|bush ; bushes|rock ; rocks]
- [window ; windows|branch ; branches|ship ; ships|barrel ; barrels]

rule mood
- [happy|sad|tired|afraid|hungry|quiet|glad|angry|proud|cold|wet|careful|clever|worried]

rule look
- [old|new|small|big|red|blue|green|heavy|beautiful|wet|broken|dirty|round|soft]

rule act
- [see ; saw|find ; found|forget ; forgot|take ; took|hold ; held|lose ; lost|bring ; brought]
- [follow ; followed|carry ; carried]

rule vowel
- [apple|owl|old [man|woman|house|dog]|egg|empty [box|cup|house]|umbrella|eagle|acorn]

rule a_place
- the [woods|park|beach|farm|lake|garden|meadow|river|market|orchard|harbor]

rule plain
- [pear|cat|house|little [cat|house|dog]|big [box|cup|tree]|letter|new [hat|cup|kite]|bell|seed]
"""


class Pair(NamedTuple):
    """A sentence, and one that differs from it in the form that a paradigm is about."""

    paradigm: str
    good: str
    bad: str


@cache
def story_pairs() -> tuple[Pair, ...]:
    """The pairs of all paradigms, in order: always the same ones."""
    paradigms = parse_rules(PARADIGMS).items()
    return tuple(
        pair
        for seed, (paradigm, templates) in enumerate(paradigms)
        for pair in _pairs(paradigm, templates, seed)
    )


def _pairs(paradigm: str, templates: Sequence[Template], seed: int) -> Iterator[Pair]:
    """The pairs of a paradigm, its templates in turn, no sentence twice."""
    grammar = Grammar(story_grammar().rules | parse_rules(WORDS), ())
    seen: set[str] = set()
    drawing = 0
    while len(seen) < PAIRS_PER_PARADIGM:
        template = templates[len(seen) // 2 % len(templates)]
        teller = Storyteller(grammar, Draws(seed, drawing))
        teller.slots.update(_cast(teller))
        text = teller.expand(template)
        drawing += 1
        assert drawing < 100 * PAIRS_PER_PARADIGM, f"{paradigm}: a template has too few fillings"
        pairs = [Pair(paradigm, _read(text, i, i), _read(text, i, 1 - i)) for i in (0, 1)]
        if not seen.intersection(pair.good for pair in pairs):
            seen.update(pair.good for pair in pairs)
            yield from pairs


def _cast(teller: Storyteller) -> dict[str, str]:
    """Who and what a pair is about, the same wherever its template names them."""
    slots = {"girl": teller.rule("name_she"), "boy": teller.rule("name_he")}
    slots["one"] = teller.rule(f"name_{teller.draws.pick(('she', 'he'))}")
    slots["other"] = slots["one"]
    while slots["other"] == slots["one"]:
        slots["other"] = teller.rule(f"name_{teller.draws.pick(('she', 'he'))}")
    for noun in ("animal", "thing", "mark"):
        slots[noun], slots[f"{noun}s"] = teller.rule(noun).split(" ; ")
    slots["see"], slots["saw"] = teller.rule("act").split(" ; ")
    for word in ("mood", "look", "trait", "plain", "vowel", "a_place"):
        slots[word] = teller.rule(word)
    return slots


_CONDITION = re.compile(r"<([^/>]*)/([^>]*)>")
_FORM = re.compile(r"\(([^/)]*)/([^)]*)\)")


def _read(text: str, condition: int, form: int) -> str:
    """The sentence of an expanded template under one condition, in one form."""
    text = _CONDITION.sub(lambda match: match[condition + 1], text)
    return _FORM.sub(lambda match: match[form + 1], text)
