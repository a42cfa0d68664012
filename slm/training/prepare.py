"""The run folder of a config, before its training: settings, and the model that it starts from."""

import shutil
from dataclasses import replace
from pathlib import Path

from slm.config import PipelineConfig
from slm.errors import CorruptionError, UserError
from slm.model.saved import MODEL_FILES
from slm.records import Derivation, Parent, Shards
from slm.run_folder import CHECKPOINTS, PARENT, DataRoot, RunFolder, Settings
from slm.storage import make_folder, run_stage
from slm.tokens.mixture.order import planned_order
from slm.training.identity import find_run, run_inputs, run_keys
from slm.training.needs import planned_steps
from slm.training.selection import check_resumable


def prepare(
    config: PipelineConfig,
    shards: Shards,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
    key: str | None = None,
    derived: Derivation | None = None,
) -> RunFolder:
    """The run folder of a config on some shards, made where there is none yet.

    Args:
        parent: the model that the weights start from; the run keeps a copy. None: from the seed.
        key: of a run that is rebuilt; None: the config's.
        derived: how a run that is rebuilt was made from another one, if it was.
    """
    if config.train.init_from and parent is None:
        raise UserError(starts_elsewhere(config))
    parent_key = parent.key if parent else None
    if key:
        run = RunFolder(DataRoot(root).folder("runs", config.folder_name, key))
    else:
        run = find_run(config, shards, parent_key, DataRoot(root))
    if not run.exists:
        key = key or run_keys(config, run_inputs(shards, parent_key))[0]
        check_order(config, shards)
        make_folder(run.path / CHECKPOINTS)
        if parent:
            keep_parent(parent, run)
        run.write_settings(Settings(key, config, shards.key, parent_key, derived))
    return run


def check_order(config: PipelineConfig, shards: Shards) -> None:
    """Raises UserError where the sources of a mixture cannot be trained on as the settings ask."""
    rows = config.train.tokens_per_step // config.model.seq_len
    planned_order(config, shards, rows, planned_steps(config, shards.trained_on))


def starts_elsewhere(config: PipelineConfig) -> str:
    """Why a config cannot be trained as it is: the model that it starts from is not given."""
    return (
        f"train.init_from={config.train.init_from}: `config, parent = slm.initial_model(config)` "
        "opens that model; give it as parent=parent"
    )


def renew_settings(run: RunFolder, config: PipelineConfig) -> None:
    """Let an unfinished run resume with today's values of the settings that are not in its key.

    Raises UserError where its best checkpoint so far was chosen by another cadence.
    """
    settings = run.settings
    if settings.config.train == config.train or run.is_finished:
        return
    former = check_resumable(run, config)
    train = config.train
    if former:  # its hashes have it
        own = settings.config.train.checkpoint_every
        train = train.model_copy(update={"checkpoint_every": own})
    renewed = settings.config.model_copy(update={"train": train})
    run.write_settings(replace(settings, config=renewed))


def keep_parent(parent: Parent, run: RunFolder) -> None:
    """Copy the parent's files into the run's folder."""

    def copy(staging: Path) -> Parent:
        try:
            for name in MODEL_FILES:
                shutil.copy(parent.path / name, staging / name)
        except FileNotFoundError as error:
            raise CorruptionError(f"{error.filename} was deleted meanwhile: try again") from error
        return parent

    kept = run_stage(run.path / PARENT, Parent, parent.key, copy)
    if kept.files != parent.files:
        raise CorruptionError(f"{parent.path} changed while it was copied: try again")
