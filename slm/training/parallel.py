"""`train.parallel: ddp | fsdp`: the wrappers of torch, and whole tensors out of sharded ones.

`ddp` (Li et al. 2020, arXiv:2006.15704) averages gradients while they are computed; `fsdp` (Zhao et
al. 2023, arXiv:2304.11277) keeps a part of weights, gradients and moments in each process. A
checkpoint has whole tensors, so any number of processes resumes it, under any `train.parallel`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slm.model.gpt import GPT
from slm.model.saved import first_not_finite


def shard(model: GPT, device: torch.device) -> None:
    """Keep a part of every parameter in this process; a block is whole while it is used.

    The model is on the CPU still: its parts alone go to a GPU. The embedding is whole from the
    forward pass of the model to the end of its backward pass, since the loss uses it too.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second to import
    from torch.distributed.fsdp import fully_shard

    # A norm returns a view, and nothing of ours adds to it in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def replicate(forward: Callable[[Tensor], Tensor], device: torch.device) -> DistributedDataParallel:
    """The model's forward pass, after whose backward pass gradients are the processes' average.

    With `find_unused_parameters`, though there are none, the buckets stay as they are made. Else
    they are made anew after the first step, and a process that resumes adds in another order.
    """
    assert isinstance(forward, nn.Module)
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `broadcast_buffers` has a new name
        return DistributedDataParallel(
            forward,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


def exchanging(forward: Callable[[Tensor], Tensor], last: bool) -> AbstractContextManager[None]:
    """Within the block a backward pass exchanges gradients: under ddp in a step's last pass only.

    Under fsdp every pass does: its gradients are kept in parts, not whole.
    """
    if isinstance(forward, DistributedDataParallel) and not last:
        silent: AbstractContextManager[None] = forward.no_sync()
        return silent
    return nullcontext()


@contextmanager
def sharded_again(model: nn.Module) -> Iterator[None]:
    """After the block no parameter is whole any more, where the model is sharded."""
    try:
        yield
    finally:
        if is_sharded(model):
            model.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, for which all processes call this; any other one as it is."""
    complete: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore
    return complete


def part_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """What a process keeps of a whole tensor, on the device of the parameter and sharded like it.

    Numbers, such as an optimizer's count of steps, are kept whole.
    """
    tensor = tensor.to(parameter.device)
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def gather(tensors: dict[str, Tensor], keep: bool) -> tuple[dict[str, Tensor], str | None]:
    """Whole copies of tensors in the CPU's memory; and the first that is not finite, if any.

    All processes call this, and get the same name; one has the copies, of those that it shall
    keep. Tensors are gathered one by one: no GPU has to hold all of them.
    """
    copies: dict[str, Tensor] = {}
    wrong = None
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        wrong = wrong or first_not_finite({name: complete})
        if keep:
            copies[name] = complete.to("cpu", copy=True)
    return copies, wrong


@torch.no_grad()
def load_weights_into(model: GPT, weights: dict[str, Tensor]) -> None:
    """Whole weights into a model, which may be sharded."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        parameter.copy_(part_like(parameter, weights[name]))


def is_sharded(value: nn.Module | Tensor) -> bool:
    """Whether this process has a part of it only. The library of such parts is not imported."""
    return hasattr(value, "full_tensor" if isinstance(value, Tensor) else "reshard")
