"""What the report shows of a vocabulary of one's own: how well it fits, by script, and its ends."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import islice

import numpy as np
import numpy.typing as npt

from slm.records import Shards
from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import documents, read_tokens, token_chunks
from slm.tokens.tokenizer.bpe import Tokenizer

MAX_DOCUMENTS = 2000  # held-out ones that are looked at
MAX_SCRIPTS = 8
MIN_SHARE = 0.001  # of the bytes, from which a script has a line
SHOWN = 12  # tokens in a list


def facts(shards: Shards, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Bytes per token by script on held-out documents; the longest, and the least used tokens."""
    by_script = bytes_per_token(shards, tokenizer)
    counts = token_counts(shards, tokenizer)[: tokenizer.eot]
    order = np.argsort(counts, kind="stable")
    longest = sorted(tokenizer.tokens, key=len, reverse=True)[:SHOWN]
    unused = int((counts == 0).sum())
    return [
        *((f"bytes per token, {script}", f"{value:.2f}") for script, value in by_script.items()),
        *((f"bytes per token, {name}", f"{value:.2f}") for name, value in by_source(shards)),
        ("longest tokens", listed_tokens(longest)),
        ("least used tokens", listed_tokens(tokenizer.tokens[i] for i in order[:SHOWN])),
        (
            f"unused in the first shard{' of each' if shards.parts else ''}",
            f"{unused:,} of {len(counts):,} tokens",
        ),
    ]


def listed_tokens(tokens: Iterable[bytes]) -> str:
    """Tokens in quotes, bytes that are no text as escapes."""
    return ", ".join(repr(token.decode("utf-8", "backslashreplace")) for token in tokens)


def by_source(shards: Shards) -> list[tuple[str, float]]:
    """Training bytes per token of each source of a mixture, end-of-text left out."""
    return [
        (name, part.train.bytes / max(1, part.train.tokens - part.train.documents))
        for name, part in shards.parts.items()
    ]


def bytes_per_token(shards: Shards, tokenizer: Tokenizer) -> dict[str, float]:
    """Held-out bytes per token: of all scripts, then of each, the most frequent first."""
    sizes = sizes_by_script(islice(documents(shards, "val"), MAX_DOCUMENTS), tokenizer)
    total, tokens = (sum(each[i] for each in sizes.values()) for i in (0, 1))
    frequent = sorted(sizes.items(), key=lambda item: -item[1][0])[:MAX_SCRIPTS]
    return {"all": total / max(1, tokens)} | {
        script: size / count
        for script, (size, count) in frequent
        if count and size >= MIN_SHARE * total
    }


def sizes_by_script(texts: Iterable[Tokens], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Bytes and tokens of each script in some documents.

    A token is of the script of the character that its first byte is in. What is in no script, such
    as spaces and digits, is of that of the letter before it.
    """
    sizes: dict[str, list[int]] = {}
    for ids in texts:
        text = tokenizer.decode(ids.tolist())
        scripts = _scripts(text)
        widths = [len(char.encode()) for char in text]
        of_bytes = np.repeat(np.arange(len(text)), widths)  # the character of each byte
        lengths = tokenizer.token_bytes[ids]
        starts = np.cumsum(lengths) - lengths
        for char, width in enumerate(widths):
            sizes.setdefault(scripts[char], [0, 0])[0] += width
        for char in of_bytes[starts[lengths > 0]].tolist():
            sizes[scripts[char]][1] += 1
    return sizes


def _scripts(text: str) -> list[str]:
    """The script of each character, by the first word of its Unicode name: LATIN → Latin."""
    scripts, last = list[str](), ""
    for char in text:
        last = _script(char) or last
        scripts.append(last or "other")
    return scripts


@cache
def _script(char: str) -> str:
    if not char.isalpha():
        return ""
    return unicodedata.name(char, "other").split(" ")[0].split("-")[0].capitalize()


def token_counts(shards: Shards, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """How often each token is in the first shard of train, or of each source, (n_vocab,)."""
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    splits = [part.train for part in shards.parts.values()] or [shards.splits["train"]]
    for split in splits:
        for _, chunk in token_chunks(read_tokens(shards.path / split.files[0])):
            counts += np.bincount(chunk, minlength=tokenizer.n_vocab)
    return counts
