"""The parameters inside the blocks of a shape."""

import math

from slm.config import ModelConfig


def kv_width(model: ModelConfig) -> int:
    """Width of the keys, and of the values, over all heads."""
    return model.n_embd // model.n_head * (model.n_kv_head or model.n_head)


def inner_width(model: ModelConfig) -> int:
    """Hidden width of the MLP: as configured, or the architecture's usual one."""
    if model.n_inner:
        return model.n_inner
    if model.architecture == "gpt2":
        return 4 * model.n_embd
    return 32 * math.ceil(model.n_embd * 8 / 3 / 32)


def block_matrices(model: ModelConfig) -> list[int]:
    """Parameters of each matrix of a block: queries, keys, values, output, and the MLP's."""
    width = model.n_embd
    attention = [width * width, width * kv_width(model), width * kv_width(model), width * width]
    matrices_of_mlp = 2 if model.architecture == "gpt2" else 3
    return attention + [width * inner_width(model)] * matrices_of_mlp


def non_embedding(model: ModelConfig) -> int:
    """What `size` counts: the parameters of the matrices inside the blocks."""
    return model.n_layer * sum(block_matrices(model))
