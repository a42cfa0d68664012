"""Ids of pieces of text, looked up for very many at once.

Most words are tokens by themselves: `TokenTable` finds these without a step of Python for each.
The others are few and come again and again: a `Memory` learns each once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slm.tokens.tokenizer.pretokenize import Places, ranges

Uint32s = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

MISSING = 0xFFFFFFFF  # no id
NO_BYTE = 0xFF  # in no UTF-8, so that padding makes no two words alike
LONGEST = 8  # bytes of a key


class TokenTable:
    """Which words are tokens by themselves: a hash table of arrays, one token a slot.

    A word's key is its bytes, padded to eight. Where tokens meet in a slot, that of the lowest
    rank is kept; longer tokens are left out. What is not found may be a token all the same.
    """

    BITS = 18  # five slots for each of GPT-2's tokens, 3 MB
    _FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth 6.4)
    # By length: what to put over the bytes behind a word. No key of a longer one is ever found.
    _PADDING = np.array(
        [(1 << 64) - (1 << 8 * n) for n in range(LONGEST + 1)] + [(1 << 64) - 1], np.uint64
    )

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """The ids are the places in `tokens`."""
        short = [i for i, token in enumerate(tokens) if len(token) <= LONGEST]
        short = [i for i in reversed(short) if NO_BYTE not in tokens[i]]  # the lowest comes last
        padded = b"".join(tokens[i].ljust(LONGEST, bytes([NO_BYTE])) for i in short)
        keys = np.frombuffer(padded, "<u8").astype(np.uint64)
        self._keys = np.full(1 << self.BITS, self._PADDING[-1])
        self._ids = np.full(1 << self.BITS, MISSING, np.uint32)
        slots = self._slots(keys)
        self._keys[slots] = keys
        self._ids[slots] = short

    def _slots(self, keys: Keys) -> Places:
        return (keys * self._FACTOR >> np.uint64(64 - self.BITS)).view(np.int64)

    def look_up(self, data: bytes, starts: Places) -> Uint32s:
        """For each word of `data`, which begin at `starts`, its id or `MISSING`; (W,).

        `data` is UTF-8, and no word is empty. Takes memory 8 times its size.
        """
        lengths = np.diff(starts, append=len(data))
        padded = data + bytes(LONGEST)
        windows = np.ndarray((len(data),), "<u8", padded, strides=(1,))  # eight bytes from each on
        keys = windows.take(starts) | self._PADDING.take(lengths, mode="clip")
        slots = self._slots(keys)
        ids = self._ids.take(slots)
        ids[self._keys.take(slots) != keys] = MISSING
        return ids


class Memory:
    """Ids of pieces of data, each learned once."""

    REMEMBERED = 200_000  # pieces of at most 64 bytes, about 30 MB

    def __init__(self, learn: Callable[[bytes], Uint32s]) -> None:
        """`learn` gives the ids of one piece, at least one."""
        self._learn = learn
        self._known: dict[bytes, bytes] = {}

    def look_up(self, data: bytes, begin: Places, end: Places) -> tuple[Uint32s, Places]:
        """The ids of pieces of `data` one after the other, and how many each has; (P,).

        Args:
            data: holds all pieces.
            begin, end: where each lies; (P,).
        """
        pieces, which = _distinct(data, begin, end)
        entries = [self._known.get(piece) or self._add(piece) for piece in pieces]
        ids = np.frombuffer(b"".join(entries), np.uint32)
        counts = np.array(list(map(len, entries)), np.int64) // ids.itemsize
        first = np.cumsum(counts) - counts
        return ids[ranges(first[which], counts[which])], counts[which]

    def _add(self, piece: bytes) -> bytes:
        ids = self._learn(piece).tobytes()
        if len(piece) <= 64:
            if len(self._known) >= self.REMEMBERED:
                self._known.clear()
            self._known[piece] = ids
        return ids


def _distinct(data: bytes, begin: Places, end: Places) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The different pieces among those that lie in `data`, and which of them each is; (P,)."""
    import pyarrow as pa

    lengths = end - begin
    joined = np.frombuffer(data, np.uint8)[ranges(begin, lengths)]
    offsets = np.append(0, np.cumsum(lengths))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(joined)]
    pieces = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(begin), buffers)
    found = pieces.dictionary_encode()
    # As they lie: `to_numpy` imports pandas at its first call, 0.3 s in each worker.
    which = np.frombuffer(found.indices.buffers()[1], np.int32, len(begin))
    return found.dictionary.to_pylist(), which


def replace(
    ids: Uint32s, begin: Places, lengths: Places, others: Uint32s, counts: Places
) -> Uint32s:
    """Stretches of `ids` replaced by others.

    Args:
        ids: (T,).
        begin: where each stretch begins, (S,), rising; they do not overlap.
        lengths: of each; (S,).
        others: what stands in their stead, one after the other.
        counts: how many of `others` each takes; (S,).
    """
    kept = np.ones(len(ids), bool)
    kept[ranges(begin, lengths)] = False
    replaced = np.empty(len(ids) - int(lengths.sum()) + len(others), ids.dtype)
    new = ranges(moved(begin, begin, counts - lengths), counts)
    old = np.ones(len(replaced), bool)
    old[new] = False
    replaced[old] = ids[kept]
    replaced[new] = others
    return replaced


def moved(places: Places, begin: Places, gains: Places) -> Places:
    """Where places have come to, once each stretch that begins before one has gained in length."""
    shifts: Places = np.append(0, np.cumsum(gains))
    return places + shifts[np.searchsorted(begin, places)]
