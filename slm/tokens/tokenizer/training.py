"""A vocabulary trained from texts: byte-level BPE, by the library rustbpe.

The pair of tokens that is most frequent within words is merged into a new one, again and again. Of
pairs that are equally frequent the one of the lowest ids is first, so the order of the texts and
the number of threads change nothing.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from slm.errors import UserError
from slm.extras import require
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tokens.tokenizer.patterns import Pattern
from slm.tokens.tokenizer.pretokenize import segments

TRAINER = "rustbpe"
BUFFER = 256  # pieces of text that are split into words together


def check_trainer() -> None:
    """Raises UserError where the library that trains is not installed."""
    require(TRAINER, "data.tokenizer.train=bpe")


def train_bpe(
    texts: Iterable[str], vocab_size: int, pattern: Pattern, special: Sequence[str] = ()
) -> Tokenizer:
    """The tokenizer of at most `vocab_size` ids that is trained on texts.

    Of few texts, in which fewer pairs occur, it has fewer ids.

    Args:
        texts: each is read once, so memory grows with the number of different words alone.
        vocab_size: ids, end-of-text and those of `special` included.
        pattern: splits the texts into words; one with a plain form.
        special: texts that are no part of any word, each of them one token.
    """
    import rustbpe

    assert pattern.plain is not None, f"the pattern {pattern.name} has a plain form"
    trainer = rustbpe.Tokenizer()
    pieces = _pieces(texts, pattern, special)
    size = vocab_size - 1 - len(special)
    trainer.train_from_iterator(pieces, size, buffer_size=BUFFER, pattern=pattern.plain)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda each: each[1])
    tokens = [bytes(token) for token, _ in ranks]
    if len(tokens) > size or [rank for _, rank in ranks] != list(range(len(tokens))):
        raise UserError(f"{TRAINER} returned ranks that are not those of a vocabulary of {size}")
    return Tokenizer(tokens, pattern, special)


def _pieces(texts: Iterable[str], pattern: Pattern, special: Sequence[str]) -> Iterator[str]:
    """The texts without special tokens, cut so that the plain pattern splits them alike."""
    borders = re.compile("|".join(map(re.escape, special))) if special else None
    for text in texts:
        for part in borders.split(text) if borders else (text,):
            yield from segments(part, newer=pattern.name != "gpt2")
