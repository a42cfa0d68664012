"""The tags of a version, which hold what it was made of, and the key of its registration.

Nothing here loads PyTorch or MLflow.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm import keys, storage
from slm.config import PipelineConfig
from slm.history.sweeps import TrialOf, trials_of
from slm.records import (
    Benchmarks,
    Checkpoint,
    Derivation,
    Evaluation,
    Parent,
    Report,
    Run,
    Shards,
    Source,
    Version,
    task_scores,
)
from slm.run_folder import PARENT, RunFolder
from slm.tracking.entities import public_uri
from slm.tracking.server import recorded_uri, tracking_uri

REGISTER_VERSION = 1
"""Goes up whenever the same run gives another model version."""

PREFIX = "slm."  # of our tags
BENCHMARK, ACCURACY = "benchmark.", ".accuracy"  # around a task's name, in the tag of its score


@dataclass(frozen=True)
class Ingredients:
    """What a version is made of; None for what is gone from here, or never was."""

    config: PipelineConfig
    source: Source | None
    shards: Shards | None
    parent: Parent | None
    run: Run
    checkpoint: Checkpoint
    evaluation: Evaluation
    report: Report | None
    derived: Derivation | None = None  # how the run was made from another one, if it was
    trial: TrialOf | None = None  # of a sweep that the run is, the earliest, if it is one
    benchmarks: tuple[Benchmarks, ...] = ()  # of these weights, those of the run's own tasks first


@dataclass(frozen=True)
class ChainTag:
    """A tag of a version."""

    name: str  # without `slm.`
    value: Callable[[Ingredients], Any]  # None: the tag is left out
    link: str | None = None  # the link of the lineage whose digest it carries
    required: bool = False  # the gate refuses a version without it


CHAIN = (
    ChainTag("dataset", lambda made: made.source and made.source.dataset, required=True),
    ChainTag("dataset_revision", lambda made: made.source and made.source.revision, required=True),
    ChainTag("source_key", lambda made: made.shards and made.shards.source_key, "source", True),
    ChainTag("tokenizer_sha256", lambda made: made.checkpoint.tokenizer_sha256, "tokenizer", True),
    ChainTag("shards_key", lambda made: made.run.shards_key, "shards", True),
    ChainTag("config_sha256", lambda made: made.checkpoint.config_sha256, "config", True),
    ChainTag("code_commit", lambda made: made.run.environment.get("commit")),
    ChainTag("code_dirty", lambda made: made.run.environment.get("dirty")),
    ChainTag("code_diff_sha256", lambda made: made.run.environment.get("diff_sha256")),
    ChainTag("code_modules_sha256", lambda made: made.run.environment.get("modules_sha256")),
    ChainTag(
        "environment_sha256",
        lambda made: storage.sha256_json(made.run.environment),
        "environment",
        True,
    ),
    ChainTag("recipe", lambda made: made.config.recipe),
    ChainTag("parent", lambda made: made.parent and made.parent.model),
    ChainTag("parent_sha256", lambda made: made.parent and made.parent.key, "parent"),
    ChainTag("init_from", lambda made: made.parent and made.config.train.init_from),
    ChainTag("made_from", lambda made: made.derived and made.derived.text),
    ChainTag("made_from_key", lambda made: made.derived and made.derived.key, "made from"),
    ChainTag("sweep", lambda made: made.trial and made.trial.sweep),
    ChainTag("trial", lambda made: made.trial and made.trial.trial),
    ChainTag("run", lambda made: made.run.name),
    ChainTag("run_key", lambda made: made.run.key, "run", True),
    ChainTag("checkpoint", lambda made: made.checkpoint.name),
    ChainTag("weights_sha256", lambda made: made.checkpoint.weights_sha256, "checkpoint", True),
    ChainTag("evaluation_key", lambda made: made.evaluation.key),
    ChainTag(
        "evaluation_sha256", lambda made: storage.content_hash(made.evaluation), "evaluation", True
    ),
    ChainTag("report_sha256", lambda made: made.report and storage.content_hash(made.report)),
    ChainTag("val_loss", lambda made: made.evaluation.val_loss),
    ChainTag("val_bpb", lambda made: made.evaluation.val_bpb, required=True),
    ChainTag("determinism_level", lambda made: made.run.level),
)
REQUIRED = tuple(tag.name for tag in CHAIN if tag.required)


def chain_tags(made: Ingredients) -> dict[str, str]:
    """The tags of the chain, without their prefix. What is gone from here is left out."""
    values = ((tag.name, tag.value(made)) for tag in CHAIN)
    tags = {name: public_uri(str(value)) for name, value in values if value is not None}
    return tags | {
        f"{BENCHMARK}{score.name}{ACCURACY}": str(score.accuracy)
        for score in task_scores(made.benchmarks)
    }


def benchmark_accuracies(tags: Mapping[str, str]) -> dict[str, float]:
    """The accuracy of each task that a version with these tags was scored on."""
    return {
        tag.removeprefix(BENCHMARK).removesuffix(ACCURACY): float(value)
        for tag, value in tags.items()
        if tag.startswith(BENCHMARK) and tag.endswith(ACCURACY)
    }


# ---- registration -----------------------------------------------------------------------------


def ingredients(
    config: PipelineConfig,
    run: Run,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    report: Report | None,
    shards: Shards | None,
) -> Ingredients:
    """What a version of a run is made of, as its data folder has it now."""
    home = RunFolder.of(run)
    return Ingredients(
        config=config,
        source=home.root.source(shards.source_key) if shards else None,
        shards=shards,
        parent=storage.read_record(run.path / PARENT, Parent, verify=False),
        run=run,
        checkpoint=checkpoint,
        evaluation=evaluation,
        report=report,
        derived=home.settings.derived,
        trial=next(iter(trials_of(home)), None),
        benchmarks=home.benchmarks_of(checkpoint.weights_sha256),
    )


def register_key(config: PipelineConfig, tags: Mapping[str, str], root: Path) -> str:
    """The key of the version with these tags. `root`: the data folder."""
    uri = tracking_uri(config, root)
    fields = {"model": config.model_name, "tracking_uri": recorded_uri(uri, root)}
    prefixed = {PREFIX + name: value for name, value in tags.items()}
    return keys.stage_key("register", REGISTER_VERSION, fields, prefixed)


def registered_notes(run: Path) -> list[Path]:
    """The notes in a run's folder of the versions that were made from it.

    `registered.json` is of the model name and server of the run's own settings; a version under
    another name or on another server has `registered-<key>.json`.
    """
    return sorted(run.glob("registered*.json"))


def read_note(note: Path) -> Version | None:
    """The version that a note remembers; None where the note is gone or damaged."""
    with suppress(FileNotFoundError, ValueError):
        return Version.model_validate_json(note.read_bytes())
    return None
