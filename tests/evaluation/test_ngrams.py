"""Kneser-Ney against the formulas written out, a context at a time."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from slm.evaluation.ngrams import KneserNey, unigram_nats

EOT, V = 30, 31
ZIPF = 1 / np.arange(1, EOT + 1) / sum(1 / np.arange(1, EOT + 1))
Gram = tuple[int, ...]


def stream(*documents: list[int]) -> np.ndarray:
    return np.array([EOT, *(token for d in documents for token in (*d, EOT))])


def some_documents(seed: int, count: int) -> list[list[int]]:
    draws = np.random.default_rng(seed)
    return [draws.choice(EOT, draws.integers(0, 9), p=ZIPF).tolist()
            for _ in range(count)]  # fmt: skip


def formulas(documents: list[list[int]], order: int) -> Callable[[Gram, int], float]:
    """The probability of a token after a context, by Chen and Goodman's formulas."""
    raw: list[Counter[Gram]] = [Counter() for _ in range(order + 1)]
    for document in documents:
        sequence = (EOT, *document, EOT)
        for i in range(1, len(sequence)):
            for n in range(1, order + 1):
                if i - n + 1 >= 0:
                    raw[n][sequence[i - n + 1 : i + 1]] += 1
    counts = list(raw)
    for n in range(1, order):
        before = defaultdict(set)
        for gram in raw[n + 1]:
            before[gram[1:]].add(gram[0])
        counts[n] = Counter({
            gram: raw[n][gram] if n > 1 and gram[0] == EOT else len(before[gram])
            for gram in raw[n]
        })  # fmt: skip

    def discount(n: int, count: int) -> float:
        n1, n2, n3, n4 = (sum(c == k for c in counts[n].values()) for k in (1, 2, 3, 4))
        if not n1 or not n2:
            return 0.5
        y = n1 / (n1 + 2 * n2)
        return [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3][min(count, 3) - 1]

    def probability(context: Gram, token: int) -> float:
        n = len(context) + 1
        below = probability(context[1:], token) if context else 1 / V
        follow = {g: c for g, c in counts[n].items() if g[:-1] == context and c}
        if not follow:
            return below
        total = sum(follow.values())
        count = follow.get((*context, token), 0)
        backoff = sum(discount(n, c) for c in follow.values()) / total
        return (max(0.0, count - discount(n, count)) / total if count else 0.0) + backoff * below

    return probability


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_the_formulas(order: int) -> None:
    train, held_out = some_documents(0, 200), some_documents(1, 20)
    probability = formulas(train, order)
    expected = []
    for document in held_out:
        sequence = (EOT, *document, EOT)
        for i in range(1, len(sequence)):
            expected.append(
                -math.log(probability(sequence[max(0, i - order + 1) : i], sequence[i]))
            )
    nats = KneserNey(stream(*train), V, EOT, order).nats(stream(*held_out))
    np.testing.assert_allclose(nats, expected, rtol=1e-9)


@pytest.mark.parametrize("context", [[], [0], [0, 1, 0, 0, 1], [5, 5, 5], [4, 3]])
def test_the_probabilities_of_what_may_follow_add_up(context: list[int]) -> None:
    model = KneserNey(stream(*some_documents(0, 100)), V, EOT)
    place = len(context)
    ends = [float(np.exp(-model.nats(stream([*context, token])))[place]) for token in range(EOT)]
    ends.append(float(np.exp(-model.nats(stream(context)))[place]))
    assert sum(ends) == pytest.approx(1)
    assert min(ends) > 0


def test_longer_contexts_help_where_the_text_has_them() -> None:
    phrases = [[0, 1, 2, 3, 4, 5], [5, 1, 2, 3, 4, 0]]
    draws = np.random.default_rng(0)
    train, held_out = ([phrases[i] for i in draws.integers(0, 2, 50)] for _ in range(2))
    costs = [float(KneserNey(stream(*train), V, EOT, n).nats(stream(*held_out)).sum())
             for n in (1, 2, 3)]  # fmt: skip
    assert costs == sorted(costs, reverse=True)
    unigram = unigram_nats(stream(*train), stream(*held_out), V)
    assert float(unigram.sum()) > costs[1]


def test_a_handful_of_tokens_is_enough() -> None:
    for documents in ([[0]], [[0, 0, 0]], [[], []]):
        assert np.isfinite(KneserNey(stream(*documents), V, EOT).nats(stream([0, 1, 2]))).all()
