"""The quality of texts without a judge: figures to compare with those of human text.

The figures are counts over words. They cannot assess meaning; but a model that loops, makes up
words, writes the same in every sample or never comes to an end differs in them from the held-out
documents.
"""

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

from slm.tokens.tokenizer.bpe import Ids

NGRAM = 4  # words, of the repetition within a text
LIKENESS_NGRAM = 3  # words, of the likeness between texts
MAX_CYCLE = 20  # words or signs in a phrase that is repeated over and over
MAX_REPEATED = 0.5  # a text with a larger share of repeated n-grams is degenerate
MAX_BLANK = 0.7  # a text with a larger share of white space is degenerate; indented code has half

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_UNIT = re.compile(r"\w+|[^\w\s]")
_STUTTER = re.compile(r"(.{1,8}?)\1{9,}", re.DOTALL)  # the same few characters ten times
_NAME = re.compile(r"(?<=[\w,;] )[A-Z][a-z]+")  # a capital within a sentence


@dataclass(frozen=True)
class Quality:
    """Figures over some texts, each a share between 0 and 1."""

    loops: float  # texts in which a phrase occurs three times or more in a row
    repeated: float  # 4-grams that occurred before in their text, a mean over the texts
    distinct: float  # different pairs of words among all pairs of all texts
    unknown: float  # words that are not in the training documents
    likeness: float  # of each text to the most similar one: shared 3-grams (Jaccard), a mean
    names: float | None  # names that recur after they are introduced; None: there are none

    @classmethod
    def mean(cls, parts: Sequence["Quality"]) -> "Quality":
        """The mean of each figure, over the parts that have it."""
        always = [figure for figure in cls.__annotations__ if figure != "names"]
        names = [part.names for part in parts if part.names is not None]
        means = {figure: fmean(getattr(part, figure) for part in parts) for figure in always}
        return cls(**means, names=fmean(names) if names else None)


def measure(texts: Sequence[str], known: Collection[str]) -> Quality:
    """The figures of texts. `known`: the words of the training documents, in lower case."""
    split = [words(text) for text in texts]
    total = Counter(word for text in split for word in text)
    return Quality(
        loops=_mean(loops(text) for text in texts),
        repeated=_mean(repetition(text) for text in split),
        distinct=_distinct(split),
        unknown=sum(n for word, n in total.items() if word not in known) / (total.total() or 1),
        likeness=_likeness(split),
        names=_recurring_names(texts),
    )


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def loops(text: str) -> bool:
    """Whether a phrase of up to MAX_CYCLE words occurs three times or more in a row."""
    units = _UNIT.findall(text.lower())
    for period in range(1, min(MAX_CYCLE, len(units) // 3) + 1):
        run = 0
        for earlier, unit in zip(units, units[period:], strict=False):
            run = run + 1 if earlier == unit else 0
            if run + period >= max(3 * period, 8):
                return True
    return _STUTTER.search(text.strip()) is not None


def degenerate(text: str, ids: Ids) -> str | None:
    """Why a text is broken: "empty", "invalid", "blank" or "repetitive"; None where it is not.

    `ids`: its tokens.
    """
    if not text.strip():
        return "empty"
    if "\ufffd" in text or "\0" in text:
        return "invalid"
    if sum(map(str.isspace, text)) > MAX_BLANK * len(text):
        return "blank"
    if repetition(ids.tolist()) > MAX_REPEATED:
        return "repetitive"
    return None


def repetition(text: Sequence[Hashable]) -> float:
    """The share of a text's 4-grams, of words or of tokens, that occurred in it before."""
    grams = _grams(text, NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _distinct(split: Sequence[Sequence[str]]) -> float:
    """Li et al. 2016 (arXiv:1510.03055), over all texts together."""
    pairs = [pair for text in split for pair in _grams(text, 2)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _likeness(split: Sequence[Sequence[str]]) -> float:
    sets = [set(_grams(text, LIKENESS_NGRAM)) for text in split]
    return _mean(
        max((_jaccard(a, b) for j, b in enumerate(sets) if i != j), default=0.0)
        for i, a in enumerate(sets)
    )


def _jaccard(a: Set[tuple[Hashable, ...]], b: Set[tuple[Hashable, ...]]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


def _recurring_names(texts: Sequence[str]) -> float | None:
    """A name is a word with a capital within a sentence; its mentions anywhere count."""
    recurs = []
    for text in texts:
        mentioned = Counter(re.findall(r"[A-Z][a-z]+", text))
        recurs += [mentioned[name] > 1 for name in set(_NAME.findall(text))]
    return fmean(recurs) if recurs else None


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return fmean(numbers) if numbers else 0.0
