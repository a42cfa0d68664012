"""What disqualifies a model whatever its loss: samples that are broken, or copied from the data.

Both are measured against human text of the same kind, the held-out documents: stories repeat
themselves, and templates recur word for word, without any model's doing.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]

NGRAM = 4
REPEATED = 0.5  # a text with a larger share of repeated n-grams runs in circles
HUMAN_QUANTILE = 0.95


def degenerate(text: str, ids: Ids) -> str | None:
    """Why a text is broken: "empty", "invalid" or "repetitive"; None where it is not."""
    if not text.strip():
        return "empty"
    if "\ufffd" in text or "\0" in text:
        return "invalid"
    if repetition(ids) > REPEATED:
        return "repetitive"
    return None


def repetition(ids: Ids) -> float:
    """The share of the n-grams of a text that occurred in it before."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def memorised_share(samples: Sequence[int], human: Sequence[int]) -> float:
    """The share of samples that copy a longer run than nearly all human texts do.

    Args:
        samples, human: the longest copied passages (slm/report/copies.py) of samples and of
            held-out documents, in tokens. About one human text in twenty is above the line itself.
    """
    line = np.quantile(human, HUMAN_QUANTILE)
    return float(np.mean(np.array(samples) > line))
