"""The trimmed vocabulary: the most useful ids of a tokenizer, and its ids renumbered."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.tokens.tokenizer.bpe import Ids, Tokenizer
from slm.tokens.tokenizer.lookup import MISSING, Memory, replace


def trim_vocabulary(
    base: Tokenizer, counts: npt.NDArray[np.integer[Any]], vocab_size: int
) -> Tokenizer:
    """The tokenizer with the `vocab_size` most useful ids of `base`, renumbered in rank order.

    Kept are the 256 bytes, end-of-text, and by falling count (lower rank first among equals) the
    tokens that fit together with those that they are merged from. Any text still encodes, and
    decodes to the same bytes.

    Args:
        base: the tokenizer to take from.
        counts: how often each of its ids occurs; shape (base.n_vocab,).
        vocab_size: ids to keep, end-of-text included.
    """
    assert counts.shape == (base.n_vocab,), f"counts for {counts.shape}, not {base.n_vocab} ids"
    if not 257 <= vocab_size <= base.n_vocab:
        raise UserError(f"vocab_size={vocab_size}: it must lie between 257 and {base.n_vocab}")
    kept = {rank for rank, pair in enumerate(base.merges) if pair is None}
    for rank in np.argsort(-counts[: base.eot].astype(np.int64), kind="stable").tolist():
        family, queue = set(), [rank]
        while queue:
            if (member := queue.pop()) not in kept:
                family.add(member)
                queue += base.merges[member] or ()
        if len(kept) + len(family) < vocab_size:
            kept |= family
        if len(kept) + 1 == vocab_size:
            break
    return Tokenizer([base.tokens[rank] for rank in sorted(kept)])


class VocabRemap:
    """Ids of a tokenizer → ids of one trimmed from it, for the same text.

    A word whose tokens are all kept is merged as before: each merge that made it is kept too, and
    was of the lowest rank among more. So its ids are renumbered. A stretch of text around any
    other token, cut where a word surely begins, is encoded again, and remembered.
    """

    def __init__(self, base: Tokenizer, trimmed: Tokenizer) -> None:
        self.base = base
        self.trimmed = trimmed
        kept = {token: rank for rank, token in enumerate(trimmed.tokens)}
        renumbered = [kept.get(token, MISSING) for token in base.tokens]
        self._renumbered = np.array([*renumbered, trimmed.eot], np.uint32)
        # A blank and a character that is none always begin a word, and so does end-of-text.
        begins = [re.match(rb" [!-~]", token) is not None for token in base.tokens]
        self._begins = np.array([*begins, True])
        self._stretches = Memory(self._again)

    def __call__(self, ids: Ids) -> npt.NDArray[np.uint32]:
        """The trimmed ids of documents that each begin with end-of-text."""
        renumbered = self._renumbered.take(ids)
        missing = np.flatnonzero(renumbered == MISSING)
        begins = self._begins.take(ids)
        begins[1:] |= ids[:-1] == self.base.eot
        limits = np.append(np.flatnonzero(begins), len(ids))
        stretches = np.searchsorted(limits, missing, "right")
        stretches = stretches[np.diff(stretches, prepend=0) > 0]  # each once
        begin, end = limits[stretches - 1], limits[stretches]
        data = ids.astype(np.uint32).tobytes()
        found, counts = self._stretches.look_up(data, 4 * begin, 4 * end)
        return replace(renumbered, begin, end - begin, found, counts)

    def _again(self, data: bytes) -> npt.NDArray[np.uint32]:
        ids = np.frombuffer(data, np.uint32).tolist()
        return np.array(self.trimmed.encode(self.base.decode(ids)), np.uint32)
