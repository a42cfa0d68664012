"""Communication between the processes of one training. A single process gets its own values."""

import torch
import torch.distributed as dist
from torch import Tensor

from slm.machine import pick_device


def average(value: Tensor) -> Tensor:
    """The mean of the processes' values, in all of them."""
    dist.all_reduce(value)
    return value / dist.get_world_size()


def all_reduce_max(value: float) -> float:
    """The largest of the processes' values, in all of them."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def broadcast_from_rank0(text: str) -> str:
    """The text of rank 0, in all processes."""
    if not dist.is_initialized():
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor(len(data), device=_device())
    dist.broadcast(size, 0)
    data.resize_(int(size))
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def wait_for_rank0() -> None:
    """Every process waits here until rank 0 is here too."""
    if dist.is_initialized():
        dist.barrier()


def _device() -> torch.device:
    return pick_device("cuda" if dist.get_backend() == "nccl" else "cpu")
