"""What speaks against a version whatever its loss: its lineage, its data, what it writes."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from slm.config import RegistryConfig
from slm.evaluation.intervals import MIN_DOCUMENTS
from slm.evaluation.memorisation import blank_ids, longest_copies, memorised_share
from slm.evaluation.text_quality import degenerate
from slm.model.sample import generate
from slm.records import Shards
from slm.registry.tags import REQUIRED
from slm.registry.version import ModelVersion
from slm.tokens.shards.reading import split_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

if TYPE_CHECKING:
    from slm.model.gpt import GPT

SAMPLES = 32  # texts that the model writes
SAMPLE_TOKENS = 128
PROMPT_TOKENS = 8


def vetoes(
    version: ModelVersion,
    champion: ModelVersion | None,
    model: "GPT",
    tokenizer: Tokenizer,
    texts: Sequence[str],
    shards: Shards,
    limits: RegistryConfig,
) -> list[str]:
    """What speaks against the version whatever its loss, a line each."""
    against = []
    if missing := [tag for tag in REQUIRED if tag not in version.tags]:
        against.append(f"lineage lacks {', '.join(missing)}")
    if champion and (veto := _other_dataset(version, champion)):
        against.append(veto)
    if len(texts) < MIN_DOCUMENTS:
        against.append(
            f"held-out documents: {len(texts)}, and the gate needs at least {MIN_DOCUMENTS}"
        )
    return against + _vetoes_of_samples(model, tokenizer, texts, shards, limits)


def _vetoes_of_samples(
    model: "GPT",
    tokenizer: Tokenizer,
    texts: Sequence[str],
    shards: Shards,
    limits: RegistryConfig,
) -> list[str]:
    """What speaks against the texts that a model writes: broken, or copied from its training."""
    against = []
    human = encoded_texts(tokenizer, texts)
    length = min(PROMPT_TOKENS, model.config.seq_len // 4)
    prompts = [
        _prompt(tokenizer, text, ids[:length])
        for text, ids in zip(texts[:SAMPLES], human, strict=False)
    ]
    written = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.8,
        top_k=50,
        seed=range(len(prompts)),
    )
    samples = encoded_texts(tokenizer, [s.completion for s in written])
    broken = [degenerate(s.completion, i) for s, i in zip(written, samples, strict=True)]
    if (share := sum(b is not None for b in broken) / len(broken)) > limits.max_degenerate:
        kinds = ", ".join(sorted({b for b in broken if b}))
        against.append(
            f"{share:.0%} of its samples are {kinds} (at most {limits.max_degenerate:.0%})"
        )
    # Compared as token ids of the challenger's shards, whose tokenizer is the challenger's own.
    train = split_tokens(shards, "train")
    ends = [ids[length : length + SAMPLE_TOKENS] for ids in human]
    blank = blank_ids(tokenizer, samples + ends)
    copies = longest_copies(samples + ends, train, tokenizer.n_vocab, blank=blank)
    lengths = [copy.length for copy in copies]
    share = memorised_share(lengths[: len(samples)], lengths[len(samples) :])
    if share > limits.max_memorised:
        against.append(
            f"{share:.0%} of its samples copy more of the training text than human ones do "
            f"(at most {limits.max_memorised:.0%})"
        )
    return against


def _prompt(tokenizer: Tokenizer, text: str, ids: Ids) -> str:
    """The text of the first ids of a text, without those that end inside a character."""
    while not text.startswith(prompt := tokenizer.decode(ids.tolist())):
        ids = ids[:-1]
    return prompt


def _other_dataset(version: ModelVersion, champion: ModelVersion) -> str | None:
    """Both are scored on the challenger's text, so a champion of another text would lose on it."""
    ours, theirs = version.tags.get("dataset"), champion.tags.get("dataset")
    if ours is None or theirs is None or _is_same_dataset(ours, theirs):
        return None
    return (
        f"it was trained on {ours}, the champion on {theirs}: register it under a name of its own "
        "(registry.model), or --force REASON"
    )


def _is_same_dataset(ours: str, theirs: str) -> bool:
    """Whether two names of datasets may be of the same one.

    A relative path and an absolute one are where the one ends as the other does:

    >>> _is_same_dataset("./texts", "/home/me/project/texts")
    True
    """
    a, b = PurePath(ours), PurePath(theirs)
    if a.is_absolute() == b.is_absolute():
        return a == b
    whole, part = (a, b) if a.is_absolute() else (b, a)
    end = tuple(name for name in part.parts if name != "..")
    return bool(end) and whole.parts[-len(end) :] == end


def encoded_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Texts as token ids."""
    return [np.array(tokenizer.encode(text), np.int64) for text in texts]
