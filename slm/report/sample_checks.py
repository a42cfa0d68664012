"""Samples beside held-out documents: the figures of both, and what either has from the training
documents word for word.

A held-out document is cut to the length of the sample that it stands beside, and what stands in
the place of the prompt is left out of both, so that their figures may be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from slm.config import ReportConfig
from slm.evaluation import grammar
from slm.evaluation.memorisation import Copy, copy_threshold, longest_copies
from slm.evaluation.text_quality import Quality, measure, words
from slm.records import Progress, Shards, silent
from slm.report.grid import GridSample
from slm.report.summary import Check, Searched, quality_checks
from slm.tokens.shards.reading import documents, read_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

GROUPS = 5  # of held-out texts, each of as many as there are samples
KNOWN_CHARACTERS = 10_000_000  # of training text whose words count as known
COPY_TOKENS = 500_000_000  # training tokens in which copied passages are looked for
PASSAGES = 5  # copied passages that are shown


@dataclass(frozen=True)
class Passage:
    """Text that stands in the training documents."""

    tokens: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """What came of it; empty where there are no held-out documents to compare with."""

    copies: list[Copy]  # of each sample
    checks: list[Check] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)  # the longest
    line: int = 0  # tokens of a copied passage that nearly all held-out texts keep to
    human_texts: int = 0


def beside_human(
    samples: Sequence[GridSample],
    settings: ReportConfig,
    shards: Shards | None,
    tokenizer: Tokenizer,
    progress: Progress = silent,
) -> Comparison:
    """Measures samples that were written so, and held-out documents of their lengths."""
    count = len(samples)
    held_out = list(islice(documents(shards, "val"), GROUPS * count)) if shards else []
    if not held_out or shards is None:
        return Comparison([Copy(0, 0)] * count)
    ids = [np.array(tokenizer.encode(sample.text)) for sample in samples]
    prompts = [len(tokenizer.encode(sample.prompt)) for sample in samples]
    human = [
        document[: max(len(ids[i % count]), prompts[i % count] + 1)].astype(np.int64)
        for i, document in enumerate(held_out)
    ]
    rest = [tokenizer.decode(text[prompts[i % count] :]) for i, text in enumerate(human)]
    limit = settings.max_new_tokens
    ended = [len(text) <= prompts[i % count] + limit for i, text in enumerate(held_out)]
    copies = longest_copies([*ids, *human], _train_tokens(shards, progress), tokenizer.n_vocab)
    ours, humans = copies[:count], [copy.length for copy in copies[count:]]
    known, characters = _known_words(shards, tokenizer)
    searched = Searched(characters, min(COPY_TOKENS, shards.splits["train"].tokens))
    written = [sample.completion for sample in samples]
    checks = quality_checks(
        measure(written, known),
        Quality.mean([measure(group, known) for group in _groups(rest, count)]),
        (sum(sample.ended for sample in samples) / count, sum(ended) / len(ended)),
        ([copy.length for copy in ours], humans),
        _grammar(written, rest, settings.language),
        searched,
    )
    return Comparison(
        ours, checks, _longest(ours, ids, tokenizer), copy_threshold(humans), len(human)
    )


def _grammar(
    written: Sequence[str], human: Sequence[str], language: str
) -> tuple[float, float] | None:
    if language != grammar.LANGUAGE:
        return None
    return grammar.ungrammatical(written), grammar.ungrammatical(human)


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """As many groups of a size as there are; all texts where they do not make one."""
    return [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)] or [texts]


def _longest(copies: Sequence[Copy], ids: Sequence[Ids], tokenizer: Tokenizer) -> list[Passage]:
    """The longest passages, the same one once."""
    order = sorted(zip(copies, ids, strict=True), key=lambda pair: -pair[0].length)
    found = [
        Passage(copy.length, tokenizer.decode(text[copy.start : copy.start + copy.length]))
        for copy, text in order
        if copy.length
    ]
    return list(dict.fromkeys(found))[:PASSAGES]


def _known_words(shards: Shards, tokenizer: Tokenizer) -> tuple[set[str], int]:
    """The words of the first training documents, and the characters that these have."""
    known: set[str] = set()
    read = 0
    for document in documents(shards, "train"):
        text = tokenizer.decode(document)
        known.update(words(text))
        read += len(text)
        if read >= KNOWN_CHARACTERS:
            break
    return known, read


def _train_tokens(shards: Shards, progress: Progress) -> Iterator[Ids]:
    """The training tokens, a shard after the other, up to COPY_TOKENS of them."""
    read = 0
    for name in shards.splits["train"].files:
        progress("looking for copied passages", read, shards.splits["train"].tokens)
        tokens = read_tokens(shards.path / name)[: COPY_TOKENS - read]
        yield tokens
        read += len(tokens)
