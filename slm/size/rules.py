"""The rules: tokens, batch, rates and heads, from one number; and the figures in them."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from slm.errors import UserError, excerpt

EXAMPLE = "give parameters inside the blocks, such as 300K, 10M or 0.1B"
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?) *([kmb]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
MIN_SIZE, MAX_SIZE = 25_000, 10**12
MAX_DEPTH = 256
# What the rules rest on: parameters inside the blocks of the smallest and the largest model that
# was measured, and tokens of the shortest and the longest training.
FITTED, MEASURED = (106_496, 3_211_264), (65_536, 3_276_800)

# Width of a model by its blocks, as of the shipped recipes and of GPT-2 124M. Among shapes of
# nearly the size that is asked for, one of half or twice as wide counts as 5 % off.
ASPECT = 64
ASPECT_COST = 0.05
MIN_ASPECT, MAX_ASPECT = 24, 128
HEAD_WIDTH = 64

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv:2203.15556
MAX_PASSES = 4.0  # repeated data is worth little beyond: Muennighoff et al. 2023, arXiv:2305.16264

# Peak rates of Muon, whose updates have the same norm at any width, and of AdamW's part, embeddings
# and norms, for a training of a million tokens. That falls with the tokens, as AdamW's does in
# Bjorck et al. 2024 (arXiv:2409.19913); more than the largest rate that was measured is not taken.
MUON_RATE = 0.02
REST_RATE, REST_EXPONENT, MAX_REST_RATE = 1.6e-2, 0.25, 2.4e-2

# Tokens of a step, for a training of a million tokens, and how they grow with these, whatever the
# size of the model is: Bergsma et al. 2025, arXiv:2505.13738.
BATCH, BATCH_EXPONENT = 2048.0, 0.4


def parse_size(value: Any) -> int:
    """`10M` → 10,000,000. Raises UserError for what is no size."""
    match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    number = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    shown = f"size={excerpt(str(value))}"
    if match is None:
        raise UserError(f"{shown} is not a size: {EXAMPLE}")
    if number < MIN_SIZE:
        raise UserError(f"{shown} is fewer than {MIN_SIZE:,} parameters: {EXAMPLE}")
    if number > MAX_SIZE:
        raise UserError(f"{shown} is more than {MAX_SIZE:,} parameters: {EXAMPLE}")
    return round(number)


def parse_depth(value: Any) -> int:
    """Blocks. Raises UserError for what is no such number."""
    depth = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and value.isdecimal():
        depth = int(value)
    if not 1 <= depth <= MAX_DEPTH:
        raise UserError(
            f"depth={excerpt(str(value))} is not a number of blocks from 1 to {MAX_DEPTH}: each "
            f"adds {ASPECT} to the width, so that depth=6 is {6 * ASPECT} wide"
        )
    return depth


def tokens_for(parameters: int) -> int:
    """The tokens by which a model is worth its compute, were all of them new.

    >>> tokens_for(1_000_000)
    20000000
    """
    return round(TOKENS_PER_PARAMETER * parameters)


def batch_for(tokens: int, seq_len: int) -> int:
    """Tokens of a step: whole rows, a power of two of them.

    >>> [batch_for(tokens, 256) for tokens in (100_000, 1_000_000, 100_000_000)]
    [1024, 2048, 16384]
    """
    return _whole_rows(BATCH * (tokens / 1e6) ** BATCH_EXPONENT, seq_len)


def batch_of_steps(steps: int, seq_len: int) -> int:
    """The same of a training whose steps are given, so that its tokens follow from the batch.

    b = BATCH (steps b / 1e6)^e, solved for b.
    """
    power = BATCH * (steps / 1e6) ** BATCH_EXPONENT
    return _whole_rows(math.pow(power, 1 / (1 - BATCH_EXPONENT)), seq_len)


def _whole_rows(tokens: float, seq_len: int) -> int:
    rows: int = 2 ** max(0, round(math.log2(tokens / seq_len)))
    return seq_len * rows


class Rates(NamedTuple):
    """Peak learning rates."""

    adamw: float
    muon: float


def rates_for(parameters: int, tokens: int, optimizer: str = "muon") -> Rates:
    """Peak rates of AdamW, or of its part, and of Muon, to two digits.

    Of AdamW alone by Kaplan et al. 2020 (arXiv:2001.08361, appendix D.6).

    >>> [rates_for(1_000_000, tokens).adamw for tokens in (10**5, 10**6, 10**7, 10**9)]
    [0.024, 0.016, 0.009, 0.0028]
    >>> rates_for(85_000_000, 10**9, "adamw")
    Rates(adamw=0.00069, muon=0.02)
    """
    if optimizer == "muon":
        rest = REST_RATE * (tokens / 1e6) ** -REST_EXPONENT
        return Rates(_two_digits(min(MAX_REST_RATE, rest)), MUON_RATE)
    return Rates(_two_digits(0.003239 - 0.0001395 * math.log(parameters)), MUON_RATE)


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def heads_for(width: int, multiple_of: int = 1) -> int | None:
    """The heads whose width is nearest to `HEAD_WIDTH`, and even; None where none divides.

    >>> [heads_for(width) for width in (64, 96, 160, 512, 100, 97)]
    [1, 2, 2, 8, 2, None]
    """
    even = [n for n in range(multiple_of, width + 1, multiple_of) if width % (2 * n) == 0]
    return min(even, key=lambda n: abs(math.log(width / n / HEAD_WIDTH)), default=None)


def widths() -> Iterator[int]:
    """Widths that fill the tiles of matrix units: steps of 16, later of 64, later of 128."""
    width = 32
    while width <= 64 * MAX_DEPTH:
        yield width
        width += 16 if width < 128 else 32 if width < 256 else 64 if width < 1024 else 128
