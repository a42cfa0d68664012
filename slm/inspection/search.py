"""Bytes that are looked for in the tokens of a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import read_tokens
from slm.tokens.tokenizer.bpe import Tokenizer

I64 = npt.NDArray[np.int64]
CHUNK_TOKENS = 1 << 19  # decoded together


@dataclass(frozen=True)
class Job:
    """A file that a worker looks through."""

    path: Path
    tokenizer: Path
    needle: bytes
    offset: int  # of the segment in the file
    length: int

    def __str__(self) -> str:
        return str(self.path)


def find_in_file(job: Job) -> tuple[I64, I64, I64]:
    """The tokens of a file that have some bytes: from, up to, and in which document; (N,) each.

    With the tokens |ab|c|, eot, |b|cd| the bytes "bc" are in the tokens 0 to 2 of document 0 and
    3 to 5 of document 1; "cb" is nowhere: no text continues in the next document.
    """
    tokenizer = Tokenizer.load(job.tokenizer)
    tokens = read_tokens(job.path)[job.offset : job.offset + job.length]
    documents = int(np.count_nonzero(read_tokens(job.path)[: job.offset] == tokenizer.eot))
    table = [*tokenizer.tokens, b"", *(text.encode() for text in tokenizer.special)]
    begins, ends, of = list[int](), list[int](), list[int]()
    for first, chunk in _whole_documents(tokens, tokenizer.eot):
        ids = chunk.tolist()
        data = b"".join(map(table.__getitem__, ids))
        at = data.find(job.needle)
        if at >= 0:
            after = np.cumsum(tokenizer.token_bytes[chunk])  # where each token ends
            borders = np.flatnonzero(chunk == tokenizer.eot)
        while at >= 0:
            begin = int(np.searchsorted(after, at, "right"))
            end = int(np.searchsorted(after, at + len(job.needle), "left")) + 1
            document = int(np.searchsorted(borders, begin, "right"))
            crosses = document < len(borders) and borders[document] < end
            if not crosses:
                begins.append(first + begin)
                ends.append(first + end)
                of.append(documents + document - 1)
            at = data.find(job.needle, at + (1 if crosses else len(job.needle)))
        documents += int(np.count_nonzero(chunk == tokenizer.eot))
    return np.array(begins, np.int64), np.array(ends, np.int64), np.array(of, np.int64)


def _whole_documents(tokens: Tokens, eot: int) -> Iterator[tuple[int, Tokens]]:
    """Pieces of whole documents, of `CHUNK_TOKENS` or one longer document, with their places."""
    start = 0
    while start < len(tokens):
        stop = min(start + CHUNK_TOKENS, len(tokens))
        borders = np.flatnonzero(tokens[start + 1 : stop] == eot)
        if stop < len(tokens):
            while not len(borders) and stop < len(tokens):
                stop = min(stop + CHUNK_TOKENS, len(tokens))
                borders = np.flatnonzero(tokens[start + 1 : stop] == eot)
            if len(borders) and stop < len(tokens):
                stop = start + 1 + int(borders[-1])
        yield start, tokens[start:stop]
        start = stop
