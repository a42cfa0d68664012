"""Versions of random models in a registry, made in milliseconds: for tests of what serves them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from run_folders import empty_store
from tiny_model import BYTES, tiny_model

from slm import storage
from slm.model.gpt import GPT
from slm.model.saved import MODEL_FILES, describe_model
from slm.registry.tags import PREFIX
from slm.tracking.server import connect, default_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "slm"


def save_model(folder: Path, model: GPT) -> Path:
    """The files of a model, as a checkpoint has them."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), folder / MODEL_FILES[0])
    (folder / "config.json").write_text(json.dumps(describe_model(model)))
    BYTES.save(folder / "tokenizer.tiktoken")
    return folder


class Registry:
    """A registry of one model in a data folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = empty_store(root)
        self.client: MlflowClient = connect(default_uri(root))
        self.client.create_registered_model(NAME)

    def add(self, seed: int, *aliases: str) -> str:
        """A version of the random model of a seed; its address."""
        run = f"run-{seed}"
        folder = save_model(self.folder(seed), tiny_model("qwen3", seed))
        tags = {
            "run": run,
            "checkpoint": folder.name,
            "weights_sha256": storage.sha256_file(folder / MODEL_FILES[0]),
        }
        entry = self.client.create_model_version(
            NAME, folder.as_uri(), tags={PREFIX + name: value for name, value in tags.items()}
        )
        for alias in aliases:
            self.move(alias, str(entry.version))
        return f"models:/{NAME}/{entry.version}"

    def folder(self, seed: int) -> Path:
        """Where the files of a version are."""
        return self.root / "runs" / f"run-{seed}" / "checkpoints" / "step_000001"

    def move(self, alias: str, version: str) -> None:
        """Set an alias, as a promotion does."""
        self.client.set_registered_model_alias(NAME, alias, version.rpartition("/")[2])
