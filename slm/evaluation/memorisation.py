"""Memorisation: the longest span of a text that occurs word for word in the training tokens.

The training tokens are read once, a window at a time, so memory does not grow with them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm.evaluation.rolling_hash import HashedTokens, Hashes, HashFilter, token_values
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

HUMAN_QUANTILE = 0.95  # of held-out texts; the rest may be duplicates of training documents
MIN_COPY = 8  # tokens: shorter spans recur in any text
WINDOW = 1 << 20  # tokens hashed at a time


@dataclass(frozen=True)
class Copy:
    """A text's longest copied span: its first token and its length.

    Length 0 where there is none of at least MIN_COPY tokens.
    """

    start: int
    length: int


def copy_threshold(human: Sequence[int]) -> int:
    """The length that the longest copied spans of 95 % of held-out texts do not exceed."""
    return int(np.quantile(human, HUMAN_QUANTILE)) if human else 0


def memorised_share(copies: Sequence[int], human: Sequence[int]) -> float:
    """The share of texts whose longest copied span is longer than that of nearly all human texts.

    Args:
        copies, human: tokens of the longest copied span of each text, and of each held-out
            document. Human texts share templates with the training documents too.
    """
    threshold = copy_threshold(human)
    return sum(length > threshold for length in copies) / (len(copies) or 1)


def longest_copies(
    texts: Sequence[Ids], train: Iterable[Ids], vocab_size: int, *, blank: Collection[int] = ()
) -> list[Copy]:
    """For each text, its longest span that occurs in the training tokens.

    A run of MIN_COPY blanks or more is in no span: it is layout, and nobody's text.

    Args:
        texts: token ids, an array per text, without end-of-text.
        train: token ids, an array per shard; no copied span crosses an end-of-text.
        vocab_size: above every id.
        blank: ids of tokens that are only white space, as of `blank_ids`.

    >>> text, train = np.array([9, *range(10), 9]), np.array([5, *range(10), 5])
    >>> longest_copies([text, train[:7]], [train], vocab_size=10)  # 0 … 9; the other is too short
    [Copy(start=1, length=10), Copy(start=0, length=0)]
    """
    values = token_values(vocab_size + 1)  # the last is of no training token
    ids = [np.asarray(text, np.int64) for text in texts]  # of an empty text too
    shown = [np.where(_in_blank_run(text, blank), vocab_size, text) for text in ids]
    hashed = [HashedTokens(values[text]) for text in shown]
    overlap = max((len(text) for text in texts), default=0)
    copied = _CopiedSpans(hashed)
    for shard in train:
        for start in range(0, len(shard), WINDOW):
            copied.search(HashedTokens(values[shard[start : start + WINDOW + overlap]]))
    return [copied.longest(text) for text in hashed]


def blank_ids(tokenizer: Tokenizer, texts: Sequence[Ids]) -> set[int]:
    """The tokens of some texts that are only white space."""
    used = {int(token) for text in texts for token in np.unique(text)}
    return {token for token in used if tokenizer.decode_bytes([token]).isspace()}


def _in_blank_run(text: Ids, blank: Collection[int]) -> npt.NDArray[np.bool_]:
    """Whether each token of a text, (T,), is in a run of MIN_COPY blanks or more.

    With MIN_COPY = 2 and the tokens "a", " ", " ", "b", " ", "c":

        blank    0 1 1 0 1 0
        edges    1 3 | 4 5      the runs [1, 3) and [4, 5), of which the first is long enough
    """
    is_blank = np.isin(text, list(blank))
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_blank, [False]))))
    inside = np.zeros(len(text), bool)
    for start, stop in edges.reshape(-1, 2):
        inside[start:stop] = stop - start >= MIN_COPY
    return inside


class _CopiedSpans:
    """The spans of some texts that occur in the training tokens read so far, by their length.

    Spans are matched at MIN_COPY tokens first, then one token longer at a time. For the texts
    "ABCDE" and "BCX", the training tokens "ZABCDZBCX" and MIN_COPY = 3 (a letter is a token):

        length 3   spans ABC BCD CDE BCX    in train: ABC at 1, BCD at 2, BCX at 6
        length 4   spans ABCD BCDE          at 1, 2 and 6, the last past the end: ABCD at 1
        length 5   spans ABCDE              at 1: ABCDZ is none of them, so the search ends
    """

    def __init__(self, texts: Sequence[HashedTokens]) -> None:
        self.texts = texts
        self.spans: dict[int, Hashes] = {}  # length → hashes of all texts' spans, sorted
        self.copied: dict[int, Hashes] = {}  # length → those of them that occur in train
        self.filter = HashFilter(self._spans(MIN_COPY), bits=20)

    def _spans(self, length: int) -> Hashes:
        if length not in self.spans:
            every = [text.ngrams(length) for text in self.texts]
            self.spans[length] = np.unique(np.concatenate([*every, np.empty(0, np.uint64)]))
        return self.spans[length]

    def search(self, train: HashedTokens) -> None:
        """Record every span of the texts that occurs in a window of training tokens."""
        length = MIN_COPY
        starts = self.filter.candidates(train.ngrams(length))  # in train
        while len(starts):
            hashes = train.spans(starts, starts + length)
            matches = np.isin(hashes, self._spans(length))
            starts, hashes = starts[matches], hashes[matches]
            known = self.copied.get(length, np.empty(0, np.uint64))
            self.copied[length] = np.union1d(known, hashes)
            length += 1
            starts = starts[starts + length <= len(train)]

    def longest(self, text: HashedTokens) -> Copy:
        for length in sorted(self.copied, reverse=True):
            starts = np.flatnonzero(np.isin(text.ngrams(length), self.copied[length]))
            if len(starts):
                return Copy(int(starts[0]), length)
        return Copy(0, 0)
