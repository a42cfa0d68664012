"""What other programs cannot read of an export, known from the shape of a model alone."""

import torch

from slm.config import ModelConfig
from slm.errors import UserError
from slm.model.export.hugging_face import inner_width
from slm.model.gpt import GPT

VLLM_WIDTHS = (32, 256)  # of heads, in steps of 8: what its attention on a GPU is compiled for
BLOCK = 32  # numbers of a row that share a factor in q8_0
MAX_LAYERS = 512  # of llama.cpp


def _inner_width(model: ModelConfig) -> int:
    """The hidden width of the MLP."""
    with torch.device("meta"):
        return inner_width(GPT(model.model_copy(update={"n_layer": 1}), vocab_size=1))


def limits(model: ModelConfig) -> list[str]:
    """What some reader does not take, a line each, with what to change; none: all read it."""
    width = model.n_embd // model.n_head
    lines = []
    low, high = VLLM_WIDTHS
    if width % 8 or not low <= width <= high:
        lines.append(
            f"model.n_embd / model.n_head = {width}: vLLM reads heads of {low} to {high}, in steps "
            "of 8; transformers and llama.cpp read any"
        )
    return [*lines, *_q8_limits(model), *_llama_limits(model)]


def check_readable(model: ModelConfig, to: str, dtype: str) -> None:
    """Raises UserError for what no reader of the format could load."""
    problems = _llama_limits(model) if to == "gguf" else []
    if dtype == "q8_0":
        problems += _q8_limits(model)
    if problems:
        raise UserError("; ".join(problems))


def _q8_limits(model: ModelConfig) -> list[str]:
    widths = {"model.n_embd": model.n_embd, "model.n_inner": _inner_width(model)}
    wrong = [f"{name}={width}" for name, width in widths.items() if width % BLOCK]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)}: GGUF's q8_0 packs {BLOCK} numbers of a row together, of which this "
        "is no multiple: export with --dtype f16"
    ]


def _llama_limits(model: ModelConfig) -> list[str]:
    if model.n_layer <= MAX_LAYERS:
        return []
    return [f"model.n_layer={model.n_layer}: llama.cpp reads up to {MAX_LAYERS} layers"]
