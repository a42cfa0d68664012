"""The gradient of a step, by one process or several, in passes and micro-batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from slm.model.loss import cross_entropy
from slm.storage import fault_point
from slm.tokens.permutation import derive_seed
from slm.training.distributed import average
from slm.training.parallel import exchanging
from slm.training.plan import autocast_dtype
from slm.training.session import Session


def step_gradient(session: Session, x: Tensor, y: Tensor) -> Tensor:
    """Leave the gradient of the step's mean loss in the parameters; return that loss.

    Both are the same in all processes. Of several micro-batches of `elastic` they are summed in a
    tree; ddp and fsdp average the gradients of the processes while these are computed.
    """
    plan, world_size, own, total = (
        session.plan, session.job.world_size, session.micro_batches, session.step_sum,
    )  # fmt: skip
    if total is None:
        loss = micro_batch_gradient(session, own.start, x, y, of=len(x))
        return average(loss) if world_size > 1 else loss
    rows = plan.rows // plan.leaves
    for place, index in enumerate(own):
        part = slice(place * rows, (place + 1) * rows)
        total.add_loss(micro_batch_gradient(session, index, x[part], y[part], of=plan.rows))
    gradients, loss = total.finish()
    for parameter, gradient in zip(session.model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return loss


def micro_batch_gradient(session: Session, index: int, x: Tensor, y: Tensor, of: int) -> Tensor:
    """Add to the gradients those of a micro-batch, in passes; return its part of the step's loss.

    Args:
        index: of the micro-batch in its step, by which dropout is seeded.
        of: rows that the loss is the mean over: it is divided once, by those of the step.
    """
    plan, model = session.plan, session.model
    torch.manual_seed(derive_seed(session.job.config.train.seed, "dropout", session.step, index))
    dtype, size = autocast_dtype(plan), min(plan.micro_batch_size, len(x))
    total, left = torch.zeros((), device=session.device), len(x)
    for pass_x, pass_y in zip(torch.split(x, size), torch.split(y, size), strict=True):
        left -= len(pass_x)
        with exchanging(session.forward, last=left == 0):
            with torch.autocast(session.device.type, dtype, enabled=dtype is not None):
                hidden = forward_padded(session.forward, pass_x, size)  # (B, T, C)
            hidden = hidden.flatten(0, 1).to(dtype or hidden.dtype)
            mean = cross_entropy(
                hidden, model.embed.weight, pass_y.flatten(), gradient=session.loss_gradient
            )
            loss = mean / (of / len(pass_x))
            if left == 0 and session.step_sum:
                session.step_sum.expect(index)
            session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        fault_point("train.micro_step")
    return total


def forward_padded(forward: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """The hidden states of some rows; as many as `rows` go forward, so that all passes are alike.

    The rows of padding, of token 0, get no gradient.
    """
    if len(x) == rows:
        return forward(x)
    return forward(torch.nn.functional.pad(x, (0, 0, 0, rows - len(x))))[: len(x)]
