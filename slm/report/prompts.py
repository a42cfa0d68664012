"""The prompts of a report and of the examples around it: a recipe's, or the first words of held-out
documents.

The choice depends on the held-out text, the seed and the length of the context alone, so models
with other vocabularies, trained on the same text, are sampled from the same prompts.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from pathlib import Path

from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.records import Shards
from slm.run_folder import run_of_checkpoint
from slm.storage import sha256_json
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

COUNT = 3
MAX_WORDS = 5
MAX_BYTES = 40  # about thirteen characters of a script without blanks
MIN_BYTES = 8  # of one word alone: shorter ones are chosen last
MAX_DOCUMENTS = 1000  # held-out documents that are looked at
MAX_TOKENS = 200  # of each
# Scripts without blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese, Yi.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u3100-\u312f\u31a0-\ua4cf"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def report_prompts(config: PipelineConfig, shards: Shards | None) -> tuple[str, ...]:
    """The beginnings of a report's samples.

    Those of the recipe, else of held-out documents; an empty one, with which the model begins by
    itself, where no document has any, or the shards are gone.
    """
    if config.report.prompts is not None:
        return config.report.prompts
    if shards is None:
        return ("",)
    return held_out_prompts(shards, config.report.seed, config.model.seq_len) or ("",)


def example_prompt(model: Path) -> str:
    """The prompt of an example with the model of a checkpoint: the first of its run's report.

    Empty where the run is not here.
    """
    run = run_of_checkpoint(model)
    if run is None or not run.exists:
        return ""
    with suppress(SlmError, OSError):  # damaged: an example is no reason to fail
        return next(iter(report_prompts(run.config, run.shards)), "")
    return ""


def sample_command(run: str, prompts: Sequence[str]) -> str:
    """The command that samples from a run, from the first of some prompts."""
    prompt = next(iter(prompts), "")
    return f"slm sample {run}" + (f" --prompt {shlex.quote(prompt)}" if prompt else "")


def held_out_prompts(shards: Shards, seed: int, seq_len: int) -> tuple[str, ...]:
    """The beginnings of held-out documents, at most `COUNT`, all different; none where none has
    one.

    They are in the order of their hashes with the seed: most stay when documents are added.
    """
    limit = min(MAX_BYTES, seq_len // 2)  # no text has more tokens than bytes
    beginnings = {beginning(text, whole, limit) for text, whole in _texts(shards)} - {None}
    order = sorted(
        (len(text.split()) < 2 and len(text.encode()) < MIN_BYTES, sha256_json([seed, text]), text)
        for text in beginnings
        if text
    )
    return tuple(text for *_, text in order[:COUNT])


def _texts(shards: Shards) -> Iterator[tuple[str, bool]]:
    """The beginnings of the first held-out documents, and whether each is the whole document."""
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    for ids in islice(documents(shards, "val"), MAX_DOCUMENTS):
        yield tokenizer.decode(ids[:MAX_TOKENS].tolist()), len(ids) <= MAX_TOKENS


def beginning(text: str, whole: bool, limit: int) -> str | None:
    """The first words of a text in its first line, so few that the text continues after them.

    >>> beginning("It's a long way to the sea.", True, 40)
    "It's a long way to"
    >>> beginning("def area(radius):", True, 12)
    "def area("
    >>> beginning("吾輩は猫である。名前はまだ無い。", True, 12)
    "吾輩は猫"

    Args:
        whole: whether the text ends its document.
        limit: bytes of UTF-8.

    Returns None where it has no word of at most `limit` bytes that anything follows.
    """
    text = text.lstrip()
    line = "".join(takewhile(lambda c: c.isprintable() and c != "\ufffd", text)).rstrip()
    ends_here = whole and line == text.rstrip()
    best = None
    for stop in range(1, len(line) + (not ends_here)):
        part = line[:stop]
        if len(part.encode()) > limit or len(part.split()) > MAX_WORDS:
            break
        if not part[-1].isspace() and not _inside_word(line, stop):
            best = part
    return best


def _inside_word(line: str, stop: int) -> bool:
    """Whether a cut before the character at `stop` would be inside a word or a character."""
    before, after = line[stop - 1], line[stop : stop + 1]
    if not after:
        return False
    if unicodedata.category(after).startswith("M"):  # it combines with the one before
        return True
    if _UNSPACED.match(before) or _UNSPACED.match(after):
        return False
    if after in "'’" or before in "'’":  # don't
        return line[stop - 2 : stop - 1].isalnum() if before in "'’" else before.isalnum()
    return _is_letter(before) and _is_letter(after)


def _is_letter(character: str) -> bool:
    return (
        character == "_" or character.isalnum() or unicodedata.category(character).startswith("M")
    )
