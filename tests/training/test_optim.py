"""The schedule never rises after its warmup; the optimizers get the parameters they should."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.hooks import RemovableHandle

from slm.config import ModelConfig, PipelineConfig, TrainConfig
from slm.errors import UserError
from slm.model.gpt import GPT
from slm.records import ShardSplit
from slm.training.optim import (
    MUON_MOMENTUM,
    Muon,
    build_optimizers,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
    orthogonalise,
    orthogonalise_fp32,
    set_learning_rate,
)
from slm.training.plan import make_plan
from slm.training.session import Session, synthetic_session
from slm.training.step import train_step

CONFIGS = st.builds(
    TrainConfig,
    max_steps=st.integers(1, 300),
    schedule=st.sampled_from(["cosine", "wsd", "linear"]),
    warmup=st.floats(0, 1),
    cooldown=st.floats(0, 1),
    final_lr=st.floats(0, 1),
)


@given(CONFIGS)
def test_the_rate_rises_only_while_warming_up(config: TrainConfig) -> None:
    steps = config.max_steps or 0
    rates = [learning_rate_factor(step, steps, config) for step in range(steps)]
    warmup = math.ceil(config.warmup * steps)
    assert all(0 < rate <= 1 or config.final_lr == 0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_wsd_never_jumps_where_recipes_allow_it(steps: int, warmup: float, part: float) -> None:
    """Rounding both fractions up may make them overlap by one step of the decay, never by more."""
    cooldown = (1 - warmup) * part
    config = TrainConfig(
        max_steps=steps, schedule="wsd", warmup=warmup, cooldown=cooldown, final_lr=0
    )
    rates = [learning_rate_factor(step, steps, config) for step in range(steps)]
    after = [1.0, *rates[math.ceil(warmup * steps) :]]
    drops = [before - rate for before, rate in pairwise(after)]
    assert max(drops, default=0.0) <= 2 / max(1, round(cooldown * steps)) + 1e-9


def test_the_rate_at_its_corners() -> None:
    config = TrainConfig(max_steps=100, schedule="cosine", warmup=0.1, final_lr=0.1)
    rate = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert rate[0] == pytest.approx(0.1)
    assert rate[9] == rate[10] == 1
    assert rate[55] == pytest.approx(0.55)
    assert rate[99] == pytest.approx(0.1, abs=0.001)
    steady = TrainConfig(max_steps=100, schedule="wsd", warmup=0.1, cooldown=0.2, final_lr=0)
    assert [learning_rate_factor(step, 100, steady) for step in (50, 80, 90)] == [1, 1, 0.5]


def model_and_optimizers(optimizer: str) -> tuple[GPT, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, seq_len=8), 31)
    config = TrainConfig(max_steps=1, optimizer=optimizer)  # type: ignore[arg-type]
    return model, build_optimizers(model, config)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_the_right_decay(optimizer: str) -> None:
    model, optimizers = model_and_optimizers(optimizer)
    decays = {
        id(p): group["weight_decay"]
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
    }
    listed = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(listed) == len(list(model.parameters())) == len(decays)
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.1 if parameter.dim() == 2 else 0.0)
    if optimizer == "muon":
        muon = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
        inside = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
        assert muon == inside


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_goes_out_and_in_without_a_change(optimizer: str) -> None:
    """A step after a round trip equals the step without it, bit for bit."""

    def step(model: GPT, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for o in optimizers:
            o.step()

    model, optimizers = model_and_optimizers(optimizer)
    set_learning_rate(optimizers, 0.5)
    step(model, optimizers, 1)
    kept = {k: v.clone() for k, v in optimizer_tensors(model, optimizers).items()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, optimizers, 2)

    again, fresh = model_and_optimizers(optimizer)
    set_learning_rate(fresh, 0.5)
    again.load_state_dict(weights)
    load_optimizer_tensors(again, fresh, kept)
    step(again, fresh, 2)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_makes_the_librarys_steps_bit_for_bit() -> None:
    shapes = [(12, 12), (12, 12), (32, 12), (12, 32), (32, 12)]
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    ours = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    library = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=MUON_MOMENTUM)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        mine.step()
        library.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, before)


def test_adamw_makes_the_librarys_steps_bit_for_bit() -> None:
    model, [ours] = model_and_optimizers("adamw")
    other, _ = model_and_optimizers("adamw")
    other.load_state_dict(model.state_dict())
    groups = [
        {"params": [p for p in other.parameters() if (p.dim() >= 2) == decays], "weight_decay": d}
        for decays, d in ((True, 0.1), (False, 0.0))
    ]
    config = TrainConfig(max_steps=1)
    betas = (config.beta1, config.beta2)
    theirs = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    for a, b, c in zip(model.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 40, 12), (3, 12, 40), (3, 14, 12)])
def test_orthogonalising_in_float32_gives_what_float64_gives(
    shape: tuple[int, int, int],
) -> None:
    """Of square, tall and wide matrices, the last of them by their small Gram matrices."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    exact = orthogonalise(matrices.double(), torch.float64)
    close = orthogonalise_fp32(matrices)
    assert close.dtype == torch.float32
    torch.testing.assert_close(close, exact.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(orthogonalise(matrices).float(), close, rtol=0, atol=0.03)


@pytest.fixture
def overflowing(tiny_config: Callable[..., PipelineConfig]) -> tuple[Session, RemovableHandle]:
    """A session that scales its losses as in fp16, and what makes one of its gradients overflow."""
    config = tiny_config(**{"train.optimizer": "muon", "train.device": "cpu"})
    split = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    session = synthetic_session(config, make_plan(config, split, world_size=1), 512)
    session.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    matrix = session.model.blocks[0].mlp.down_proj.weight  # of Muon; the embedding is AdamW's
    return session, matrix.register_hook(lambda grad: torch.full_like(grad, math.inf))


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in session.model.named_parameters()}


def test_one_gradient_that_overflows_keeps_every_optimizer_from_stepping(
    overflowing: tuple[Session, RemovableHandle],
) -> None:
    session, overflow = overflowing
    before = weights(session)
    x, y = session.loader.batch(0)
    train_step(session, x, y)
    assert all(torch.equal(p, before[name]) for name, p in weights(session).items())
    assert session.scaler.get_scale() == 2.0**9
    overflow.remove()
    train_step(session, x, y)
    assert not any(torch.equal(p, before[name]) for name, p in weights(session).items())


def test_only_skipped_steps_in_a_row_count(
    overflowing: tuple[Session, RemovableHandle],
) -> None:
    session, overflow = overflowing
    x, y = session.loader.batch(0)
    for _ in range(3):
        train_step(session, x, y)
    assert session.skipped == 3
    overflow.remove()
    train_step(session, x, y)
    assert session.skipped == 0


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_moment_that_never_decays_is_refused(
    name: str, tiny_config: Callable[..., PipelineConfig]
) -> None:
    with pytest.raises(UserError, match=f"train.{name}"):
        tiny_config(**{f"train.{name}": 1.0})
