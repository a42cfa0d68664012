"""GPT-2's splitting of text into words, at speed.

Each word is encoded alone, so what splits alike encodes alike. GPT-2's own pattern

    '(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s

needs a backtracking engine for its look-ahead, which is slow, and fails on long runs of spaces.
There are two ways around it here: `segments` with a plain pattern for any text, and `word_starts`
in numpy for many documents together. `pretokenize_newer` has the latter for other patterns.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

MAX_WORD_CHARS = 1 << 20
"""A longer word is cut: encoding one takes memory 50 times its length."""

# ---- any text ---------------------------------------------------------------------------------

_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode White_Space
_LONG_SPACE = re.compile(rf"[{_WHITE}]{{3,}}+")
_UNBROKEN = re.compile(rf"[^{_WHITE}]++")


def segments(text: str, *, newer: bool = False) -> Iterator[str]:
    """The text cut where words end anyway, so that the plain form of a pattern splits it alike.

    That form has no look-ahead, and splits runs of three spaces or more otherwise: there GPT-2's
    takes all but the last as one word.

    >>> list(segments("a    b"))  # GPT-2's words: "a", three spaces, " b"
    ['a', '   ', ' b']

    `newer`: of other patterns than GPT-2's, in which signs and newlines before such a run are in a
    word with its beginning: it is cut before its last space alone.
    """
    start = 0
    if newer:
        for run in _LONG_SPACE.finditer(text):
            cuts = [*range(run.start() + MAX_WORD_CHARS, run.end(), MAX_WORD_CHARS)]
            if run.end() < len(text) and text[run.end() - 1] not in "\r\n":
                cuts.append(run.end() - 1)
            for cut in cuts:
                yield from _bounded(text[start:cut])
                start = cut
        yield from _bounded(text[start:])
        return
    for run in _LONG_SPACE.finditer(text):
        end = run.end() if run.end() == len(text) else run.end() - 1
        yield from _bounded(text[start : run.start()])
        for begin in range(run.start(), end, MAX_WORD_CHARS):
            yield text[begin : min(begin + MAX_WORD_CHARS, end)]
        start = end
    yield from _bounded(text[start:])


def _bounded(text: str) -> Iterator[str]:
    """The text cut within its unbroken runs that are longer than `MAX_WORD_CHARS`."""
    start = 0
    if len(text) > MAX_WORD_CHARS:
        for run in _UNBROKEN.finditer(text):
            begin = run.start()
            while run.end() - begin > MAX_WORD_CHARS:
                begin = _word_end(text, begin, begin + MAX_WORD_CHARS)
                yield text[start:begin]
                start = begin
    if start < len(text):
        yield text[start:]


def _word_end(text: str, start: int, stop: int) -> int:
    """The last position between a letter and punctuation, never within a word; else `stop`."""
    for i in range(stop, start, -1):
        if text[i - 1].isalpha() and unicodedata.category(text[i])[0] in "PS":
            return i
    return stop


# ---- many documents ---------------------------------------------------------------------------

OTHER, LETTER, DIGIT, SPACE, UNCLEAR = range(5)
_KINDS = np.full(256, OTHER, np.uint8)
_KINDS[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = LETTER
_KINDS[[*b"0123456789"]] = DIGIT
_KINDS[[*b" \t\n\v\f\r"]] = SPACE
# Bytes that may begin other white space, or that begin no character.
_KINDS[[*range(0x80, 0xC3), *range(0xE1, 0xE4)]] = UNCLEAR

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def kinds_of(text: bytes) -> Bytes:
    """The kind of each byte, (T,)."""
    return np.frombuffer(text.translate(_KINDS.tobytes()), np.uint8)


def word_starts(text: bytes, ends: Positions) -> Positions:
    """Where words begin in concatenated UTF-8 documents; (W,).

    Near characters that are not ASCII, several words may be left in one piece, which begins and
    ends where words do.

    Args:
        text: all documents, T bytes; not empty.
        ends: where each document ends; (N,), none is empty.

    Two documents, "It's  2 cats" and "Hi", and what each rule changes:

        text            I t ' s _ _ 2 _ c a t s H i
        kind            L L O L _ _ D _ L L L L L L   (letter, other, space, digit)
        new kind        x . x x x . x x x . . . x .   a word begins where the kind changes
        last space      x . x x x X x X x . . . x .   a run's last space begins one as well ...
        blank           x . x x x x - x - . . . x .   ... and, if a blank, takes the next word
        contractions    x . x - X x . x . . . . x .   's is one word, and another follows it

    >>> word_starts(b"It's  2 catsHi", np.array([12, 14])).tolist()
    [0, 2, 4, 5, 7, 12]

    They are "It", "'s", " ", " 2", " cats" and "Hi".
    """
    data, kinds, opens, starts = changes_of_kind(text, ends)
    last_space = (kinds == SPACE) & starts[1:] & ~opens[1:]  # (T,)
    starts[:-1] |= last_space
    blank = last_space & (data == ord(" "))  # (T,)
    starts[1:] &= ~blank
    _mark_contractions(data, opens, starts)
    join_non_ascii(data, kinds, opens, starts)
    return np.flatnonzero(starts[:-1])


def changes_of_kind(text: bytes, ends: Positions) -> tuple[Bytes, Bytes, Mask, Mask]:
    """The bytes of documents, their kinds, and where documents and words may begin.

    A word begins with a document, and where the kind of byte changes. The bytes and kinds are (T,);
    the masks are (T + 1,): of the first bytes, and of the end.
    """
    data, kinds = np.frombuffer(text, np.uint8), kinds_of(text)
    opens = np.zeros(len(data) + 1, bool)
    opens[0] = True
    opens[ends] = True
    starts = opens.copy()
    starts[1:-1] |= kinds[1:] != kinds[:-1]
    return data, kinds, opens, starts


def join_non_ascii(data: Bytes, kinds: Bytes, opens: Mask, starts: Mask) -> None:
    """Make one piece of what is around bytes that are not ASCII; what `opens` holds is lost.

    Only these are sure to begin a word: a document, and a blank before a byte that is certainly no
    space.
    """
    positions = np.flatnonzero(data >= 0x80)
    if not len(positions):
        return
    blank = (data[:-1] == ord(" ")) & (kinds[1:] < SPACE) & ~opens[1:-1]
    opens[:-2] |= blank
    _join_around(positions, np.flatnonzero(opens), starts)


def _mark_contractions(data: Bytes, opens: Mask, starts: Mask) -> None:
    """'s 't 'd 'm 'll 've 're are words where a word begins with them, whatever follows.

    In "we'llgo" words began at 0, at the quote 2 and, as the kind changes, at 3. Now they begin at
    0, 2 and 5: "we", "'ll", "go".
    """
    quotes = np.flatnonzero((data == ord("'")) & starts[:-1])  # (Q,)
    padded = np.append(data, np.zeros(2, np.uint8))
    first, second = padded[quotes + 1], padded[quotes + 2]
    within = ~opens[quotes + 1]  # whether the byte after the quote is of the same document
    short = within & np.isin(first, [*b"stdm"])
    within &= ~np.append(opens, True)[quotes + 2]
    long = within & np.isin(first.astype(np.uint16) << 8 | second, _PAIRS)
    starts[quotes[short | long] + 1] = False
    starts[quotes[short] + 2] = True
    starts[quotes[long] + 3] = True


_PAIRS = [pair[0] << 8 | pair[1] for pair in (b"ll", b"ve", b"re")]


def _join_around(positions: Positions, borders: Positions, starts: Mask) -> None:
    """Make one piece of each stretch between two borders that has any of the positions in it.

    With borders 0, 4 and 9 and a position 6, nothing begins at 5 to 8 any more.
    """
    stretches = np.unique(np.searchsorted(borders, positions, "right"))  # 2 ends at borders[2]
    begin = borders[stretches - 1] + 1
    starts[ranges(begin, borders[stretches] - begin)] = False


def ranges(begin: Positions, lengths: Positions) -> Positions:
    """For each beginning as many whole numbers as its length, from it on; concatenated.

    >>> ranges(np.array([5, 9]), np.array([3, 2])).tolist()
    [5, 6, 7, 9, 10]

    The offsets 5 5 5 6 6, plus 0 1 2 3 4: each run's beginning less what is before it.
    """
    offsets = np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    return offsets + np.arange(len(offsets))
