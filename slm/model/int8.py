"""Weights in eight bits, to generate from: symmetric, one scale per output channel.

A token of one row takes the time of reading the weights, which are a quarter as large in int8.
Activations stay in float32. So what is computed is the model of the rounded weights, in float32:
by a kernel that reads eight bits where there are few rows, and by float32 products where there are
many. A text is the same alone or in a batch, and `rounded` gives that model for scoring.
"""

import copy
import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from slm.errors import UserError
from slm.model.gpt import GPT

MAX_ROWS = 4  # that read eight bits: for more, float32 products are faster
BLOCK = 256  # output channels that are summed at once, where there is more than one block
MIN_SHARED = 1 << 20  # bytes read: for fewer, waking a second thread takes longer than it saves
LANES = 16  # float32 numbers in a register


def check_int8(model: GPT) -> None:
    """Raise UserError for a model that cannot be sampled from in int8."""
    weight = model.embed.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        kind = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise UserError(
            f"weights=int8 is for float32 models on a CPU, and this one is {kind}: leave it out, "
            "or load the model with device='cpu'"
        )


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) weights → int8 numbers (N, K), and scales (N,) that they are multiples of.

    >>> quantise(torch.tensor([[-127.0, 3.4], [0.0, 0.0]]))[0].tolist()
    [[-127, 3], [0, 0]]
    """
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    numbers = (weight / scale[:, None]).round().clamp(-127, 127)
    return numbers.to(torch.int8), scale


def round_to_int8(weight: Tensor) -> Tensor:
    """(N, K) weights, each the multiple of its row's scale that int8 holds."""
    numbers, scale = quantise(weight.detach())
    return numbers * scale[:, None]


@torch.no_grad()
def rounded(model: GPT) -> GPT:
    """A copy with the weights that `Decoder(model, "int8")` multiplies by."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear) or module is model.embed:
            weight = module.get_parameter("weight")
            weight.copy_(round_to_int8(weight))
    return model


class Int8Product:
    """x → x Wᵀ + b for float32 activations (…, K) of few rows, W in int8.

    The kernel is FBGEMM's for bags of embeddings: it sums rows of a table of bytes, each with a
    factor, in float32. Here a table row is what one input channel adds to a block of output
    channels, and its factor is the activation. With K = 2, N = 4 and blocks of 2 channels:

        W = [[1, 2],        table   bag   factor
             [3, 4],        1 3     0     x₀          y₀ y₁ = x₀·(1 3) + x₁·(2 4)
             [5, 6],        2 4     0     x₁
             [7, 8]]        5 7     1     x₀          y₂ y₃ = x₀·(5 7) + x₁·(6 8)
                            6 8     1     x₁

    Each bag is summed by one thread in the order of the input channels: a row's result depends
    neither on the other rows nor on the number of threads or blocks.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.width, self.channels = weight.shape[::-1]  # K, N
        self.bias = bias
        numbers, self.scale = quantise(weight)
        threads = torch.get_num_threads()
        blocks = threads * math.ceil(self.channels / (BLOCK * threads))
        self.blocks = blocks if weight.numel() >= MIN_SHARED else 1
        self.block = LANES * math.ceil(self.channels / (LANES * self.blocks))
        padded = torch.zeros(self.blocks * self.block, self.width, dtype=torch.uint8)
        padded[: self.channels] = numbers.view(torch.uint8) ^ 128  # b of the number b - 128
        rows = padded.view(self.blocks, self.block, self.width).transpose(1, 2)
        rows = rows.reshape(-1, self.block)  # (blocks · K, block)
        # A table row ends with its scale and offset, in float32.
        tail = torch.tensor([1.0, -128.0]).view(torch.uint8).expand(len(rows), -1)
        self.table = torch.cat((rows, tail), dim=1)

    def weight(self) -> Tensor:
        """The rounded weights in float32, (N, K)."""
        numbers = self.table[:, : self.block].reshape(self.blocks, self.width, self.block)
        numbers = numbers.transpose(1, 2).reshape(-1, self.width)[: self.channels]
        return (numbers.float() - 128) * self.scale[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.width
        indices, offsets = _bags(self.blocks, rows, self.width)
        factors = x.reshape(-1)
        if self.blocks > 1:
            factors = factors.repeat(self.blocks)
        sums = _bag_sums(
            self.table, indices, offsets, False, 0, False, factors, include_last_offset=True
        )  # (blocks · rows, block)
        if self.blocks > 1:
            sums = sums.view(self.blocks, rows, self.block).transpose(0, 1).reshape(rows, -1)
        if sums.shape[1] > self.channels:
            sums = sums[:, : self.channels]
        y = sums * self.scale if self.bias is None else torch.addcmul(self.bias, sums, self.scale)
        return y.view(*x.shape[:-1], self.channels)


_bag_sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets.default


@lru_cache
def _bags(blocks: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """The table rows of every bag, one after the other, and where each bag begins; int32 both.

    A block's bags follow one another, so that the caches still hold it for the next row.
    """
    table = torch.arange(blocks * width, dtype=torch.int32).view(blocks, 1, width)
    indices = table.expand(blocks, rows, width).reshape(-1)
    return indices, torch.arange(0, len(indices) + 1, width, dtype=torch.int32)
