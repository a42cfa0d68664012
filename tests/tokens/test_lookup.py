"""Looking pieces up: exact whatever the bytes, each encoded once, replaced in place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.tokens.tokenizer.lookup import MISSING, PieceCache, TokenTable, moved, replace

TOKENS = [bytes([i]) for i in range(256)] + [b"a\0", b"ab", b"\0\0", b"abcdefgh", b"abcdefghi"]
TABLE = TokenTable(TOKENS)
WORDS = st.lists(st.text("ab\0cdefghié", min_size=1, max_size=10), min_size=1, max_size=20)


@given(WORDS)
def test_an_id_is_that_of_the_token_with_these_bytes(words: list[str]) -> None:
    pieces = [word.encode() for word in words]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.append(0, ends[:-1])
    expected = [
        TOKENS.index(piece) if piece in TOKENS and len(piece) <= 8 else MISSING for piece in pieces
    ]
    assert TABLE.look_up(b"".join(pieces), starts).tolist() == expected


def as_bytes(piece: bytes) -> np.ndarray:
    return np.frombuffer(piece, np.uint8).astype(np.uint32)


def test_a_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PieceCache, "MAX_PIECES", 10)
    cache = PieceCache(as_bytes)
    data = bytes(range(200))
    begin = np.arange(199)
    for _ in range(2):
        ids, _ = cache.look_up(data, begin, begin + 2)
        assert ids.tolist() == [byte for i in range(199) for byte in (i, i + 1)]
        assert 0 < len(cache) <= 10
    cache.look_up(bytes(65), np.array([0]), np.array([65]))
    assert len(cache) <= 10


def test_a_cache_encodes_each_piece_once() -> None:
    encoded = []

    def encode(piece: bytes) -> np.ndarray:
        encoded.append(piece)
        return as_bytes(piece)

    cache = PieceCache(encode)
    begin, end = np.array([0, 2, 4, 5]), np.array([2, 4, 5, 7])
    for _ in range(2):
        ids, counts = cache.look_up(b"ababaab", begin, end)
        assert ids.tolist() == [*b"ababaab"]
        assert counts.tolist() == [2, 2, 1, 2]
    assert encoded == [b"ab", b"a"]


def test_replaced_stretches_may_grow_and_shrink() -> None:
    old = np.arange(6, dtype=np.uint32)
    begin, lengths, counts = np.array([1, 4]), np.array([2, 1]), np.array([1, 3])
    ids = replace(old, begin, lengths, np.array([90, 91, 92, 93], np.uint32), counts)
    assert ids.tolist() == [0, 90, 3, 91, 92, 93, 5]
    others = np.array([0, 1, 3, 4, 5])
    assert moved(others, begin, counts - lengths).tolist() == [0, 1, 2, 3, 6]
