"""Calibration: whether a token that the model gives 70 % comes in 70 of 100 cases.

The model's likeliest next token at every held-out place goes into a bin by its probability; in each
bin, that probability is compared with how often the token was right. The expected calibration error
is the mean difference, weighted by the places (Guo et al. 2017, arXiv:1706.04599).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # as in the paper


def predictions(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each place: nats of the target, probability of the likeliest token, whether it is it.

    Args:
        logits: (N, V).
        targets: (N,).

    Returns:
        (N, 3) float32.
    """
    nats = F.cross_entropy(logits, targets, reduction="none")
    log_sum = nats + logits.gather(-1, targets[:, None])[:, 0]
    highest, likeliest = logits.max(dim=-1)
    return torch.stack((nats, (highest - log_sum).exp(), (likeliest == targets).float()), dim=-1)


class Calibration:
    """Counts of the places by bin, which grow a document at a time."""

    def __init__(self) -> None:
        self.places = np.zeros(BINS)
        self.confidence = np.zeros(BINS)
        self.right = np.zeros(BINS)

    def add(self, confidence: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> None:
        """Counts places: the probability of the likeliest token, and 1 where it was right."""
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self.places += np.bincount(bins, minlength=BINS)
        self.confidence += np.bincount(bins, confidence, BINS)
        self.right += np.bincount(bins, right, BINS)

    def summary(self) -> dict[str, Any]:
        """As JSON values: `error` (expected calibration error), `accuracy`, and `bins`: a list of
        (places, mean probability, share that was right), those without places left out.
        """
        total = max(1.0, self.places.sum())
        used = self.places > 0
        places = self.places[used]
        confidence, right = self.confidence[used] / places, self.right[used] / places
        rows: Sequence[tuple[float, float, float]] = list(
            zip(places.tolist(), confidence.tolist(), right.tolist(), strict=True)
        )
        return {
            "error": float((places * np.abs(confidence - right)).sum() / total),
            "accuracy": float(self.right.sum() / total),
            "bins": [[int(n), p, share] for n, p, share in rows],
        }
