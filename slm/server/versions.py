"""Which model answers a name."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.config import Weights
from slm.errors import UserError, unknown
from slm.model.decode import Decoder
from slm.model.int8 import MAX_ROWS
from slm.model.saved import LoadedModel
from slm.records import names_version
from slm.registry.opening import load_model, model_folder
from slm.registry.versions import open_version
from slm.run_folder import run_of_checkpoint
from slm.server.engine import Engine
from slm.tokens.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """A model under a name, and the engine that generates with it."""

    name: str
    version: str  # `models:/NAME/VERSION`, or the run that it is from
    engine: Engine
    tokenizer: Tokenizer
    opened: float = field(default_factory=time.time)  # unix seconds

    @property
    def seq_len(self) -> int:
        return self.engine.decoder.config.seq_len


class ServedModels:
    """The models of a server, by the names that requests call them."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        self._leaving: list[ServedModel] = []  # replaced, with texts that are not done
        self.stale: dict[str, str] = {}  # name of an alias → why it is not followed
        self.swaps = dict.fromkeys(self._models, 0)

    def names(self) -> list[str]:
        return list(self._models)

    def get(self, name: str | None) -> ServedModel:
        """The model of a name; None: the first one. Raises UserError where there is no such name.

        `models:/NAME@ALIAS` and `NAME@ALIAS` are the same.
        """
        if name is None:
            return next(iter(self._models.values()))
        for model in self._models.values():
            if model.name.removeprefix("models:/") == name.removeprefix("models:/"):
                return model
        raise unknown("model", name, self._models)

    def replace(self, model: ServedModel) -> None:
        """Let a model answer to its name from now on.

        The one before it takes no more texts, and is freed once those that it has are done.
        """
        old, self._models[model.name] = self._models[model.name], model
        self._leaving.append(old)
        self.swaps[model.name] += 1
        self.stale.pop(model.name, None)

        def free() -> None:
            old.engine.close()
            self._leaving.remove(old)

        threading.Thread(target=free, name="slm-replaced", daemon=True).start()

    def close(self, timeout: float | None = None) -> None:
        """End the engines, once their texts are done or the timeout, seconds, is over."""
        for model in [*self._models.values(), *self._leaving]:
            model.engine.close(timeout)


def open_models(
    references: Sequence[str | Path],
    *,
    weights: Weights = "float32",
    device: str | None = None,
    max_batch: int = 32,
    queue: int = 256,
    root: Path | None = None,
) -> ServedModels:
    """Load models, each under the name that it was asked for by.

    Args:
        references: as of `slm.load_model`.
        weights: "int8" rounds them to eight bits, on a CPU.
        device: as of `slm.load_model`; with int8 it is the CPU.

    Raises UserError where there is no such model, or one is named twice.
    """
    device = "cpu" if weights == "int8" else device
    chosen: dict[str, tuple[str, Path]] = {}  # name → version, folder
    for reference in map(str, references):
        version = open_version(reference, root).uri if names_version(reference) else None
        folder = model_folder(version or reference, root)
        run = run_of_checkpoint(folder)
        name = reference if version else (run.name if run else folder.name)
        if name.removeprefix("models:/") in {n.removeprefix("models:/") for n in chosen}:
            raise UserError(f"two of the models are called {name}: requests could not choose one")
        chosen[name] = (version or name, folder)
    how: dict[str, Any] = {
        "weights": weights, "device": device, "max_batch": max_batch, "queue": queue, "root": root,
    }  # fmt: skip
    return ServedModels([open_model(name, *each, **how) for name, each in chosen.items()])


def open_model(
    name: str,
    version: str,
    folder: Path,
    *,
    weights: Weights,
    device: str | None,
    max_batch: int,
    queue: int,
    root: Path | None,
) -> ServedModel:
    """Load the model of a folder, and begin to serve it under a name."""
    loaded = load_model(folder, device=device, root=root)
    engine = engine_of(loaded, weights=weights, max_batch=max_batch, queue=queue)
    return ServedModel(name, version, engine, loaded.tokenizer)


def engine_of(loaded: LoadedModel, *, weights: Weights, max_batch: int, queue: int) -> Engine:
    """An engine for a loaded model; in int8 of as many texts as the kernel for eight bits takes."""
    decoder = Decoder(loaded.model, weights)
    if weights == "int8":
        max_batch = min(max_batch, MAX_ROWS)
    return Engine(decoder, loaded.tokenizer, max_batch=max_batch, queue=queue)
