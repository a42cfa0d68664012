"""Ids of pieces of text, looked up for many together.

Most words are single tokens: a `TokenTable` looks these up in numpy. The others are few and repeat
often: a `PieceCache` encodes each once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slm.tokens.tokenizer.pretokenize import Positions, ranges

Uint32s = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

MISSING = 0xFFFFFFFF  # no id
NO_BYTE = 0xFF  # in no UTF-8, so padding makes no two words equal
KEY_BYTES = 8


class TokenTable:
    """Which words are single tokens: a hash table of arrays, one token per slot.

    A word's key is its bytes, padded to eight: that of b"ab" is 0xFFFF_FFFF_FFFF_6261. Of tokens
    that share a slot the one of the lowest rank is kept, and longer tokens are left out, so a word
    without an id here may still be a token.

    >>> table = TokenTable([b"a", b"b", b"ab"])
    >>> table.look_up(b"abbbaa", np.array([0, 2, 3, 5])).tolist()  # ab, b, ba, a
    [2, 1, 4294967295, 0]
    """

    BITS = 18  # five slots for each of GPT-2's tokens, 3 MB
    _FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth 6.4)
    # By length: the bits to set after a word; of length 1 all but the lowest byte, 0xFFFF…FF00. The
    # last sets every bit, for longer words: no token has that key.
    _PADDING = np.array(
        [(1 << 64) - (1 << 8 * n) for n in range(KEY_BYTES + 1)] + [(1 << 64) - 1], np.uint64
    )

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """The ids are the positions in `tokens`."""
        short = [i for i, token in enumerate(tokens) if len(token) <= KEY_BYTES]
        short = [
            i for i in reversed(short) if NO_BYTE not in tokens[i]
        ]  # the lowest is written last
        padded = b"".join(tokens[i].ljust(KEY_BYTES, bytes([NO_BYTE])) for i in short)
        keys = np.frombuffer(padded, "<u8").astype(np.uint64)
        self._keys = np.full(1 << self.BITS, self._PADDING[-1])
        self._ids = np.full(1 << self.BITS, MISSING, np.uint32)
        slots = self._slots(keys)
        self._keys[slots] = keys
        self._ids[slots] = short

    def _slots(self, keys: Keys) -> Positions:
        return (keys * self._FACTOR >> np.uint64(64 - self.BITS)).view(np.int64)

    def look_up(self, data: bytes, starts: Positions) -> Uint32s:
        """The id of each word of `data`, or `MISSING`; (W,).

        Args:
            data: UTF-8, T bytes.
            starts: where each word begins; (W,), rising from 0. No word is empty.
        """
        lengths = np.diff(starts, append=len(data))  # (W,)
        padded = data + bytes(KEY_BYTES)
        windows = np.ndarray((len(data),), "<u8", padded, strides=(1,))  # (T,): 8 bytes from each
        keys = windows.take(starts) | self._PADDING.take(lengths, mode="clip")  # (W,)
        slots = self._slots(keys)
        ids = self._ids.take(slots)
        ids[self._keys.take(slots) != keys] = MISSING
        return ids


class PieceCache:
    """Ids of pieces of data, each piece encoded once.

    >>> cache = PieceCache(lambda piece: np.frombuffer(piece, np.uint8).astype(np.uint32))
    >>> ids, counts = cache.look_up(b"abcab", np.array([0, 2, 3]), np.array([2, 3, 5]))
    >>> ids.tolist(), counts.tolist()  # of ab, c and ab
    ([97, 98, 99, 97, 98], [2, 1, 2])
    """

    MAX_PIECES = 200_000  # about 30 MB
    MAX_PIECE_BYTES = 64  # longer ones rarely repeat

    def __init__(self, encode: Callable[[bytes], Uint32s]) -> None:
        """`encode` returns the ids of one piece, at least one."""
        self._encode = encode
        self._ids: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def look_up(self, data: bytes, begin: Positions, end: Positions) -> tuple[Uint32s, Positions]:
        """The ids of pieces of `data`, concatenated, and the number of ids of each; (P,).

        Args:
            data: contains all pieces.
            begin, end: where each begins and ends; (P,).
        """
        pieces, which = _distinct(data, begin, end)  # D pieces; (P,)
        entries = [self._ids.get(piece) or self._add(piece) for piece in pieces]
        ids = np.frombuffer(b"".join(entries), np.uint32)
        counts = np.array(list(map(len, entries)), np.int64) // ids.itemsize  # (D,)
        first = np.cumsum(counts) - counts  # (D,)
        return ids[ranges(first[which], counts[which])], counts[which]

    def _add(self, piece: bytes) -> bytes:
        ids = self._encode(piece).tobytes()
        if len(piece) <= self.MAX_PIECE_BYTES:
            if len(self._ids) >= self.MAX_PIECES:
                self._ids.clear()
            self._ids[piece] = ids
        return ids


def _distinct(
    data: bytes, begin: Positions, end: Positions
) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The different pieces among those in `data`, and which of them each is; (P,).

    >>> pieces, which = _distinct(b"abcab", np.array([0, 2, 3]), np.array([2, 3, 5]))
    >>> pieces, which.tolist()
    ([b'ab', b'c'], [0, 1, 0])
    """
    import pyarrow as pa

    lengths = end - begin
    joined = np.frombuffer(data, np.uint8)[ranges(begin, lengths)]
    offsets = np.append(0, np.cumsum(lengths))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(joined)]
    pieces = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(begin), buffers)
    encoded = pieces.dictionary_encode()
    # Not `to_numpy`: it imports pandas at its first call, 0.3 s in each worker.
    which = np.frombuffer(encoded.indices.buffers()[1], np.int32, len(begin))
    return encoded.dictionary.to_pylist(), which


def replace(
    ids: Uint32s, begin: Positions, lengths: Positions, others: Uint32s, counts: Positions
) -> Uint32s:
    """Stretches of `ids` replaced by others.

    Args:
        ids: (T,).
        begin: where each stretch begins, (S,), rising; they do not overlap.
        lengths: of each; (S,).
        others: the replacements, concatenated.
        counts: how many of `others` each takes; (S,).

    >>> ids, others = np.arange(10, 16), np.array([90, 91, 92, 93])
    >>> replace(ids, np.array([1, 4]), np.array([2, 1]), others, np.array([1, 3])).tolist()
    [10, 90, 13, 91, 92, 93, 15]

    There 11 12 became 90, and 14 became 91 92 93.
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


def moved(positions: Positions, begin: Positions, gains: Positions) -> Positions:
    """New positions, after each stretch that begins before one has gained in length.

    In the example of `replace` the stretches at 1 and 4 gain -1 and 2, so 10, 13 and 15 move:

    >>> moved(np.array([0, 3, 5]), np.array([1, 4]), np.array([-1, 2])).tolist()
    [0, 2, 6]
    """
    shifts: Positions = np.append(0, np.cumsum(gains))  # (S + 1,)
    return positions + shifts[np.searchsorted(begin, positions)]
