"""Calibration: whether a token that the model gives 70 % is right in 70 of 100 cases.

The model's likeliest next token at every held-out position goes into a bin by its probability; in
each bin, that probability is compared with how often the token was right. The expected calibration
error is the mean difference, weighted by positions (Guo et al. 2017, arXiv:1706.04599).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # as in the paper


def predictions(logits: Tensor, targets: Tensor) -> Tensor:
    """The measure of each position: the target's nats, the likeliest token's probability, and 1
    where the two are the same token.

    Args:
        logits: (N, V).
        targets: (N,).

    Returns:
        (N, 3) float32.
    """
    nats = F.cross_entropy(logits, targets, reduction="none")  # (N,)
    log_sum = nats + logits.gather(-1, targets[:, None])[:, 0]  # (N,)
    highest, likeliest = logits.max(dim=-1)  # (N,) each
    return torch.stack((nats, (highest - log_sum).exp(), (likeliest == targets).float()), dim=-1)


class Calibration:
    """Sums over positions by bin, which grow a document at a time."""

    def __init__(self) -> None:
        self.positions = np.zeros(BINS)
        self.confidence = np.zeros(BINS)
        self.correct = np.zeros(BINS)

    def add(self, confidence: npt.NDArray[np.float32], correct: npt.NDArray[np.float32]) -> None:
        """Add positions: the probability of the likeliest token, and 1 where it was right."""
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self.positions += np.bincount(bins, minlength=BINS)
        self.confidence += np.bincount(bins, confidence, BINS)
        self.correct += np.bincount(bins, correct, BINS)

    def summary(self) -> dict[str, Any]:
        """As JSON values: `error` (expected calibration error), `accuracy`, and `bins`: a list of
        (positions, mean probability, share that was right) of those that have positions.
        """
        total = max(1.0, self.positions.sum())
        used = self.positions > 0
        count = self.positions[used]
        confidence, correct = self.confidence[used] / count, self.correct[used] / count
        return {
            "error": float((count * np.abs(confidence - correct)).sum() / total),
            "accuracy": float(self.correct.sum() / total),
            "bins": [
                [int(n), float(p), float(share)]
                for n, p, share in zip(count, confidence, correct, strict=True)
            ],
        }
