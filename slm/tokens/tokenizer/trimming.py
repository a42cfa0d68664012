"""The trimmed vocabulary: a tokenizer's most frequent ids, and texts in them."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.tokens.tokenizer.bpe import Ids, Tokenizer
from slm.tokens.tokenizer.lookup import MISSING, PieceCache, replace


def trim_vocabulary(
    base: Tokenizer, counts: npt.NDArray[np.integer[Any]], vocab_size: int
) -> Tokenizer:
    """The tokenizer with the `vocab_size` most frequent ids of `base`, renumbered in rank order.

    It keeps the 256 bytes, end-of-text, and by falling count (lower rank first among equals) the
    tokens that fit together with those that they are merged from. Any text still encodes, and
    decodes to the same bytes.

    Args:
        base: the tokenizer to take from.
        counts: how often each of its ids occurs; (base.n_vocab,).
        vocab_size: ids to keep, end-of-text included.

    Tokens 256 to 258 are b"th", b"the" (from b"th" and b"e") and b"at"; b"at" is most frequent:

    >>> base = Tokenizer([bytes([i]) for i in range(256)] + [b"th", b"the", b"at"])
    >>> counts = np.zeros(260, int)
    >>> counts[[257, 258]] = 5, 9
    >>> trim_vocabulary(base, counts, 258).tokens[256:]
    [b'at']
    >>> trim_vocabulary(base, counts, 259).tokens[256:]  # b"the" needs two places: b"th" and itself
    [b'th', b'at']
    >>> trim_vocabulary(base, counts, 260).tokens[256:]
    [b'th', b'the', b'at']
    """
    assert counts.shape == (base.n_vocab,), f"counts for {counts.shape}, not {base.n_vocab} ids"
    if not 257 <= vocab_size <= base.n_vocab:
        raise UserError(f"vocab_size={vocab_size}: it must be between 257 and {base.n_vocab}")
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
    had the lowest rank among more. So its ids are renumbered. A stretch of text around any other
    token, cut where a word surely begins, is encoded again; each different stretch once.

    The base of `trim_vocabulary`'s example encodes "at the" as at, blank, the. Without th and the,
    at becomes 256 and end-of-text 257, and the stretch of the last three is encoded again:

    >>> base = Tokenizer([bytes([i]) for i in range(256)] + [b"th", b"the", b"at"])
    >>> trimmed = Tokenizer([bytes([i]) for i in range(256)] + [b"at"])
    >>> VocabRemap(base, trimmed)(np.array([259, 258, 32, 257])).tolist()
    [257, 256, 32, 116, 104, 101]
    """

    def __init__(self, base: Tokenizer, trimmed: Tokenizer) -> None:
        self.base = base
        self.trimmed = trimmed
        ranks = {token: rank for rank, token in enumerate(trimmed.tokens)}
        renumbered = [ranks.get(token, MISSING) for token in base.tokens]
        self._renumbered = np.array([*renumbered, trimmed.eot], np.uint32)
        # A blank and a visible character always begin a word, and so does end-of-text.
        begins = [re.match(rb" [!-~]", token) is not None for token in base.tokens]
        self._begins = np.array([*begins, True])
        self._stretches = PieceCache(self._encode_again)

    def __call__(self, ids: Ids) -> npt.NDArray[np.uint32]:
        """The trimmed ids of documents that each begin with end-of-text."""
        renumbered = self._renumbered.take(ids)  # (T,): 257 256 32 MISSING in the example
        missing = np.flatnonzero(renumbered == MISSING)  # (M,): 3
        begins = self._begins.take(ids)
        begins[1:] |= ids[:-1] == self.base.eot
        limits = np.append(np.flatnonzero(begins), len(ids))  # of stretches: 0 1 4
        stretches = np.searchsorted(limits, missing, "right")  # (M,): 2, from limit 1 to limit 2
        stretches = stretches[np.diff(stretches, prepend=0) > 0]  # (S,): each once
        begin, end = limits[stretches - 1], limits[stretches]  # 1 and 4
        data = ids.astype(np.uint32).tobytes()
        replacements, counts = self._stretches.look_up(data, 4 * begin, 4 * end)
        return replace(renumbered, begin, end - begin, replacements, counts)

    def _encode_again(self, data: bytes) -> npt.NDArray[np.uint32]:
        ids = np.frombuffer(data, np.uint32).tolist()
        return np.array(self.trimmed.encode(self.base.decode(ids)), np.uint32)
