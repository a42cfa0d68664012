"""Which documents of a mixture are left out: exact duplicates across its sources.

Within a source its own cleaning has decided. Across sources a document is held out or trained on,
never both, and is trained on as a document of one source. Documents are equal if their tokens are.

The sources are in the order of their names. With documents 1 to 9, and those of `a` before `b`:

           train          val      kept of train   kept of val
    a      1 2 2 3        4 5      1 2 2 3         4 5
    b      2 4 6 7        5 8      6 7             8

Of `b`, 2 is in train of `a` and 4 in its val, so neither is trained on again; 5 is held out once.
The second 2 of `a` stays, unless the cleaning of `a` drops it (`exact_duplicates: everywhere`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from slm.errors import UserError
from slm.records import Shards
from slm.tokens.cleaning import Hashes, HashSet, Mask
from slm.tokens.shards.layout import Counts, Tokens
from slm.tokens.shards.reading import Excluded, document_blocks

TRAIN_IN_VAL = "train, also in val"
TRAIN_AGAIN = "train, also in a source before it"
VAL_AGAIN = "val, also in a source before it"
EXAMPLE_TOKENS = 60  # of a document that is left out, shown as an example
TRAIN_REASONS = (TRAIN_IN_VAL, TRAIN_AGAIN)  # by the number in the file of exclusions


@dataclass(frozen=True)
class Documents:
    """Whole documents that follow each other in a shard."""

    first: int  # token of the shard that they begin at
    tokens: Tokens  # of all of them, end-of-text before each; (T,)
    lengths: Counts  # tokens of each, end-of-text included; (N,)

    @property
    def starts(self) -> Counts:
        """Where each begins in `tokens`; (N,)."""
        starts: Counts = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def hashes(self) -> Hashes:
        """64 bits of each document's tokens; (N,)."""
        width = self.tokens.dtype.itemsize
        data = np.ascontiguousarray(self.tokens).data.cast("B")
        ends = (np.cumsum(self.lengths) * width).tolist()
        begins = [0, *ends[:-1]]
        digests = (
            blake2b(data[begin:end], digest_size=8).digest()
            for begin, end in zip(begins, ends, strict=True)
        )
        return np.frombuffer(b"".join(digests), "<u8")

    def sizes(self, token_bytes: Counts) -> Counts:
        """UTF-8 bytes of each; (N,). `token_bytes`: of each id."""
        sizes: Counts = np.add.reduceat(token_bytes[self.tokens], self.starts)
        return sizes


def read_documents(shards: Shards, name: str) -> Iterator[Documents]:
    """The documents of one file of shards, some megabytes at a time."""
    for first, tokens in document_blocks(shards.path / name, shards.eot):
        starts = np.flatnonzero(tokens == shards.eot)
        yield Documents(first, tokens, np.diff(np.append(starts, len(tokens))))


class Val:
    """The held-out documents of all sources, by their hashes: 8 bytes each."""

    def __init__(self, parts: Mapping[str, Shards]) -> None:
        self._all = HashSet()
        self._kept = {}
        self.left_lengths: list[Counts] = []  # of the documents that are not kept
        for name, shards in parts.items():
            hashes, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
            for file in shards.splits["val"].files:
                for documents in read_documents(shards, file):
                    hashes.append(documents.hashes)
                    lengths.append(documents.lengths)
            own = np.concatenate(hashes)
            self._kept[name] = kept = ~self._all.contains(own)
            self._all.add(own)
            self.left_lengths.append(np.concatenate(lengths)[~kept])

    def kept(self, name: str) -> Mask:
        """Which held-out documents of a source are in no source before it, in order; (N,)."""
        return self._kept[name]

    def contains(self, hashes: Hashes) -> Mask:
        """Which of these are held out of any source; (N,)."""
        return self._all.contains(hashes)


