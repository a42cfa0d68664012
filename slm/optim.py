"""Optimizers and the learning-rate schedule.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for all parameters; or Muon (Jordan et al.
2024, kellerjordan.github.io/posts/muon) for the matrices inside the blocks and AdamW for the rest:
embeddings, norms, biases. Weight decay is for matrices and embeddings alone.
"""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from slm.config import TrainConfig
from slm.model import GPT


def learning_rate_factor(step: int, max_steps: int, config: TrainConfig) -> float:
    """What fraction of the peak rate optimizer step `step` (from 0) uses: a pure function.

    Linear warmup over `warmup · max_steps` steps, then `cosine` (down to `final_lr`), `linear`
    (likewise) or `wsd` (constant, then linear over the last `cooldown · max_steps` steps;
    warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395). It never rises after the warmup.
    """
    warmup = math.ceil(config.warmup * max_steps)
    if step < warmup:
        return (step + 1) / warmup
    rest = max(1, max_steps - warmup)
    done = (step - warmup) / rest  # from 0 to just under 1
    if config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "linear":
        shape = 1 - done
    else:
        cooldown = max(1, round(config.cooldown * max_steps))
        shape = min(1.0, (max_steps - step) / cooldown)
    return config.final_lr + (1 - config.final_lr) * shape


def build_optimizers(model: GPT, config: TrainConfig) -> list[Optimizer]:
    """The optimizers of a model; every group remembers its peak rate as `peak_lr`."""
    blocks = dict(model.blocks.named_parameters())
    matrices = [p for p in blocks.values() if p.dim() == 2]
    muon = {id(p) for p in matrices} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in muon]
    adamw = torch.optim.AdamW(
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
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Gives every group its peak rate times `factor`."""
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
        owner[id(parameter)].state[parameter][state] = value.to(parameter.device)
