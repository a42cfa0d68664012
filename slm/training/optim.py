"""Optimizers and the learning-rate schedule.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for all parameters; or Muon (Jordan et al.
2024, kellerjordan.github.io/posts/muon) for the matrices inside the blocks and AdamW for the rest:
embeddings, norms, biases. Weight decay is for matrices and embeddings alone.
"""

import math
from collections.abc import Iterable
from inspect import unwrap
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from slm.config import TrainConfig
from slm.model.gpt import GPT
from slm.records import Decision, Plan
from slm.training.parallel import part_like, whole

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MIN_GRAM_RATIO = 1.5  # of columns to rows, from which fewer FLOPs are made on the Gram matrix


def learning_rate_factor(
    step: int, max_steps: int, config: TrainConfig, warmup_steps: int | None = None
) -> float:
    """The fraction of the peak rate at optimizer step `step`, from 0.

    Linear warmup over `warmup · max_steps` steps, then `cosine` (down to `final_lr`), `linear`
    (likewise) or `wsd` (constant, then linear over the last `cooldown · max_steps` steps;
    warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395). It never rises after the warmup. Recipes
    refuse a cooldown that would begin within the warmup: the rate would jump down to it.

    `warmup_steps`: in place of `warmup · max_steps`.
    """
    warmup = math.ceil(config.warmup * max_steps) if warmup_steps is None else warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    rest = max(1, max_steps - warmup)
    done = (step - warmup) / rest  # from 0 to just under 1
    if config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "linear":
        shape = 1 - done
    else:
        cooldown = cooldown_steps(max_steps, config)
        shape = min(1.0, (max_steps - step) / cooldown)
    return config.final_lr + (1 - config.final_lr) * shape


def planned_factor(step: int, plan: Plan, decision: Decision | None, config: TrainConfig) -> float:
    """`learning_rate_factor` by a plan, whose cooldown the clock may decide.

    Then it is constant after the warmup, which is of the steps that the plan estimates, until the
    decision. A cooldown that begins within the warmup takes over where the two meet.
    """
    if not plan.cooldown_by_clock:
        return learning_rate_factor(step, plan.max_steps, config, plan.warmup_steps)
    shape, warmup = 1.0, math.ceil(config.warmup * plan.max_steps)
    if decision:
        cooldown = decision.max_steps - decision.cooldown_start
        shape = min(1.0, (decision.max_steps - step) / cooldown)
    factor = config.final_lr + (1 - config.final_lr) * shape
    return min(factor, (step + 1) / warmup) if step < warmup else factor


def warmup_steps(plan: Plan, config: TrainConfig) -> int:
    """The steps of the warmup by a plan."""
    if plan.warmup_steps is not None:
        return plan.warmup_steps
    return math.ceil(config.warmup * plan.max_steps)


def cooldown_steps(max_steps: int, config: TrainConfig) -> int:
    """The steps of wsd's cooldown in a training of that many."""
    return max(1, round(config.cooldown * max_steps))


def cooldown_start(plan: Plan, decision: Decision | None, config: TrainConfig) -> int | None:
    """The steps before wsd's cooldown, which a longer training shares; None where that is unknown.

    The other schedules fall from the warmup on: no step of theirs is one of a longer training.
    """
    if config.schedule != "wsd":
        return None
    if plan.cooldown_by_clock:
        return decision.cooldown_start if decision else None
    return max(0, plan.max_steps - cooldown_steps(plan.max_steps, config))


# torch's decorators of these methods load torch._dynamo, a second or two of every start, to keep it
# from tracing them. Nothing here traces an optimizer.
_add_param_group = unwrap(Optimizer.add_param_group)


class AdamW(torch.optim.AdamW):
    """torch's AdamW, to the bit."""

    add_param_group = _add_param_group
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(Optimizer):
    """Muon (Jordan et al. 2024), with all matrices of one shape orthogonalised together.

    In bf16 to the bit `torch.optim.Muon` with its defaults, which takes them one by one: four times
    as long for the many small ones of a small model. Of sharded ones each process orthogonalises
    the whole, and keeps its part.
    """

    add_param_group = _add_param_group

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        precision: Literal["bf16", "fp32"] = "bf16",
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.orthogonalise = orthogonalise if precision == "bf16" else orthogonalise_fp32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                momenta = [whole(self._momentum(p)) for p in parameters]
                update = self.orthogonalise(torch.stack(momenta))
                rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                for parameter, direction in zip(parameters, update, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(part_like(parameter, direction), alpha=-rate)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The gradient under Nesterov momentum."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum: Tensor = state["momentum_buffer"].lerp_(grad, 1 - MUON_MOMENTUM)
        return grad.lerp(momentum, MUON_MOMENTUM)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(n, rows, columns) → nearly orthogonal ones: the singular values go to about 1.

    Five quintic Newton–Schulz iterations, with the coefficients of Jordan et al. 2024.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalise_fp32(matrices: Tensor) -> Tensor:
    """The same iterations in float32, for a CPU that multiplies it faster than bf16.

    Where a matrix X is more than half as long again as it is wide, they are made on the small
    matrix G = X Xᵀ. One of them makes P = aI + bG + cG², and then PX of X and so PGP of G. The Ps
    are multiplied up in Q, and QX is the result: of the products in X's size two remain of ten.
    """
    small, large = sorted(matrices.shape[1:])
    if large <= MIN_GRAM_RATIO * small:
        return orthogonalise(matrices, torch.float32)
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    product: Tensor | None = None  # Q
    for last in [False] * (ITERATIONS - 1) + [True]:
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if not last:
            gram = p @ (p @ gram)
    assert product is not None
    result: Tensor = product @ x
    return result.mT if tall else result


def build_optimizers(
    model: GPT, config: TrainConfig, muon_precision: Literal["bf16", "fp32"] = "bf16"
) -> list[Optimizer]:
    """The optimizers of a model; every group remembers its peak rate as `peak_lr`."""
    blocks = dict(model.blocks.named_parameters())
    matrices = [p for p in blocks.values() if p.dim() == 2]
    muon = {id(p) for p in matrices} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in muon]
    adamw = AdamW(
        [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    optimizers: list[Optimizer] = [adamw]
    if muon:
        rate, decay = config.muon_learning_rate, config.weight_decay
        optimizers.append(Muon(matrices, rate, decay, muon_precision))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def optimizer_tensors(model: GPT, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimizers' state, by `<parameter>/<state>`: what a checkpoint keeps."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}/{key}": value
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    model: GPT, optimizers: list[Optimizer], tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, on optimizers newly built for the same model."""
    parameters = dict(model.named_parameters())
    owner = {id(p): o for o in optimizers for g in o.param_groups for p in g["params"]}
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        parameter = parameters[name]
        owner[id(parameter)].state[parameter][state] = part_like(parameter, value)
