"""Runs read for a comparison: small records and the held-out curve, no weights.

A run takes some milliseconds: its config, its record, its evaluation (whose files are compared with
their hashes), its scores on tasks, and of its journal only what a curve needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import CorruptionError, NewerFormat, UserError, excerpt
from slm.evaluation.identity import text_fingerprint
from slm.history.compare import document_scores, document_sources
from slm.history.curves import HeldOutCurve, held_out_curve
from slm.keys import UNHASHED, with_sources
from slm.records import Benchmarks, Evaluation, Run, TaskScore, task_scores
from slm.run_folder import RunFolder, Settings
from slm.training.needs import measure

SEED = "train.seed"
RECIPE = "recipe"
# No score depends on the settings of these sections.
_OTHER_SECTIONS = ("report.", "benchmark.")


@dataclass(frozen=True)
class ReadRun:
    """What the records of a run give."""

    folder: RunFolder
    state: str
    settings: dict[str, Any]  # by dotted keys, those that a score can depend on, and `recipe`
    inputs: dict[str, str | None]  # what it was made from besides
    curve: HeldOutCurve | None = None
    per_step: int = 0  # tokens
    record: Run | None = None
    evaluation: Evaluation | None = None
    documents: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    sources: list[str] = field(default_factory=list)  # of each of them, where it is a mixture
    scores: dict[str, TaskScore] = field(default_factory=dict)
    flops_per_token: float | None = None
    reason: str | None = None  # why it is not ranked

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int | None:
        return self.settings.get(SEED)

    @property
    def tokens(self) -> int:
        if self.record:
            return self.record.tokens
        return self.curve.tokens if self.curve else 0

    @property
    def seconds(self) -> float | None:
        if self.record:
            return self.record.seconds
        return (self.curve and self.curve.total_seconds) or None

    @property
    def flops(self) -> float | None:
        return self.flops_per_token and self.flops_per_token * self.tokens

    @property
    def bits(self) -> npt.NDArray[np.float64]:
        """Spent on each held-out document, (N,)."""
        return np.asarray(self.documents[:, 0] / np.log(2))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each held-out document, (N,)."""
        return self.documents[:, 2].astype(np.int64)

    @property
    def fingerprint(self) -> float | None:
        return text_fingerprint(self.evaluation) if self.evaluation else None


def read_run(folder: RunFolder) -> ReadRun:
    """What a run's records give; a damaged one is read as far as its settings."""
    settings: dict[str, Any] = {}
    inputs: dict[str, str | None] = {}
    try:
        asked = folder.settings
        settings, inputs = _settings(asked), _inputs(asked)
        record, evaluation = folder.record, folder.evaluation
        curve = held_out_curve(folder)
        state = "finished" if record else "training" if folder.is_training else "stopped"
        documents, reason = np.empty((0, 3)), _reason(folder, state, evaluation, curve, asked)
        sources: list[str] = []
        if evaluation and not reason:
            try:
                documents = document_scores(evaluation)
                sources = document_sources(evaluation)
            except (OSError, ValueError, KeyError) as error:
                reason = f"its evaluation cannot be read: {excerpt(error)}"
        weights = evaluation.weights_sha256 if evaluation else None
        results = folder.benchmarks_of(weights) if weights else folder.all_benchmarks
        return ReadRun(
            folder=folder,
            state=state,
            settings=settings,
            inputs=inputs,
            curve=curve,
            per_step=asked.config.train.tokens_per_step,
            record=record,
            evaluation=evaluation,
            documents=documents,
            sources=sources,
            scores=_scores(results),
            flops_per_token=_flops_per_token(asked, record, curve),
            reason=reason,
        )
    except NewerFormat as error:
        return ReadRun(folder, "newer", settings, inputs, reason=str(error))
    except CorruptionError as error:
        return ReadRun(folder, "damaged", settings, inputs, reason=f"damaged: {error}")


def _settings(asked: Settings) -> dict[str, Any]:
    return {
        key: value
        for key, value in with_sources(asked.config.flat()).items()
        if key == RECIPE or (key not in UNHASHED and not key.startswith(_OTHER_SECTIONS))
    }


def _inputs(asked: Settings) -> dict[str, str | None]:
    """What a run was made from besides its settings: shards, starting weights, another run."""
    derived = asked.derived
    change = None
    if derived:
        ending = f"{derived.longer} steps longer" if derived.longer else "ended there"
        change = f"step {derived.step}, {ending}"
    return {
        "shards": asked.shards_key[:12],
        "starting weights": asked.parent_key and asked.parent_key[:12],
        "made from": change,
    }


def _reason(
    folder: RunFolder,
    state: str,
    evaluation: Evaluation | None,
    curve: HeldOutCurve,
    asked: Settings,
) -> str | None:
    """Why a run is in no ranking."""
    step = curve.tokens // asked.config.train.tokens_per_step
    if state == "training":
        return f"in training, at step {step:,}"
    if state == "stopped":
        return f"stopped at step {step:,}: slm train {folder.name} resumes it"
    if evaluation is None:
        return f"not evaluated: slm evaluate {folder.name}"
    return None


def _flops_per_token(asked: Settings, record: Run | None, curve: HeldOutCurve) -> float | None:
    """Of the forward and backward passes, with the vocabulary that the model really has."""
    try:
        needs = measure(asked.config)
    except UserError:
        return None
    parameters = record.parameters if record else curve.parameters
    return needs.flops_per_token + 6.0 * ((parameters or needs.parameters) - needs.parameters)


def _scores(results: Sequence[Benchmarks]) -> dict[str, TaskScore]:
    return {score.name: score for score in task_scores(results)}


def by_path(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """The folders without those that are in the list already."""
    unique: dict[Path, RunFolder] = {}
    for folder in folders:
        unique.setdefault(folder.path.resolve(), folder)
    return list(unique.values())
