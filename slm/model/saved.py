"""A model on disk: weights as safetensors, its shape as JSON, its vocabulary."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from slm.config import ModelConfig
from slm.errors import CorruptionError
from slm.model.gpt import GPT
from slm.run_folder import TOKENIZER
from slm.storage import (
    RECORD,
    check_files,
)
from slm.tokens.tokenizer.bpe import Tokenizer

MODEL, CONFIG = "model.safetensors", "config.json"
MODEL_FILES = (MODEL, CONFIG, TOKENIZER)  # what sampling, or a training that goes on, needs


def describe_model(model: GPT) -> dict[str, Any]:
    """What builds the same model again, as JSON values."""
    return {"model": model.config.model_dump(mode="json"), "vocab_size": model.vocab_size}


def load_model(folder: Path, device: str = "cpu") -> tuple[GPT, Tokenizer]:
    """The model of a checkpoint folder, ready to sample from, and its tokenizer.

    Raises CorruptionError where their files are not those that the folder's record names.
    """
    if (folder / RECORD).is_file():
        check_files(folder, MODEL_FILES)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        model = GPT(ModelConfig.model_validate(config["model"]), config["vocab_size"])
        model.load_state_dict(safetensors.torch.load_file(folder / MODEL))
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorruptionError(f"{folder} holds no model that can be read: {error}") from error
    return model.to(device).eval(), Tokenizer.load(folder / TOKENIZER)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder of a model."""
    weights: dict[str, Tensor] = safetensors.torch.load_file(folder / MODEL)
    return weights
