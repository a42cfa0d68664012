"""What is repaired in documents, what drops them, and how many of each.

`clean` sees one document at a time. `Duplicates` sees all of them in order, those of val before
those of train where the dataset has both, so a document of val is dropped from train.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.config import CleanConfig
from slm.extras import require

EXAMPLES = 3  # kept of each reason
EXAMPLE_CHARS = 120

EMPTY, TOO_SHORT, TOO_LONG = "empty", "too short", "too long"
ALSO_IN_VAL, ALSO_IN_TRAIN = "also in val", "also in train"
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near-duplicate"
FIXED, MAPPED = "text fixed", "by data.clean.map"
BY_FUNCTION = "by data.clean.filter or map"

PERMUTATIONS = 128  # values of a MinHash signature
SEED, SCHEME = 1, "affine32"  # of its hash functions
SHINGLE_WORDS = 5  # near-duplicates share most of their runs of so many words

Mask = npt.NDArray[np.bool_]  # of documents, (N,)
Hashes = npt.NDArray[np.uint64]  # of documents, (N,)
Signatures = npt.NDArray[np.uint32]  # of documents, (N, PERMUTATIONS), or (N, 0) where not needed
Places = npt.NDArray[np.unsignedinteger[Any]]  # the rows of documents in the source, (N,)


def _ignore(reason: str, text: str) -> None:
    pass


@dataclass
class Tally:
    """How many documents were dropped or changed for which reason, with the first examples."""

    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    on_drop: Callable[[str, str], None] = field(default=_ignore, compare=False)  # reason, text

    def drop(self, reason: str, text: str) -> None:
        _count(self.dropped, reason, 1, [shorten(text)])
        self.on_drop(reason, text)

    def change(self, reason: str, before: str, after: str) -> None:
        at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        begin = max(0, at - EXAMPLE_CHARS // 2)
        pair = [shorten(before[begin:]), shorten(after[begin:])]
        _count(self.changed, reason, 1, [pair])

    def add(self, other: "Tally") -> None:
        """Add the counts of the documents that come next."""
        for total, more in ((self.dropped, other.dropped), (self.changed, other.changed)):
            for reason, entry in more.items():
                _count(total, reason, entry["documents"], entry["examples"])


def _count(entries: dict[str, dict[str, Any]], reason: str, count: int, examples: Any) -> None:
    entry = entries.setdefault(reason, {"documents": 0, "examples": []})
    entry["documents"] += count
    entry["examples"] = (entry["examples"] + examples)[:EXAMPLES]


def shorten(text: str) -> str:
    """The beginning of a text, of at most `EXAMPLE_CHARS` characters."""
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


def check_extras(settings: CleanConfig) -> None:
    """Raises UserError where a setting needs a library that is not installed."""
    if settings.fix_text:
        require("ftfy", "data.clean.fix_text=true")
    if settings.near_duplicates is not None:
        require("datasketch", f"data.clean.near_duplicates={settings.near_duplicates}")


# ---- one document -----------------------------------------------------------------------------


def clean(
    text: str, settings: CleanConfig, tally: Tally, own: Callable[[str], str | None] | None = None
) -> str | None:
    """The document as it is encoded, or None where it is dropped; both are counted.

    A document of nothing but white space is empty and always dropped. Lengths are in characters,
    of the repaired text.

    `own`: the user's functions, which see what is not empty; None drops a document.
    """
    if settings.fix_text:
        fixed = _fixer()(text)
        if fixed != text:
            tally.change(FIXED, text, fixed)
            text = fixed
    if own and text and not text.isspace():
        given, before = own(text), text
        if given is None:
            tally.drop(BY_FUNCTION, text)
            return None
        if given != before:
            tally.change(MAPPED, before, given)
            text = given
    if not text or text.isspace():
        tally.drop(EMPTY, text)
    elif len(text) < settings.min_chars:
        tally.drop(TOO_SHORT, text)
    elif settings.max_chars is not None and len(text) > settings.max_chars:
        tally.drop(TOO_LONG, text)
    else:
        return text
    return None


@cache
def _fixer() -> Callable[[str], str]:
    import ftfy

    # Only what is surely broken: the author may have meant quotes, ligatures, line ends, NUL.
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        explain=False,
    )
    return lambda text: ftfy.fix_text(text, config)


def document_hash(data: bytes) -> bytes:
    """The 8 bytes by which equal documents are recognised, and the split of each is drawn."""
    return hashlib.blake2b(data, digest_size=8).digest()


def signature(text: str) -> Signatures:
    """The MinHash of the document's runs of `SHINGLE_WORDS` words, lower case; (PERMUTATIONS,)."""
    from datasketch import MinHash

    words = text.lower().split()
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme=SCHEME)
    sketch.update_batch([" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(count)])
    values: Signatures = sketch.hashvalues
    return values


# ---- all documents ----------------------------------------------------------------------------


class HashSet:
    """A set of 64-bit hashes at 8 bytes each: sorted arrays, merged as they grow.

    With each hash goes the row that it was added with, at 4 bytes.

    Each of the `levels` is at least twice as long as the next, so N hashes are in at most log2(N)
    of them, and each hash is merged as often.

    >>> seen = HashSet()
    >>> seen.add(np.array([7, 3, 7], np.uint64)).tolist()
    [True, True, False]
    >>> seen.add(np.array([3, 9], np.uint64)).tolist()
    [False, True]
    >>> [level.tolist() for level in seen.levels]
    [[3, 7], [9]]
    >>> seen.add(np.array([1], np.uint64)).tolist()  # [1] joins [9], and [1, 9] joins [3, 7]
    [True]
    >>> [level.tolist() for level in seen.levels]
    [[1, 3, 7, 9]]
    """

    def __init__(self) -> None:
        self.levels: list[Hashes] = []
        self._places: list[Places] = []  # of each level

    def contains(self, hashes: Hashes) -> Mask:
        return self.find(hashes) >= 0

    def find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """The row that each was added with; -1 for what is not in the set; (N,)."""
        rows = np.full(len(hashes), -1, np.int64)
        for level, places in zip(self.levels, self._places, strict=True):
            at = np.minimum(np.searchsorted(level, hashes), len(level) - 1)
            present = level[at] == hashes
            rows[present] = places[at[present]]
        return rows

    def add(self, hashes: Hashes, places: Places | None = None) -> Mask:
        """Add them; True for each that was neither in the set nor earlier among them; (N,).

        `places`: their rows; None: all are 0.
        """
        places = np.zeros(len(hashes), np.uint32) if places is None else places
        first = np.zeros(len(hashes), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        new = first & ~self.contains(hashes)
        if new.any():
            order = np.argsort(hashes[new])
            self.levels.append(hashes[new][order])
            self._places.append(places[new][order])
        while len(self.levels) > 1 and len(self.levels[-2]) < 2 * len(self.levels[-1]):
            level = np.concatenate(self.levels[-2:])
            order = np.argsort(level, kind="stable")  # which merges two sorted runs in O(N)
            merged = np.concatenate(self._places[-2:])[order]
            self.levels[-2:], self._places[-2:] = [level[order]], [merged]
        return new


class Duplicates:
    """Decides of each document whether it, or one much like it, came before.

    Hashes of 64 bits: among 10 million documents the chance that any is dropped by mistake is
    below one in 100,000. Near-duplicates are kept in memory, about 3 KB per document.
    """

    def __init__(self, settings: CleanConfig) -> None:
        self._everywhere = settings.exact_duplicates == "everywhere"
        self._near = settings.near_duplicates
        self._all = HashSet()
        self._train, self._val = HashSet(), HashSet()
        # Else equal documents are in one split anyway, or all of val comes before train.
        self._keeps_train = settings.changes_text
        self._signatures: list[Signatures] = []
        self._near_places: list[int] = []
        if self._near is not None:
            from datasketch import MinHashLSH

            threshold = min(
                self._near, 0.9
            )  # above, it finds next to nothing; `_find_near` decides
            self._lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)

    def decide(
        self, hashes: Hashes, signatures: Signatures, val: Mask, places: Places
    ) -> tuple[list[str], list[int]]:
        """Why each of the next documents is dropped, and the row of the one that it is a copy of.

        Empty and -1 for those that stay. `places`: the rows of the documents.
        """
        reasons = np.full(len(hashes), "", dtype=object)
        originals = np.full(len(hashes), -1, np.int64)
        crosses = self._crosses(hashes, val, places)
        for here, reason, other in (
            (crosses & val, ALSO_IN_TRAIN, self._train),
            (crosses & ~val, ALSO_IN_VAL, self._val),
        ):
            reasons[here], originals[here] = reason, other.find(hashes[here])
        if self._everywhere:
            again = (reasons == "") & ~self._all.add(hashes, places)
            reasons[again], originals[again] = DUPLICATE, self._all.find(hashes[again])
        if self._near is not None:
            for i in np.flatnonzero(reasons == ""):
                near = self._find_near(signatures[i], int(places[i]))
                if near is not None:
                    reasons[i], originals[i] = NEAR_DUPLICATE, near
        return reasons.tolist(), originals.tolist()

    def _crosses(self, hashes: Hashes, val: Mask, places: Places) -> Mask:
        """Whether a document came before in the other split; (N,). The first of equals decides.

        Of hashes [5, 5, 8, 5] with val [F, T, T, F] the first 5 is in train, so the second goes:
        [F, T, F, F]. A later batch [8] of train goes as well, since 8 is in val.
        """
        _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        in_val = val[first][which]  # (N,): the split of the first equal document
        in_val[self._val.contains(hashes)] = True
        in_val[self._train.contains(hashes)] = False
        self._val.add(hashes[in_val & val], places[in_val & val])
        if self._keeps_train:
            self._train.add(hashes[~in_val & ~val], places[~in_val & ~val])
        crosses: Mask = in_val != val
        return crosses

    def _find_near(self, values: Signatures, place: int) -> int | None:
        """The row of the first document that is much like this one; None: this is another one."""
        from datasketch import LeanMinHash

        sketch = LeanMinHash(seed=SEED, hashvalues=values, scheme=SCHEME)
        near: list[int] = [
            other
            for other in self._lsh.query(sketch)
            if np.mean(self._signatures[other] == values) >= self._near
        ]
        if near:
            return self._near_places[min(near)]
        self._lsh.insert(len(self._signatures), sketch)
        self._signatures.append(values)
        self._near_places.append(place)
        return None
