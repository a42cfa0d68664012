"""The order of a mixture: exact shares, every window once an epoch, a function of (seed, step)."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import mixed_config

from slm.config import ModelConfig, Phase, PipelineConfig, TrainConfig
from slm.errors import UserError
from slm.records import ShardCount, Shards, ShardsPart, ShardSplit
from slm.tokens.loader import Loader
from slm.tokens.mixture.order import (
    CYCLE_ROWS,
    Exhausted,
    Part,
    cycle_shares,
    make_order,
    planned_order,
)
from slm.training.needs import planned_steps

ONE = Part("one", windows=37, weights=(0.7, 0.2))
TWO = Part("two", windows=500, weights=(0.3, 0.8))
WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[Part], list[int], int]:
    """Parts with epochs or without, the ends of phases, and a seed."""
    phases = draw(st.integers(1, 3))
    ends = sorted(draw(st.lists(st.integers(1, 9000), min_size=phases - 1, max_size=phases - 1)))
    parts = [Part("all", 777, (1.0,) * phases)]
    for i in range(draw(st.integers(0, 3))):
        weights = draw(st.tuples(*[st.sampled_from((0.0, 0.05, 0.5, 2.0))] * phases))
        epochs = draw(st.sampled_from((None, 0.5, 1, 3)))
        parts.append(Part(f"p{i}", draw(st.integers(1, 2000)), weights, epochs))
    return parts, ends, draw(st.integers(0, 99))


@given(WEIGHTS)
def test_shares_are_exact_by_largest_remainder(weights: list[float]) -> None:
    shares = cycle_shares(weights)
    assert sum(shares) == CYCLE_ROWS
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - CYCLE_ROWS * weight / sum(weights)) < 1
    assert cycle_shares([10 * w for w in (0.7, 0.3)]) == cycle_shares([0.7, 0.3]) == (700, 300)


@settings(max_examples=25, deadline=None)
@given(mixtures(), st.data())
def test_every_cycle_has_its_shares_and_every_part_its_rows_in_turn(
    mixture: tuple[list[Part], list[int], int], data: st.DataObject
) -> None:
    parts, ends, seed = mixture
    order = make_order(parts, seed, ends)
    last = 10_000
    of_parts, places = order.rows(0, last)
    for i, part in enumerate(parts):  # no row is left out and none is read twice
        own = places[of_parts == i]
        assert own.tolist() == list(range(len(own)))
        assert len(own) <= part.allowance
    ends = [*(s.first for s in order.stretches[1:]), last]
    for stretch, end in zip(order.stretches, ends, strict=True):
        for first in range(stretch.first, min(end, last) - CYCLE_ROWS + 1, CYCLE_ROWS):
            rows = Counter(of_parts[first : first + CYCLE_ROWS].tolist())
            assert tuple(rows[i] for i in range(len(parts))) == stretch.shares
    for row in data.draw(st.lists(st.integers(0, last), max_size=5)):
        counted = np.bincount(of_parts[:row], minlength=len(parts))
        assert order.counts(row) == tuple(counted.tolist())
        stop = data.draw(st.integers(row, last))
        again = order.rows(row, stop)  # restarted there
        assert np.array_equal(again[0], of_parts[row:stop])
        assert np.array_equal(again[1], places[row:stop])


def test_a_part_leaves_at_the_end_of_the_last_cycle_that_its_epochs_cover() -> None:
    """1,150 rows cover three cycles of 300; its share goes to the others in proportion."""
    parts = [
        Part("a", 10_000, (0.5,)),
        Part("b", 10_000, (0.2,)),
        Part("c", 575, (0.3,), max_epochs=2),
    ]
    first, second = make_order(parts, seed=1).stretches
    assert first == (0, (500, 200, 300), (0, 0, 0))
    assert second == (3000, (714, 286, 0), (1500, 600, 900))


def test_a_later_phase_may_still_use_what_is_left_of_a_part() -> None:
    """250 rows are no cycle of 300, but five of 50."""
    parts = [Part("a", 10_000, (0.7, 0.95)), Part("c", 550, (0.3, 0.05), max_epochs=1)]
    shares = [s.shares for s in make_order(parts, seed=1, ends=[4000]).stretches]
    assert shares == [(700, 300), (1000, 0), (950, 50), (1000, 0)]


def test_nothing_left_is_refused_and_a_longer_training_begins_alike() -> None:
    parts = [Part("a", 1000, (0.5,), 1), Part("b", 800, (0.5,), 1)]
    with pytest.raises(Exhausted) as error:
        make_order(parts, seed=1, rows=1001)
    assert (error.value.row, error.value.counts) == (1000, (500, 500))
    assert make_order(parts, seed=1, rows=1000).stretches == ((0, (500, 500), (0, 0)),)


# ---- the loader -------------------------------------------------------------------------------


def streams(*lengths: int) -> list[list[np.ndarray]]:
    """Streams of tokens by which their place is known: the second begins at 10,000."""
    return [
        list(np.array_split(np.arange(length, dtype=np.uint32) + 10_000 * i, 3))
        for i, length in enumerate(lengths)
    ]


def mixed_loader(**kwargs: object) -> Loader:
    order = make_order([ONE, TWO], seed=5, ends=[700])
    made = {"seq_len": 8, "rows": 6, "seed": 5, "order": order, **kwargs}
    return Loader(*streams(8 * 38 + 1, 8 * 501 + 1), **made)  # type: ignore[arg-type]


def test_every_part_visits_each_of_its_windows_once_an_epoch() -> None:
    made = mixed_loader()
    assert [stream.windows for stream in made.streams] == [ONE.windows, TWO.windows]
    visited: list[list[int]] = [[], []]
    for step in range(400):
        for part, start in zip(*made.rows_at(step), strict=True):
            visited[part].append(int(start))
    for starts, part in zip(visited, (ONE, TWO), strict=True):
        whole = len(starts) // part.windows
        assert whole
        for epoch in range(whole):
            own = sorted(starts[epoch * part.windows : (epoch + 1) * part.windows])
            assert np.diff(own).tolist() == [8] * (part.windows - 1)


def test_rows_are_those_of_their_parts_for_any_number_of_processes() -> None:
    whole = mixed_loader()
    for step in (0, 115, 116, 117, 300):  # the second phase begins inside step 116
        parts, starts = whole.rows_at(step)
        x, y = whole.batch(step)
        assert (x[:, 0].numpy() == starts + 10_000 * parts).all()
        assert (y == x + 1).all()
        for ends in ((0, 3, 6), (0, 1, 2, 6, 6)):
            own = [mixed_loader(own=range(*pair)).batch(step)[0] for pair in pairwise(ends)]
            assert np.concatenate(own).tolist() == x.tolist()


def test_a_mixture_of_one_is_that_text() -> None:
    order = make_order([Part("one", 37, (2.0,))], seed=5)
    [alone] = streams(8 * 38 + 1)
    mixed = Loader(alone, seq_len=8, rows=6, seed=5, order=order)
    plain = Loader(alone, seq_len=8, rows=6, seed=5)
    for step in range(500):
        assert mixed.rows_at(step)[1].tolist() == plain.rows_at(step)[1].tolist()


# ---- of a config ------------------------------------------------------------------------------


def shards_of(**tokens: int) -> Shards:
    """Shards with the tokens of each part."""
    nothing = ShardCount(documents=0, tokens=0, bytes=0)
    parts = {
        name: ShardsPart(
            key="k", source_key="s", val=nothing,
            train=ShardSplit(files=[], documents=1, tokens=count, bytes=count),
        )
        for name, count in tokens.items()
    }  # fmt: skip
    return Shards(
        key="k", source_key="s", tokenizer_sha256="", vocab_size=512, eot=511, splits={},
        parts=parts,
    )  # fmt: skip


def config_of(phases: tuple[Phase, ...] = (), train: object = None, **sources: object):  # type: ignore[no-untyped-def]
    config = PipelineConfig(
        recipe="tiny",
        model=ModelConfig(n_layer=1, n_head=2, n_embd=32, seq_len=32),
        train=train or TrainConfig(max_steps=100, tokens_per_step=640),
    )
    return mixed_config(config, phases, **sources)  # type: ignore[arg-type]


SHARDS = shards_of(books=400_000, code=64_000)  # 12,498 and 1,998 rows
ROWS = 20


def test_a_phase_begins_at_the_row_of_its_first_step() -> None:
    """0.55 of 100 steps are 55, whatever 100 · 0.55 is in floats, and 0.555 are 56."""
    for until, step in ((0.55, 55), (0.555, 56), (0.001, 1)):
        phases = (Phase(until=until, weights={"code": 0.0}), Phase(weights={"books": 0.0}))
        config = config_of(phases, books={"weight": 0.7}, code={"weight": 0.3})
        order = planned_order(config, SHARDS, ROWS, 100)
        assert order is not None
        assert [(s.first, s.shares) for s in order.stretches] == [
            (0, (1000, 0)),
            (step * ROWS, (0, 1000)),
        ]


def refusal(config: PipelineConfig, steps: int = 100, shards: Shards = SHARDS) -> str:
    with pytest.raises(UserError) as error:
        planned_order(config, shards, ROWS, steps)
    return str(error.value)


def test_what_cannot_be_trained_on_is_refused_with_figures_and_a_remedy() -> None:
    both = {"books": {"weight": 0.7, "max_epochs": 0.2}, "code": {"weight": 0.3, "max_epochs": 1}}
    assert refusal(config_of(**both), steps=1000) == (
        "after 200 of 1,000 steps no source has rows left for a cycle of 1,000 (epochs: books "
        "0.168 of 0.2, code 0.951 of 1): raise or leave out max_epochs in data.sources, or train "
        "at most 200 steps"
    )
    few = config_of(books={"weight": 0.7}, code={"weight": 0.3, "max_epochs": 0.1})
    assert refusal(few) == (
        "data.sources.code.max_epochs=0.1 are 199 rows, and its share of every 1,000 is 300: none "
        "of it would be trained on; raise max_epochs to 0.151 or more, lower its weight, or leave "
        "it out"
    )
    rare = config_of(books={"weight": 1}, code={"weight": 0.0001})
    assert "data.sources.code has the weight 0.0001 of 1.0001, not one of every 1,000" in refusal(
        rare
    )
    small = shards_of(books=400_000, code=60)
    assert "60 training tokens of data.sources.code are too few for a context of 32" in refusal(
        config_of(books={}, code={}), shards=small
    )


def test_the_clock_cannot_decide_the_steps_of_phases_or_of_epochs() -> None:
    train = TrainConfig(max_seconds=60, schedule="wsd", tokens_per_step=640)
    phases = (Phase(until=0.5), Phase(weights={"code": 2}))
    assert "data.phases end at fractions of the steps" in refusal(
        config_of(phases, train, books={}, code={}), steps=0
    )
    limited = {"max_epochs": 3}
    assert "all of data.sources (books, code) have max_epochs" in refusal(
        config_of((), train, books=limited, code=limited), steps=0
    )
    one = config_of((), train, books={}, code={"max_epochs": 1})
    order = planned_order(one, SHARDS, ROWS, 0)
    assert order is not None
    assert [s.shares for s in order.stretches] == [(500, 500), (1000, 0)]


def test_a_limit_in_seconds_begins_with_the_first_phase_before_its_probe() -> None:
    train = TrainConfig(max_seconds=60, tokens_per_step=640)
    phases = (Phase(until=0.5, weights={"code": 0}), Phase(weights={"code": 2}))
    order = planned_order(config_of(phases, train, books={}, code={}), SHARDS, ROWS, 0)
    assert order is not None
    assert order.stretches == ((0, (1000, 0), (0, 0)),)


def test_a_pass_is_over_the_tokens_of_all_sources_together() -> None:
    """464,000 tokens without what is excluded: two passes are 1,450 steps of 640."""
    train = TrainConfig(epochs=2, tokens_per_step=640)
    assert SHARDS.trained_on.tokens == 464_000
    config = config_of((), train, books={}, code={})
    assert planned_steps(config, SHARDS.trained_on) == 1450
    train = TrainConfig(max_steps=5000, max_passes=1, tokens_per_step=640)
    assert planned_steps(config_of((), train, books={}, code={}), SHARDS.trained_on) == 725


def test_a_thousand_steps_have_the_shares_of_their_weights() -> None:
    """20,000 rows are whole cycles: exactly 0.7 and 0.3; and 20 rows of any step nearly so."""
    config = config_of(books={"weight": 0.7}, code={"weight": 0.3})
    order = planned_order(config, SHARDS, ROWS, 1000)
    assert order is not None
    assert order.counts(1000 * ROWS) == (14_000, 6_000)
    for step in range(1001):
        books, code = order.counts(step * ROWS)
        assert books + code == step * ROWS
        assert abs(books - 0.7 * step * ROWS) <= 0.3 * CYCLE_ROWS / 2
