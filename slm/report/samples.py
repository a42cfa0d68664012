"""The samples that a report shows, and how they compare with held-out documents.

Each sample is compared with held-out documents that are cut to its length; the tokens of its
prompt are left out of both, so that their figures are comparable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from slm.config import MAX_SEED, ReportConfig
from slm.evaluation import grammar
from slm.evaluation.memorisation import Copy, blank_ids, copy_threshold, longest_copies
from slm.evaluation.text_quality import Quality, measure, words
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.progress import Progress, silent
from slm.records import Shards
from slm.report.summary import Check, Searched, quality_checks
from slm.tokens.shards.reading import documents, split_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

GROUPS = 5  # of held-out texts, each of as many as there are samples
KNOWN_CHARACTERS = 10_000_000  # of training text whose words count as known
COPY_TOKENS = 500_000_000  # training tokens in which copied passages are searched
PASSAGES = 5  # copied passages that are shown


# ---- sampling ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportSample:
    """A sample and the settings that it was drawn with."""

    prompt: str
    completion: str
    temperature: float
    top_k: int
    seed: int
    tokens: int
    ended: bool

    @property
    def text(self) -> str:
        return self.prompt + self.completion


def write_samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: ReportConfig,
    progress: Progress = silent,
) -> list[ReportSample]:
    """Sample every prompt at every temperature and top-k, each with a seed of its own."""
    decoder = Decoder(model)
    cells = [(t, k) for t in settings.temperatures for k in settings.top_ks]
    samples = []
    for number, (temperature, top_k) in enumerate(cells):
        progress("sampling", number, len(cells))
        first = settings.seed + number * len(prompts)
        seeds = [(first + i) & MAX_SEED for i in range(len(prompts))]
        written = generate(
            decoder,
            tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seeds,
        )
        samples += [
            ReportSample(s.prompt, s.completion, temperature, top_k, seed, s.tokens, s.ended)
            for s, seed in zip(written, seeds, strict=True)
        ]
    return samples


# ---- comparing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """Text that is in the training documents word for word."""

    tokens: int
    text: str


@dataclass(frozen=True)
class SampleQuality:
    """The comparison; empty where there are no held-out documents to compare with."""

    copies: list[Copy]  # of each sample
    checks: list[Check] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)  # the longest
    copy_line: int = 0  # tokens; of held-out texts about one in twenty has a longer copied passage
    held_out_texts: int = 0
    notes: list[str] = field(default_factory=list)  # what was not measured, and why


def compare_with_held_out(
    samples: Sequence[ReportSample],
    settings: ReportConfig,
    shards: Shards | None,
    tokenizer: Tokenizer,
    progress: Progress = silent,
) -> SampleQuality:
    """Measure samples, and held-out documents cut to their lengths.

    Held-out document i is compared with sample i modulo the number of samples:

        sample 0: prompt of 3 tokens, 10 in all    document 0 of 50 → tokens 0:10, measured 3:10
        sample 1: prompt of 2 tokens, 6 in all     document 1 of  4 → tokens 0:4,  measured 2:4
                                                   document 2 of 50 → as sample 0

    A document "ends" where it would have ended within the tokens that a sample may have.
    """
    count = len(samples)
    held_out = list(islice(documents(shards, "val"), GROUPS * count)) if shards else []
    if not held_out or shards is None:
        return SampleQuality([Copy(0, 0)] * count)
    ids = [np.array(tokenizer.encode(sample.text)) for sample in samples]  # (T,) each
    prompts = [len(tokenizer.encode(sample.prompt)) for sample in samples]
    cut = [
        document[: max(len(ids[i % count]), prompts[i % count] + 1)].astype(np.int64)
        for i, document in enumerate(held_out)
    ]  # (T,) each
    human = [tokenizer.decode(text[prompts[i % count] :]) for i, text in enumerate(cut)]
    limit = settings.max_new_tokens
    ended = [len(text) <= prompts[i % count] + limit for i, text in enumerate(held_out)]
    blank = blank_ids(tokenizer, [*ids, *cut])
    train = _train_tokens(shards, progress)
    copies = longest_copies([*ids, *cut], train, tokenizer.n_vocab, blank=blank)
    ours, humans = copies[:count], [copy.length for copy in copies[count:]]
    known, characters = _known_words(shards, tokenizer)
    written = [sample.completion for sample in samples]
    mistakes, is_left_out = None, grammar.is_left_out(settings.language)
    if settings.language == grammar.LANGUAGE and not is_left_out:
        mistakes = grammar.ungrammatical(written), grammar.ungrammatical(human)
    checks = quality_checks(
        measure(written, known),
        Quality.mean([measure(group, known) for group in _groups(human, count)]),
        (sum(sample.ended for sample in samples) / count, sum(ended) / len(ended)),
        ([copy.length for copy in ours], humans),
        mistakes,
        Searched(characters, min(COPY_TOKENS, shards.splits["train"].tokens)),
    )
    passages = _longest_passages(ours, ids, tokenizer)
    notes = [grammar.why_left_out()] if is_left_out else []
    return SampleQuality(ours, checks, passages, copy_threshold(humans), len(human), notes)


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """As many whole groups as there are; all texts where they do not make one.

    >>> _groups("abcde", 2)
    ["ab", "cd"]
    >>> _groups("a", 2)
    ["a"]
    """
    return [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)] or [texts]


def _longest_passages(
    copies: Sequence[Copy], ids: Sequence[Ids], tokenizer: Tokenizer
) -> list[Passage]:
    """The longest copied passages, each once."""
    order = sorted(zip(copies, ids, strict=True), key=lambda pair: -pair[0].length)
    passages = [
        Passage(copy.length, tokenizer.decode(text[copy.start : copy.start + copy.length]))
        for copy, text in order
        if copy.length
    ]
    return list(dict.fromkeys(passages))[:PASSAGES]


def _known_words(shards: Shards, tokenizer: Tokenizer) -> tuple[set[str], int]:
    """The words of the first training documents, and how many characters were read."""
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
    """The training tokens, shard by shard, up to COPY_TOKENS of them."""
    read = 0
    for whole in split_tokens(shards, "train"):
        progress("searching copied passages", read, shards.splits["train"].tokens)
        tokens = whole[: COPY_TOKENS - read]
        yield tokens
        read += len(tokens)
