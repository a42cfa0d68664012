"""Which documents are held out of a dataset without a validation split.

Each is drawn by its hash, a `data.val_fraction` of them. A small set would hold out none, or one
by luck, so it has a minimum: the documents of the lowest hashes; of fewer than ten documents, of
which one may be most of the text, the end of each.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from slm.config import DataConfig
from slm.records import Source
from slm.tokens.cleaning import Hashes, Mask

MIN_VAL_DOCUMENTS = 10
MAX_SHARE = 0.1  # of a small set that is held out, but at least one document
CERTAIN_DRAWS = 30  # with so many expected, the chance to draw none is one in 10¹³

Rule = Literal["lowest hashes", "ends"]

# Draws of the two parts of a document whose end is held out: no hash is needed to choose its split.
TRAIN_DRAW, VAL_DRAW = b"\xff" * 8, bytes(8)


def minimum(documents: int) -> int:
    """How many are held out at least.

    >>> [minimum(count) for count in (2, 20, 60, 100, 5000)]
    [1, 2, 6, 10, 10]
    """
    return max(1, min(MIN_VAL_DOCUMENTS, int(documents * MAX_SHARE)))


def expected(data: DataConfig, source: Source) -> float | None:
    """How many documents a draw by hash takes on average; None where there is none.

    The source may have its own val, and with a `val_fraction` of 0 nothing is to be held out.
    """
    if "val" in source.splits or not data.val_fraction:
        return None
    return data.val_fraction * source.documents


def small_set_rule(data: DataConfig, source: Source) -> Rule | None:
    """How the minimum of a small set is held out; None where draws by hash suffice.

    It follows from the source's record, before any document is read: the shards' key has it.
    """
    count = expected(data, source)
    if count is None or not source.documents or count >= minimum(source.documents):
        return None
    return "ends" if source.documents < MIN_VAL_DOCUMENTS else "lowest hashes"


@dataclass(frozen=True)
class Draw:
    """Decides by their draws which documents are val: a fraction, and those up to a hash."""

    fraction: float
    lowest: np.uint64 | None = None

    def val(self, draws: Hashes) -> Mask:
        """Which documents are val, (N,). Of hashes 0.1, 0.6 and 0.2 (times 2**64) a fraction of
        0.25 takes the first and the last.
        """
        drawn: Mask = draws / 2.0**64 < self.fraction
        return drawn if self.lowest is None else drawn | (draws <= self.lowest)

    def at_least(self, draws: Hashes, rule: Rule | None) -> "Draw":
        """The same with the minimum, where the rule asks for it or nothing would be held out.

        `draws`: of all documents; equal ones count once, and one stays in train. Of 20 documents
        two are held out: with draws of 5, 10, 15, …, 100 those up to 10.
        """
        distinct = np.unique(draws)  # sorted
        if rule == "ends" or (rule is None and self.val(distinct).any()):
            return self
        count = min(minimum(len(distinct)), len(distinct) - 1)
        return Draw(self.fraction, distinct[count - 1]) if count > 0 else self


def split_end(text: str) -> tuple[str, str]:
    """A document in two: its last tenth to fifth is held out, together they are the document.

    The cut is at the last paragraph in that range, else line, sentence, word or character. The end
    is empty where a document is too short, or one part would be nothing but white space.

    >>> split_end("One day a cat sat on a mat. It was warm.")
    ('One day a cat sat on a mat. It was', ' warm.')
    """
    low, high = len(text) - len(text) // 5, len(text) - len(text) // 10
    cut = high
    for border, kept in (("\n\n", 2), ("\n", 1), (". ", 1), (" ", 0)):
        if (at := text.rfind(border, low, high)) >= 0:
            cut = at + kept
            break
    head, end = text[:cut], text[cut:]
    return (text, "") if not head.strip() or not end.strip() else (head, end)


def describe(held_out: dict[str, Any]) -> str:
    """The line that reports what the minimum has held out, as the shards' record holds it."""
    if held_out["rule"] == "ends":
        return (
            f"val: the last tenth to fifth of each document is held out ({held_out['tokens']:,} "
            f"tokens): there are fewer than {MIN_VAL_DOCUMENTS} documents ({held_out['of']})"
        )
    return (
        f"val: {held_out['documents']:,} of {held_out['of']:,} documents ({held_out['tokens']:,} "
        "tokens) are held out, those of the lowest hashes: "
        f"data.val_fraction={held_out['val_fraction']} of them would be fewer"
    )