@dataclass
class Left:
    """What is left out of the train documents of one source."""

    ranges: list[Excluded] = field(default_factory=list)  # of tokens: file, start, stop, reason
    documents: dict[str, int] = field(default_factory=dict)  # reason → how many
    lengths: list[Counts] = field(default_factory=list)  # tokens of each such document
    by_file: dict[str, tuple[int, int, int]] = field(
        default_factory=dict
    )  # documents, tokens, bytes
    examples: dict[str, list[Tokens]] = field(default_factory=dict)

    def add(
        self, file: tuple[int, str], documents: Documents, why: Counts, token_bytes: Counts
    ) -> None:
        """Take in some documents of a file.

        Args:
            file: its number in the mixture, and its name in the source.
            why: of each document the number of its reason in TRAIN_REASONS, or -1; (N,).
        """
        number, name = file
        out = np.flatnonzero(why >= 0)
        if not len(out):
            return
        starts = documents.starts[out] + documents.first
        stops = starts + documents.lengths[out]
        self.lengths.append(documents.lengths[out])
        size = int(documents.sizes(token_bytes)[out].sum())
        counted = (len(out), int(documents.lengths[out].sum()), size)
        before = self.by_file.get(name, (0, 0, 0))
        self.by_file[name] = (
            before[0] + counted[0], before[1] + counted[1], before[2] + counted[2]
        )  # fmt: skip
        for i, reason in enumerate(TRAIN_REASONS):
            if count := int(np.count_nonzero(why[out] == i)):
                self.documents[reason] = self.documents.get(reason, 0) + count
                first = int(out[np.flatnonzero(why[out] == i)[0]])
                begin, length = int(documents.starts[first]), int(documents.lengths[first])
                shown = documents.tokens[begin + 1 : begin + min(length, EXAMPLE_TOKENS)].copy()
                self.examples.setdefault(reason, []).append(shown)
        self.ranges.append(np.column_stack([np.full(len(out), number), starts, stops, why[out]]))


def train_exclusions(
    parts: Mapping[str, Shards], val: Val, token_bytes: Counts, done: Callable[[int], None]
) -> dict[str, Left]:
    """Of each source, in order, what is left out of train.

    `done`: called with the tokens that were looked at, again and again.
    """
    earlier, number, looked_at = HashSet(), 0, 0
    every = {}
    for name, shards in parts.items():
        left, own = Left(), HashSet()
        for file in shards.splits["train"].files:
            for documents in read_documents(shards, file):
                hashes = documents.hashes
                why = np.full(len(hashes), -1)
                why[earlier.contains(hashes)] = TRAIN_REASONS.index(TRAIN_AGAIN)
                why[val.contains(hashes)] = TRAIN_REASONS.index(TRAIN_IN_VAL)
                left.add((number, file), documents, why, token_bytes)
                own.add(hashes)
                looked_at += len(documents.tokens)
                done(looked_at)
            number += 1
        for level in own.levels:
            earlier.add(level)
        check_left(name, shards.splits["train"].documents, left)
        every[name] = left
    return every


def check_left(name: str, documents: int, left: Left) -> None:
    """Raises UserError where a source has nothing to train on."""
    if documents <= sum(left.documents.values()):
        reasons = ", ".join(f"{count:,}: {reason}" for reason, count in left.documents.items())
        raise UserError(
            f"data.sources.{name}: none of its {documents:,} train documents is left ({reasons}): "
            "leave the source out, or give it documents of its own"
        )


def all_ranges(parts: Iterable[Left]) -> Excluded:
    """The rows of all files, as `shards.reading.excluded` returns them.

    Neighbours that are left out for one reason are one row: documents of file 0 at 3 to 5, 5 to 9
    and 12 to 14 are 3 to 9 and 12 to 14.
    """
    rows = np.concatenate([np.empty((0, 4), np.int64), *(r for left in parts for r in left.ranges)])
    file, start, stop, reason = rows.T
    new = (file[1:] != file[:-1]) | (start[1:] != stop[:-1]) | (reason[1:] != reason[:-1])
    first, last = np.append(True, new)[: len(rows)], np.append(new, True)[: len(rows)]
    return np.column_stack([file[first], start[first], stop[last], reason[first]])
