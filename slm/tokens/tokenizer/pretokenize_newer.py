"""The splitting of llama3, qwen2 and qwen35 into words, for many documents together.

Their patterns differ from GPT-2's: a word of letters takes any one sign before it with it, digits
are words of one or three, punctuation takes the newlines after it, white space ends at a newline.

    '[sS] … '[dD] | [^\\r\\n\\p{L}\\p{N}]?\\p{L}+ | \\p{N}{1,3} | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*
    | \\s*[\\r\\n]+ | \\s+(?!\\S) | \\s+
"""

import numpy as np

from slm.tokens.tokenizer.pretokenize import (
    DIGIT,
    LETTER,
    OTHER,
    SPACE,
    Bytes,
    Mask,
    Positions,
    changes_of_kind,
    join_non_ascii,
)


def word_starts(text: bytes, ends: Positions, digits: int) -> Positions:
    """Where words begin in concatenated UTF-8 documents; (W,).

    Near characters that are not ASCII, several words may be left in one piece, as in
    `pretokenize.word_starts`.

    Args:
        text: all documents, T bytes; not empty.
        ends: where each document ends; (N,), none is empty.
        digits: in a word at most.

    "He's .x \\n 12;\\n\\nab": a word begins where the kind of byte changes, and then

        text            H e ' s _ . x _ n _ 1 2 ; n n a b
        kind changes    x . x x x x x x . . x . x x . x .
        contraction     . . x - x . . . . . . . . . . . .   's is one word
        lone sign       (".x" would be one word, but its blank comes first)
        blank           . . . . x - x . . . . . . . . . .   takes the sign after it
        newline         . . . . . . . x . x . . . . . . .   white space ends after its last one
        digits          . . . . . . . . . . x x . . . . .   one each, where digits is 1
        newlines        . . . . . . . . . . . . x - - x .   belong to the sign before them

    >>> word_starts(b"He's .x \\n 12;\\n\\nab", np.array([17]), 1).tolist()
    [0, 2, 4, 6, 7, 9, 10, 11, 12, 15]
    """
    data, kinds, opens, starts = changes_of_kind(text, ends)
    before = np.append(np.uint8(0), data[:-1])  # the byte before, (T,)
    blank = (before == ord(" ")) & ~opens[:-1]  # whether it is a blank of the same document
    _split_digits(kinds, starts, digits)
    _join_signs(data, kinds, opens, starts, blank)
    _split_spaces(data, kinds, opens, starts)
    join_non_ascii(data, kinds, opens, starts)
    return np.flatnonzero(starts[:-1])


def _split_digits(kinds: Bytes, starts: Mask, digits: int) -> None:
    """Digits are words of so many, counted from the first: 1234 is 123 and 4 where it is three."""
    at = np.flatnonzero(kinds == DIGIT)  # (D,)
    if len(at):
        first = np.maximum.accumulate(np.where(starts[at], at, 0))  # of the run of each, (D,)
        starts[at] |= (at - first) % digits == 0


def _join_signs(data: Bytes, kinds: Bytes, opens: Mask, starts: Mask, blank: Mask) -> None:
    """A single sign and the letters after it are a word, unless a blank comes before; 's is one."""
    is_sign = kinds == OTHER
    follows = np.append(kinds[1:], np.uint8(SPACE))  # the kind of the next byte, (T,)
    lone = is_sign & starts[:-1] & ~blank & (follows == LETTER) & ~opens[1:]
    at = np.flatnonzero(lone)  # (S,)
    starts[at + 1] = False
    quotes = at[data[at] == ord("'")]  # (Q,)
    padded = np.append(data, np.zeros(2, np.uint8)) | np.uint8(0x20)  # letters in lower case
    first, second = padded[quotes + 1], padded[quotes + 2]
    within = ~np.append(opens, True)[quotes + 2]
    short = np.isin(first, [*b"stmd"])
    long = within & np.isin(first.astype(np.uint16) << 8 | second, _PAIRS)
    starts[quotes[short] + 2] = True
    starts[quotes[long] + 3] = True


_PAIRS = [pair[0] << 8 | pair[1] for pair in (b"re", b"ve", b"ll")]


def _split_spaces(data: Bytes, kinds: Bytes, opens: Mask, starts: Mask) -> None:
    """Newlines after a sign belong to it; other white space ends after its last newline.

    What is left of it ends before its last byte, which goes to letters, or to a sign if it is a
    blank, and is a word where a digit follows.
    """
    space = kinds == SPACE
    newline = (data == ord("\n")) | (data == ord("\r"))
    follows = np.append(kinds[1:], np.uint8(SPACE))  # the kind of the next byte, (T,)
    # The last byte of a run that something follows in its document, where it is no newline.
    last = space & starts[1:] & ~opens[1:] & ~newline  # (T,)
    newlines = np.flatnonzero(newline)
    if len(newlines):
        begin = np.flatnonzero(space & starts[:-1])  # of runs of white space, (R,)
        which = np.searchsorted(begin, newlines, "right")  # the run of each newline, (N,)
        starts[newlines[np.diff(which, append=-1) != 0] + 1] = True
        _join_newlines(kinds, opens, starts, newlines)
    starts[:-1] |= last
    joins = (follows == LETTER) | (follows == OTHER) & (data == ord(" "))
    starts[1:] &= ~(last & joins)


def _join_newlines(kinds: Bytes, opens: Mask, starts: Mask, newlines: Positions) -> None:
    """Newlines that follow a sign at once are no word of their own; what follows them is."""
    first = np.diff(newlines, prepend=-2) != 1  # of neighbours, (N,)
    first |= opens[newlines]
    last = np.append(first[1:], True)
    heads, tails = newlines[first], newlines[last]
    after_sign = ~opens[heads] & (kinds[heads - 1] == OTHER)
    starts[heads[after_sign]] = False
    starts[tails[after_sign] + 1] = True
