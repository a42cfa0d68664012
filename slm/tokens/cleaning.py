"""What is mended in documents or keeps them out, and the count of it.

`clean` looks at one document at a time. `Duplicates` sees all of them in order, those of val
before those of train where the dataset has both, so that what stands in val leaves train.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.config import CleanConfig

EXAMPLES = 3  # kept of each reason
EXAMPLE_CHARS = 120

EMPTY, TOO_SHORT, TOO_LONG, NOT_TEXT = "empty", "too short", "too long", "not text"
ACROSS_SPLITS, DUPLICATE, NEAR_DUPLICATE = "also in val", "duplicate", "near-duplicate"
FIXED = "text fixed"

PERMUTATIONS = 128  # values of a MinHash signature
SEED, SCHEME = 1, "affine32"  # of its hash functions
SHINGLE = 5  # words that near-duplicates are compared by at a time

Mask = npt.NDArray[np.bool_]  # of documents, (N,)
Hashes = npt.NDArray[np.uint64]  # of documents, (N,)
Signatures = npt.NDArray[np.uint32]  # of documents, (N, PERMUTATIONS), or (N, 0) where not needed


@dataclass
class Tally:
    """How many documents were dropped or changed for which reason, with the first examples."""

    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str, text: str) -> None:
        _count(self.dropped, reason, 1, [_shorten(text)])

    def change(self, reason: str, before: str, after: str) -> None:
        at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        begin = max(0, at - EXAMPLE_CHARS // 2)
        pair = [_shorten(before[begin:]), _shorten(after[begin:])]
        _count(self.changed, reason, 1, [pair])

    def add(self, other: "Tally") -> None:
        """Adds the counts of the documents that come next."""
        for mine, theirs in ((self.dropped, other.dropped), (self.changed, other.changed)):
            for reason, entry in theirs.items():
                _count(mine, reason, entry["documents"], entry["examples"])


def _count(entries: dict[str, dict[str, Any]], reason: str, count: int, examples: Any) -> None:
    entry = entries.setdefault(reason, {"documents": 0, "examples": []})
    entry["documents"] += count
    entry["examples"] = (entry["examples"] + examples)[:EXAMPLES]


def _shorten(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


# ---- one document -----------------------------------------------------------------------------


def clean(text: str, settings: CleanConfig, tally: Tally) -> str | None:
    """The document as it is encoded, or None where it is dropped; both are counted.

    A document of nothing but white space is empty and always dropped. Lengths are in characters
    and measured after mending.
    """
    if settings.fix_text:
        fixed = _fixer()(text)
        if fixed != text:
            tally.change(FIXED, text, fixed)
            text = fixed
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

    # Only what is surely broken: quotes, ligatures, line ends, NUL may be what the author meant.
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
    """The 8 bytes by which equal documents are known, and the split of each is drawn."""
    return hashlib.blake2b(data, digest_size=8).digest()


def signature(text: str) -> Signatures:
    """The MinHash of the document's runs of `SHINGLE` words, lower case; (PERMUTATIONS,)."""
    from datasketch import MinHash

    words = text.lower().split()
    count = max(1, len(words) - SHINGLE + 1)
    sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme=SCHEME)
    sketch.update_batch([" ".join(words[i : i + SHINGLE]).encode() for i in range(count)])
    values: Signatures = sketch.hashvalues
    return values


# ---- all documents ----------------------------------------------------------------------------


class HashSet:
    """A set of 64-bit hashes at 8 bytes each: sorted arrays, merged as they grow."""

    def __init__(self) -> None:
        self._levels: list[Hashes] = []

    def contains(self, hashes: Hashes) -> Mask:
        found = np.zeros(len(hashes), bool)
        for level in self._levels:
            at = np.searchsorted(level, hashes)
            found |= level[np.minimum(at, len(level) - 1)] == hashes
        return found

    def add(self, hashes: Hashes) -> Mask:
        """Adds them; True for each that was not there, nor earlier among them."""
        first = np.zeros(len(hashes), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        new = first & ~self.contains(hashes)
        if new.any():
            self._levels.append(np.sort(hashes[new]))
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            last = self._levels.pop()
            self._levels[-1] = np.sort(np.concatenate([self._levels[-1], last]))
        return new


class Duplicates:
    """Says of each document whether it, or one much like it, came before.

    Hashes of 64 bits: among 10 million documents the chance that any is dropped by mistake is
    below one in 100,000. Near-duplicates are held in memory, about 3 KB a document.
    """

    def __init__(self, settings: CleanConfig) -> None:
        self._everywhere = settings.exact_duplicates == "everywhere"
        self._near = settings.near_duplicates
        self._all = HashSet()
        self._val = HashSet()
        self._signatures: list[Signatures] = []
        if self._near is not None:
            from datasketch import MinHashLSH

            likely = min(self._near, 0.9)  # beyond, it finds next to nothing; `_is_near` decides
            self._lsh = MinHashLSH(threshold=likely, num_perm=PERMUTATIONS)

    def reasons(self, hashes: Hashes, signatures: Signatures, val: Mask) -> list[str]:
        """Why each of the next documents is dropped; empty for those that stay."""
        reasons = np.full(len(hashes), "", dtype=object)
        self._val.add(hashes[val])
        reasons[~val & self._val.contains(hashes)] = ACROSS_SPLITS
        if self._everywhere:
            reasons[(reasons == "") & ~self._all.add(hashes)] = DUPLICATE
        if self._near is not None:
            for i in np.flatnonzero(reasons == ""):
                if self._is_near(signatures[i]):
                    reasons[i] = NEAR_DUPLICATE
        found: list[str] = reasons.tolist()
        return found

    def _is_near(self, values: Signatures) -> bool:
        from datasketch import LeanMinHash

        sketch = LeanMinHash(seed=SEED, hashvalues=values, scheme=SCHEME)
        if any(
            np.mean(self._signatures[other] == values) >= self._near
            for other in self._lsh.query(sketch)
        ):
            return True
        self._lsh.insert(len(self._signatures), sketch)
        self._signatures.append(values)
        return False
