"""What a training may take, as it is written: seconds, FLOPs or tokens."""

import re
from typing import Literal

from slm.errors import UserError, excerpt
from slm.figures import count, duration
from slm.records import Frozen

BudgetKind = Literal["seconds", "flops", "tokens"]
MIN_MINUTES = 600  # seconds from which on a budget is shown in minutes
_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_COUNTS = {"k": 1e3, "M": 1e6, "B": 1e9}
_NUMBER = r"(\d+(?:\.\d*)?(?:e\+?\d{1,2})?)"
_FORMS = "10s,30s,2min (seconds), 1e15,1e16 (FLOPs) or 2M,8M,32M (tokens)"


class Budget(Frozen):
    """What one training may take."""

    kind: BudgetKind
    amount: float

    @property
    def text(self) -> str:
        """For a person: 90 s, 1.0 PFLOP, 8.0 M tokens."""
        if self.kind == "seconds":
            return duration(self.amount) if self.amount >= MIN_MINUTES else f"{self.amount:g} s"
        if self.kind == "flops":
            return count(self.amount, "FLOP")
        return f"{count(self.amount)} tokens"

    def times(self, factor: float) -> "Budget":
        return Budget(kind=self.kind, amount=self.amount * factor)


def parse_budgets(
    text: str, option: str = "--budgets", *, mixed: bool = False
) -> tuple[Budget, ...]:
    """`10s,30s`, `1e15,1e16` or `2M,8M tokens`, each once; from the smallest to the largest.

    `m` are minutes and `M` millions of tokens. Raises UserError naming `option`; and for several
    kinds, unless they may be `mixed`.
    """
    words = text.strip()
    counted = words.endswith("tokens")
    budgets = [
        _budget(part.strip(), text, option, counted)
        for part in words.removesuffix("tokens").split(",")
    ]
    if mixed:
        return tuple(dict.fromkeys(budgets))
    if len({budget.kind for budget in budgets}) > 1:
        raise UserError(f"{option} {excerpt(repr(text))}: give one kind of {_FORMS}")
    return tuple(sorted(set(budgets), key=lambda budget: budget.amount))


def _budget(part: str, text: str, option: str, counted: bool) -> Budget:
    if (parsed := re.fullmatch(rf"{_NUMBER}\s*([kMB])", part)) or (
        counted and (parsed := re.fullmatch(rf"{_NUMBER}()", part))
    ):
        budget = Budget(kind="tokens", amount=float(parsed[1]) * _COUNTS.get(parsed[2], 1.0))
    elif parsed := re.fullmatch(rf"{_NUMBER}\s*(s|min|m|h)", part):
        budget = Budget(kind="seconds", amount=float(parsed[1]) * _UNITS[parsed[2]])
    elif parsed := re.fullmatch(rf"{_NUMBER}(?:\s*FLOPs?)?", part):
        budget = Budget(kind="flops", amount=float(parsed[1]))
    else:
        raise UserError(f"{option} {excerpt(repr(text))}: {part!r} is none of {_FORMS}")
    if budget.amount <= 0:
        raise UserError(f"{option} {excerpt(repr(text))}: {part!r} is not a positive amount")
    if budget.kind == "flops" and budget.amount < 1e9:
        raise UserError(
            f"{option} {excerpt(repr(text))}: {part!r} is a number of FLOPs, and too few for any "
            f"training; with a unit it is one of {_FORMS}"
        )
    return budget
