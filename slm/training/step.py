"""One optimizer step, what is refused of it, and its figures."""

import math
from typing import Any

import torch
from torch import Tensor

from slm.errors import Untrainable
from slm.evaluation.scoring import MAX_LOSS
from slm.training.gradients import step_gradient
from slm.training.parallel import whole
from slm.training.plan import memory_bytes, peak_flops
from slm.training.session import Session

MAX_SKIPPED_STEPS = 50  # in a row, in fp16
MIN_SCALE = 2.0**-14
"""The least factor of the loss in fp16, which starts at 2¹⁶ and is halved by every overflow.

Below 1 it makes gradients smaller; the gradients that overflow even here exceed 2³⁰.
"""


def train_step(session: Session, x: Tensor, y: Tensor) -> tuple[float, float]:
    """One optimizer step over this process's rows of the batch.

    Args:
        x, y: inputs and targets, (rows, T) each.

    Returns:
        The mean loss in nats per token, over all processes, and the gradient's norm before
        clipping. Where the norm is not finite, in fp16, no optimizer has made a step.
    """
    model, config = session.model, session.job.config.train
    total = step_gradient(session, x, y)
    for optimizer in session.optimizers:
        session.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    # The loss is fetched before the optimizers are enqueued, which costs a GPU the time of their
    # launch: whether they may step at all depends on it, for all of them together.
    mean_loss, grad_norm = torch.stack((total, whole(norm))).tolist()
    check_step(session, mean_loss, grad_norm)
    if math.isfinite(grad_norm):  # all optimizers step, or none: they were clipped by one norm
        for optimizer in session.optimizers:
            session.scaler.step(optimizer)
    session.scaler.update()
    model.zero_grad(set_to_none=True)
    return mean_loss, grad_norm


def check_step(session: Session, loss: float, grad_norm: float) -> None:
    """Raises Untrainable before an optimizer changes the weights.

    In fp16 a gradient may overflow: that step is skipped, and the scaler's factor halved until it
    fits. It is an error after `MAX_SKIPPED_STEPS` of them in a row, or below `MIN_SCALE`.
    """
    session.skipped = 0 if math.isfinite(grad_norm) else session.skipped + 1
    if loss <= MAX_LOSS and (math.isfinite(grad_norm) or may_skip(session)):
        return
    rows = described_rows(session)
    raise Untrainable(
        f"step {session.step + 1}: train_loss is {loss}, the gradient's norm {grad_norm}"
        f"{skipped_steps(session)}; no step was made and nothing saved: the weights are those of "
        f"step {session.step}, and the checkpoints up to it are kept; {remedy(session)}. The rows "
        f"of the step start at tokens {rows}"
    )


def described_rows(session: Session) -> str:
    """Part of a message: where the first rows of the next step start."""
    parts, starts = session.loader.rows_at(session.step)
    more = " …" if len(starts) > 8 else ""
    order = session.loader.order
    if order is None:
        return f"{', '.join(map(str, starts[:8]))}{more} of train"
    rows = zip(parts[:8], starts[:8], strict=True)
    return f"{', '.join(f'{start} of {order.names[part]}' for part, start in rows)}{more}"


def may_skip(session: Session) -> bool:
    """Whether a smaller factor of the loss may still bring gradients that overflow into fp16."""
    scaler = session.scaler
    return (
        scaler.is_enabled()
        and session.skipped < MAX_SKIPPED_STEPS
        and scaler.get_scale() >= MIN_SCALE
    )


def check_some_step(session: Session) -> None:
    """Raises Untrainable where fp16 skipped every step of a training that ends before a bound."""
    if not any(optimizer.state for optimizer in session.optimizers):
        raise Untrainable(
            f"step {session.step}, the last: none of the {session.step} steps was made"
            f"{skipped_steps(session)}; the weights are those of the start; {remedy(session)}"
        )


def skipped_steps(session: Session) -> str:
    """Part of a message: how many steps in a row fp16 has not made, if any."""
    if not (session.skipped and session.scaler.is_enabled()):
        return ""
    scale = session.scaler.get_scale()
    return f" (steps skipped in a row in fp16: {session.skipped}; loss scale {scale:.2g})"


def remedy(session: Session) -> str:
    """The end of a message about a training that diverged."""
    other = "set train.precision to bf16 or fp32, or " if session.scaler.is_enabled() else ""
    return f"{other}lower train.learning_rate, which is another run, or check the data"


def step_metrics(
    session: Session, loss: float, grad_norm: float, factor: float, seconds: float
) -> dict[str, Any]:
    """The figures of a step for the journal."""
    tokens = session.job.config.train.tokens_per_step
    rate = tokens / seconds
    flops = session.model.flops_per_token() * rate
    peak = peak_flops(session.plan.device, session.plan.precision)
    speed = {"mfu": flops / peak / session.job.world_size} if peak else {"gflops": flops / 1e9}
    return {
        "step": session.step,
        "train_loss": loss,
        "lr": session.job.config.train.learning_rate * factor,
        "grad_norm": grad_norm,
        "tok_per_sec": rate,
        "tokens": session.step * tokens,
        "memory_bytes": memory_bytes(session.plan.device),
        **speed,
    }
