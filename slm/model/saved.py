"""A model on disk: weights as safetensors, its shape as JSON, its vocabulary."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from slm.config import ModelConfig
from slm.errors import CorruptionError, UserError
from slm.figures import count
from slm.model.gpt import GPT
from slm.storage import RECORD, check_files
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

MODEL, CONFIG = "model.safetensors", "config.json"
MODEL_FILES = (MODEL, CONFIG, TOKENIZER)  # all that sampling, or further training, needs


class LoadedModel(NamedTuple):
    """A model in evaluation mode, and its tokenizer."""

    model: GPT
    tokenizer: Tokenizer

    def __repr__(self) -> str:
        config, device = self.model.config, next(self.model.parameters()).device
        return (
            f"LoadedModel({config.architecture}, {config.n_layer} layers of {config.n_embd}, "
            f"{count(self.model.parameter_count())} parameters,\n"
            f"  context {config.seq_len}, vocabulary {self.model.vocab_size:,}, on {device})"
        )


def describe_model(model: GPT) -> dict[str, Any]:
    """The content of a model's `config.json`: its shape."""
    return {"model": model.config.model_dump(mode="json"), "vocab_size": model.vocab_size}


def load_model(folder: Path, device: str = "cpu") -> LoadedModel:
    """Load the model of a folder, such as a checkpoint's.

    Raises CorruptionError where a file is unreadable, or is not the one that the folder's record
    names; UserError where the folder holds something else, or the weights are not finite.
    """
    _check_kind(folder)
    if (folder / RECORD).is_file():
        check_files(folder, MODEL_FILES)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        model = GPT(ModelConfig.model_validate(config["model"]), config["vocab_size"])
        model.load_state_dict(load_weights(folder))
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorruptionError(f"{folder} holds no model that can be read: {error}") from error
    return LoadedModel(model.to(device).eval(), Tokenizer.load(folder / TOKENIZER))


def _check_kind(folder: Path) -> None:
    """Raises UserError for a folder that was never one of a model, such as an export's."""
    remedy = "give a run, a model version or the folder of a checkpoint"
    if not any((folder / name).is_file() for name in (RECORD, *MODEL_FILES)):
        raise UserError(f"{folder} holds no model: {remedy}")
    with suppress(OSError, ValueError, AttributeError):  # gone or damaged: it is checked later
        if TOKENIZER in json.loads((folder / RECORD).read_bytes())["files"]:
            return
    with suppress(OSError, ValueError):
        fields = json.loads((folder / CONFIG).read_bytes())
        kinds = {"config": "a run, not a model", "model_type": "a model for transformers"}
        for key, kind in kinds.items():
            if isinstance(fields, dict) and key in fields:
                raise UserError(f"{folder} holds {kind}: {remedy}")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model's folder, by their names. Raises UserError where one is not finite."""
    weights: dict[str, Tensor] = safetensors.torch.load_file(folder / MODEL)
    check_finite(weights, folder)
    return weights


def check_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raises UserError where a tensor of a folder has a NaN or an infinity."""
    if name := first_not_finite(tensors):
        raise UserError(
            f"{folder}: {name} is not finite, since its training diverged. Train again with a "
            "lower train.learning_rate, or use an earlier checkpoint"
        )


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; None where there is none."""
    # The smallest and the largest value take one pass and no copy; a NaN is both of them.
    finite = {
        name: torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()
        for name, tensor in tensors.items()
        if tensor.numel()
    }  # all are enqueued before a GPU is waited for
    return next((name for name, flag in finite.items() if not flag), None)
