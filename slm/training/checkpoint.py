"""A checkpoint folder: all that training needs to resume, and all that sampling needs.

    step_000500/
      model.safetensors       weights, float32
      optimizer.safetensors   the optimizers' state
      config.json             model shape, vocabulary size, end-of-text id
      tokenizer.tiktoken      the vocabulary
      state.json              what is not a tensor: the gradient scaler, the best val_bpb so far
      record.json             sizes, hashes, step, origin (records.Checkpoint)

The position in the data and every random stream are functions of the step, so the step is all that
is kept of them. Nothing is ever unpickled.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from slm.errors import CorruptionError
from slm.model.gpt import GPT
from slm.model.saved import CONFIG, MODEL, check_finite, describe_model, load_weights
from slm.records import Checkpoint
from slm.run_folder import checkpoint_folders, checkpoint_name
from slm.storage import (
    commit,
    delete_leftovers,
    discard,
    fault_point,
    quarantine,
    read_record,
)
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

logger = logging.getLogger(__name__)

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class CheckpointWriter:
    """Saves checkpoints in a thread, from a copy, so that training hardly waits for the disk.

    At most one save is under way. A save that failed raises at the next `save`, at `wait` or at the
    end of the `with`; the checkpoint before it is kept.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[Checkpoint] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(
        self,
        record: Checkpoint,
        model: GPT,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        then: Callable[[Checkpoint], None],
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Copy everything now, write it in the background, and then call `then` there.

        `weights`: of a model that is sharded, whole; they and `optimizer` are copies already.
        """
        self.wait()
        moments = optimizer if weights else copy_to_cpu(optimizer)
        weights = weights or copy_to_cpu(model.state_dict())
        config = describe_model(model)
        folder = self.folder / checkpoint_name(record.step)
        staging = folder.with_name(folder.name + ".tmp")

        def write() -> Checkpoint:
            staging.mkdir(parents=True)
            try:
                fault_point("checkpoint.weights")
                safetensors.torch.save_file(weights, staging / MODEL)
                fault_point("checkpoint.optimizer")
                safetensors.torch.save_file(moments, staging / OPTIMIZER)
                for name, content in ((CONFIG, config), (STATE, state)):
                    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
                    (staging / name).write_text(text)
                self.tokenizer.save(staging / TOKENIZER)
                saved = commit(staging, folder, record)
            except BaseException as error:
                shutil.rmtree(staging, ignore_errors=True)
                if isinstance(error, SafetensorError):  # as it reports a full disk
                    raise OSError(f"cannot save {folder}: {error}") from error
                raise
            then(saved)
            return saved

        self._saving = self._thread.submit(write)

    def wait(self) -> Checkpoint | None:
        """The record of the save that was under way, now durable. Raises what it raised."""
        saving, self._saving = self._saving, None
        return saving.result() if saving else None


def copy_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the CPU's memory, of tensors on any device: one copy of each."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_training_state(
    folder: Path,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, optimizer state and the rest of a checkpoint folder, to resume from.

    Raises UserError where a tensor is not finite.
    """
    moments = safetensors.torch.load_file(folder / OPTIMIZER)
    check_finite(moments, folder)
    return load_weights(folder), moments, json.loads((folder / STATE).read_bytes())


def latest_checkpoint(folder: Path, *, before: float = math.inf) -> Checkpoint | None:
    """The newest valid checkpoint in a run's `checkpoints/`, of a step less than `before`.

    A corrupt one is quarantined.
    """
    for step, path in reversed(checkpoint_folders(folder)):
        if step < before and (record := _valid(path)):
            return record
    return None


def checkpoint_to_resume(folder: Path, last_step: int) -> Checkpoint | None:
    """The newest valid checkpoint that training can resume to end as if never interrupted.

    Args:
        folder: a run's `checkpoints/`.
        last_step: the last step in the run's journal, which must not miss any.

    A training ends with its best checkpoint and its last one. Where the best is damaged or gone,
    only training from before it rebuilds it.
    """
    latest = latest_checkpoint(folder, before=last_step + 1)
    best = json.loads((latest.path / STATE).read_bytes())["best_step"] if latest else 0
    if not latest or best in (0, latest.step) or _valid(folder / checkpoint_name(best)):
        return latest
    logger.warning("%s is not valid; resuming before it", folder / checkpoint_name(best))
    return latest_checkpoint(folder, before=best)


def shared_with_longer(folder: Path, cooldown_start: int | None) -> set[str]:
    """The checkpoints that a longer training continues from: that of the step, and its best."""
    if not cooldown_start:
        return set()
    name = checkpoint_name(cooldown_start)
    try:
        best = json.loads((folder / name / STATE).read_bytes())["best_step"]
    except (OSError, ValueError, KeyError):
        return set()
    return {name, checkpoint_name(best)} if best else {name}


def _valid(path: Path) -> Checkpoint | None:
    """The record of a checkpoint; None where there is none, or it is corrupt and quarantined."""
    try:
        return read_record(path, Checkpoint)
    except CorruptionError as error:
        if path.exists():  # else it was pruned while it was read
            logger.warning("%s; moved to %s", error, quarantine(path).name)
        return None


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed trainer left in a run's `checkpoints/`. Only for the run's trainer."""
    delete_leftovers(folder, "step_[0-9]*")


def prune(folder: Path, keep: int, protected: set[str]) -> None:
    """Remove all but the newest `keep` checkpoints and the protected ones."""
    for _, path in checkpoint_folders(folder)[:-keep]:
        if path.name not in protected:
            fault_point("checkpoint.prune")
            discard(path)
