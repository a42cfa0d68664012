"""The size dial: a model's shape and its training from one number, by rules.

`size: 10M` counts the parameters inside the blocks, as scaling laws do (Kaplan et al. 2020,
arXiv:2001.08361): then the shape does not depend on the vocabulary. `depth: 8` is 8 blocks of 8
times `ASPECT` wide. Both become plain settings before anything else reads them, so a run has the
key of the same settings written out, and what is stated wins over what would be derived.

docs/sizing.md has the figures of the rules, the runs that they rest on, and what is not shown.
Nothing here loads PyTorch.
"""

from slm.size.dial import DERIVED, DIALS, Origin, resolve, settings_of
from slm.size.rules import (
    ASPECT,
    FITTED,
    MAX_PASSES,
    MIN_SIZE,
    batch_for,
    batch_of_steps,
    parse_size,
    rates_for,
    tokens_for,
)
from slm.size.shape import block_matrices, inner_width, kv_width, non_embedding

__all__ = [
    "ASPECT",
    "DERIVED",
    "DIALS",
    "FITTED",
    "MAX_PASSES",
    "MIN_SIZE",
    "Origin",
    "batch_for",
    "batch_of_steps",
    "block_matrices",
    "inner_width",
    "kv_width",
    "non_embedding",
    "parse_size",
    "rates_for",
    "resolve",
    "settings_of",
    "tokens_for",
]
