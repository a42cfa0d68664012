"""val_loss and bits per byte: how many nats a model spends on a document, each scored once.

A document is scored as the sequence `end-of-text, tokens…, end-of-text`: every token and the
closing end-of-text is predicted from what precedes it in the document. What is longer than the
context is scored in windows that overlap by half, so that, past the first window, every token has
at least half a context before it. Bits per byte divides by the document's UTF-8 bytes, so it
compares models with different vocabularies.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.gpt import GPT
from slm.tokens.tokenizer.bpe import Ids

Measure = Callable[[Tensor, Tensor], Tensor]  # logits (N, V), targets (N,) → (N, K) figures
BATCH_TOKENS = 8192  # positions scored at a time; (BATCH_TOKENS × V) logits are made in chunks
LOGIT_CHUNK = 1024
MAX_LOSS = 745.0  # nats per token beyond which a model has diverged: e⁻⁷⁴⁵ is float64's least


class DocumentScore(NamedTuple):
    """What a model spends on a document."""

    nats: float
    tokens: int  # predicted: the document's and its closing end-of-text
    bytes: int


@dataclass(frozen=True)
class Score:
    """What a model spends on a set of documents."""

    nats: float
    tokens: int
    bytes: int
    documents: int
    by_source: dict[str, "Score"] = field(default_factory=dict)  # where there are several

    @classmethod
    def total(cls, documents: Sequence[DocumentScore]) -> "Score":
        return cls(
            nats=math.fsum(document.nats for document in documents),
            tokens=sum(document.tokens for document in documents),
            bytes=sum(document.bytes for document in documents),
            documents=len(documents),
        )

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def val_bpb(self) -> float:
        return bits_per_byte(self.nats, self.bytes)

    def figures(self) -> dict[str, Any]:
        """documents, tokens, bytes, val_loss in nats per token, val_bpb in bits per UTF-8 byte."""
        fields = ("documents", "tokens", "bytes", "val_loss", "val_bpb")
        return {name: getattr(self, name) for name in fields}


def bits_per_byte(nats: float, size: int) -> float:
    """`nats` spent on `size` UTF-8 bytes, in bits per byte; NaN for no bytes."""
    return nats / math.log(2) / size if size else math.nan


@dataclass(frozen=True)
class Window:
    """A stretch of a document's sequence that fits the context."""

    document: int
    start: int  # of the window in the sequence
    first: int  # first prediction that counts, within the window
    ids: Ids  # the window's tokens and the one after them


def windows(documents: Iterable[Ids], eot: int, seq_len: int) -> list[Window]:
    """The windows of some documents; each prediction counts in exactly one of them.

    With a context of 4, the 8 predictions of a document of 7 tokens (0 is end-of-text):

    >>> for w in windows([np.arange(1, 8)], eot=0, seq_len=4):
    ...     print(w.start, w.ids, "predicted and counted:", w.ids[1 + w.first :])
    0 [0 1 2 3 4] predicted and counted: [1 2 3 4]
    2 [2 3 4 5 6] predicted and counted: [5 6]
    4 [4 5 6 7 0] predicted and counted: [7 0]
    """
    result = []
    for number, document in enumerate(documents):
        sequence = np.concatenate(([eot], document, [eot])).astype(np.int64)
        start, scored = 0, 0  # predictions
        while scored < len(sequence) - 1:
            ids = sequence[start : start + seq_len + 1]
            result.append(Window(number, start, scored - start, ids))
            scored = start + len(ids) - 1
            start = scored - seq_len // 2
    return result


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The measure of the loss alone: (N, V) logits and (N,) targets → (N, 1)."""
    return F.cross_entropy(logits, targets, reduction="none")[:, None]


def token_losses(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    *,
    autocast: torch.dtype | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Nats of every prediction, an array of `len(document) + 1` per document."""
    measured = token_measures(model, documents, eot, nats, autocast=autocast)
    return [figures[:, 0] for figures in measured]


@torch.inference_mode()
def token_measures(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    measure: Measure,
    *,
    autocast: torch.dtype | None = None,
) -> list[npt.NDArray[np.float32]]:
    """The figures of every prediction, an array (len(document) + 1, K) per document.

    Windows of similar length are scored together, padded on the right; causality keeps the padding
    out of what is counted, and the order of the documents has no effect on any figure.
    """
    device = model.embed.weight.device
    measured: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(documents)
    by_length = sorted(
        windows(documents, eot, model.config.seq_len),
        key=lambda w: (len(w.ids), w.document, w.start),
    )
    training = model.training
    model.eval()
    for batch in _batches(by_length):
        width = len(batch[-1].ids) - 1  # T
        padded = np.full((len(batch), width + 1), eot, dtype=np.int64)  # (B, T + 1)
        for row, window in zip(padded, batch, strict=True):
            row[: len(window.ids)] = window.ids
        ids = torch.from_numpy(padded).to(device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            hidden = model(ids[:, :-1])  # (B, T, C)
        figures = _measure(model, hidden.flatten(0, 1), ids[:, 1:].flatten(), measure, autocast)
        rows = figures.view(len(batch), width, -1).cpu().numpy()  # (B, T, K)
        for row, window in zip(rows, batch, strict=True):
            number, count = window.document, len(window.ids) - 1
            if not len(measured[number]):
                shape = (len(documents[number]) + 1, row.shape[-1])
                measured[number] = np.empty(shape, np.float32)
            begin = window.start + window.first
            measured[number][begin : window.start + count] = row[window.first : count]
    model.train(training)
    return measured


def _batches(by_length: list[Window]) -> list[list[Window]]:
    batches: list[list[Window]] = []
    for window in by_length:  # sorted by length, the last of a batch is its longest
        if not batches or (len(batches[-1]) + 1) * len(window.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(window)
    return batches


def _measure(
    model: GPT, hidden: Tensor, targets: Tensor, measure: Measure, dtype: torch.dtype | None
) -> Tensor:
    """The figures of each target, (N, K) float32, from (N, C) hidden states; logits exist for
    LOGIT_CHUNK targets at a time.
    """
    weight = model.embed.weight.to(dtype or model.embed.weight.dtype)
    parts = [
        measure(F.linear(h.to(weight.dtype), weight).float(), t)
        for h, t in zip(
            torch.split(hidden, LOGIT_CHUNK), torch.split(targets, LOGIT_CHUNK), strict=True
        )
    ]
    return torch.cat(parts)


def score(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    token_bytes: npt.NDArray[np.integer],
    *,
    autocast: torch.dtype | None = None,
) -> Score:
    """The total of `score_each`."""
    return Score.total(score_each(model, documents, eot, token_bytes, autocast=autocast))


def score_each(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    token_bytes: npt.NDArray[np.integer],
    *,
    autocast: torch.dtype | None = None,
) -> list[DocumentScore]:
    """`token_losses` summed up per document. `token_bytes`: (V,), the UTF-8 bytes of each token."""
    losses = token_losses(model, documents, eot, autocast=autocast)
    return [
        DocumentScore(float(loss.sum(dtype=np.float64)), len(loss), int(token_bytes[ids].sum()))
        for ids, loss in zip(documents, losses, strict=True)
    ]
