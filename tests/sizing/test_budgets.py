import pytest

from slm.errors import UserError
from slm.sizing.budgets import Budget, parse_budgets


@pytest.mark.parametrize(
    ("text", "kind", "amounts"),
    [
        ("10s,30s,2min", "seconds", [10, 30, 120]),
        ("2m, 1h", "seconds", [120, 3600]),
        ("1e15,1e16", "flops", [1e15, 1e16]),
        ("1e15 FLOPs", "flops", [1e15]),
        ("8M,2M,32M", "tokens", [2e6, 8e6, 32e6]),
        ("2M,8M tokens", "tokens", [2e6, 8e6]),
        ("500k,1.5M", "tokens", [5e5, 1.5e6]),
        ("2000000,8e6 tokens", "tokens", [2e6, 8e6]),
        ("2M,2M", "tokens", [2e6]),
    ],
)
def test_budgets_are_read_in_their_units_and_sorted(text, kind, amounts):
    budgets = parse_budgets(text)
    assert [budget.amount for budget in budgets] == pytest.approx(amounts)
    assert {budget.kind for budget in budgets} == {kind}


@pytest.mark.parametrize(
    "text", ["", "10", "10s,2M", "1e15,30s", "2X", "-3s", "0s", "1e999", "nan"]
)
def test_what_is_no_budget_is_one_message(text):
    with pytest.raises(UserError, match="--for"):
        parse_budgets(text, "--for")


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(kind="seconds", amount=300), "300 s"),
        (Budget(kind="seconds", amount=3000), "50 min 0 s"),
        (Budget(kind="flops", amount=2.5e15), "2.5 PFLOP"),
        (Budget(kind="tokens", amount=8e6), "8.0 M tokens"),
    ],
)
def test_budgets_are_shown_with_their_units(budget, text):
    assert budget.text == text
