"""GPT-2's splitting of text into words, at speed.

Each word is encoded by itself, so whatever splits alike encodes alike. GPT-2's own pattern

    '(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s

needs a backtracking engine for its look-ahead, which is slow, and fails on long runs of spaces.
Here are two ways around it: `segments` with `PLAIN_PATTERN` for any text, and `word_starts` for
many documents at once, in numpy.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LONGEST_WORD = 1 << 20
"""Characters; a longer word is cut, for the work on it takes memory 50 times its length."""

# ---- any text ---------------------------------------------------------------------------------

# GPT-2's pattern without its look-ahead. It splits alike but for runs of three spaces and more
# with a word behind them: there GPT-2 takes all but the last as one word. `segments` cuts there.
PLAIN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s"

_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode White_Space
_LONG_SPACE = re.compile(rf"[{_WHITE}]{{3,}}+")
_UNBROKEN = re.compile(rf"[^{_WHITE}]++")


def segments(text: str) -> Iterator[str]:
    """The text cut where words end anyway, so that `PLAIN_PATTERN` splits it as GPT-2's does."""
    start = 0
    for run in _LONG_SPACE.finditer(text):
        end = run.end() if run.end() == len(text) else run.end() - 1
        yield from _bounded(text[start : run.start()])
        for begin in range(run.start(), end, LONGEST_WORD):
            yield text[begin : min(begin + LONGEST_WORD, end)]
        start = end
    yield from _bounded(text[start:])


def _bounded(text: str) -> Iterator[str]:
    """The text cut within its unbroken runs that are longer than `LONGEST_WORD`."""
    start = 0
    if len(text) > LONGEST_WORD:
        for run in _UNBROKEN.finditer(text):
            begin = run.start()
            while run.end() - begin > LONGEST_WORD:
                begin = _word_end(text, begin, begin + LONGEST_WORD)
                yield text[start:begin]
                start = begin
    if start < len(text):
        yield text[start:]


def _word_end(text: str, start: int, stop: int) -> int:
    """The last place where a letter meets a sign, which is never within a word; else `stop`."""
    for i in range(stop, start, -1):
        if text[i - 1].isalpha() and unicodedata.category(text[i])[0] in "PS":
            return i
    return stop


# ---- many documents ---------------------------------------------------------------------------

_SIGN, _LETTER, _DIGIT, _SPACE, _UNCLEAR = range(5)
_KINDS = np.full(256, _SIGN, np.uint8)
_KINDS[[*b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = _LETTER
_KINDS[[*b"0123456789"]] = _DIGIT
_KINDS[[*b" \t\n\v\f\r"]] = _SPACE
# Bytes that other white space may begin with, or that begin nothing.
_KINDS[[*range(0x80, 0xC3), *range(0xE1, 0xE4)]] = _UNCLEAR

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def word_starts(text: bytes, ends: Places) -> Places:
    """Where words begin in documents that stand one after the other, as UTF-8.

    All words begin here but those that have other than ASCII characters near them: there a
    stretch of several words may be left in one piece, which begins and ends where words do.

    Args:
        text: all documents; not empty.
        ends: where each document ends; (N,), none is empty.
    """
    data = np.frombuffer(text, np.uint8)
    kinds = np.frombuffer(text.translate(_KINDS.tobytes()), np.uint8)
    opens = np.zeros(len(data) + 1, bool)  # the first byte of each document, and the end
    opens[0] = True
    opens[ends] = True
    starts = opens.copy()
    starts[1:-1] |= kinds[1:] != kinds[:-1]
    # The last space of a run is for itself where a word follows; a blank takes that word along.
    last_space = (kinds == _SPACE) & starts[1:] & ~opens[1:]
    starts[:-1] |= last_space
    blank = last_space & (data == ord(" "))
    starts[1:] &= ~blank
    _take_contractions(data, opens, starts)
    foreign = np.flatnonzero(data >= 0x80)
    if len(foreign):
        # What is sure to begin a word: a document, and a blank before what is no space for sure.
        opens[:-2] |= blank[:-1] & (kinds[1:] < _SPACE)
        _join_around(foreign, np.flatnonzero(opens), starts)
    return np.flatnonzero(starts[:-1])


def _take_contractions(data: Bytes, opens: Mask, starts: Mask) -> None:
    """'s 't 'd 'm 'll 've 're are words where a word begins with them, whatever follows."""
    signs = np.flatnonzero((data == ord("'")) & starts[:-1])
    padded = np.append(data, np.zeros(2, np.uint8))
    first, second = padded[signs + 1], padded[signs + 2]
    within = ~opens[signs + 1]
    short = within & np.isin(first, [*b"stdm"])
    within &= ~np.append(opens, True)[signs + 2]
    long = within & np.isin(first.astype(np.uint16) << 8 | second, _PAIRS)
    starts[signs[short | long] + 1] = False
    starts[signs[short] + 2] = True
    starts[signs[long] + 3] = True


_PAIRS = [pair[0] << 8 | pair[1] for pair in (b"ll", b"ve", b"re")]


def _join_around(places: Places, borders: Places, starts: Mask) -> None:
    """Makes one piece of each stretch between two borders that has any of the places in it."""
    stretches = np.unique(np.searchsorted(borders, places, "right"))
    begin = borders[stretches - 1] + 1
    starts[ranges(begin, borders[stretches] - begin)] = False


def ranges(begin: Places, lengths: Places) -> Places:
    """The whole numbers from each beginning on, as many as its length says, one after the other."""
    offsets = np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    return offsets + np.arange(len(offsets))
