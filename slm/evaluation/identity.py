"""Which evaluation a config asks for: its key, folder and file, without PyTorch."""

from pathlib import Path

from slm import keys
from slm.config import PipelineConfig
from slm.records import Evaluation, Run
from slm.run_folder import EVALUATION, RunFolder

EVALUATE_VERSION = 3
XZ = "xz -9"  # the baseline that is given nothing but the held-out text
DETAILS = "evaluation.json"  # the score of every document, and the details of the record


def evaluate_key(
    config: PipelineConfig, weights_sha256: str, shards_key: str, version: int | None = None
) -> str:
    """The key of the evaluation of these weights on the val split of these shards.

    `version`: of the stage; None: today's.
    """
    inputs = {"weights": weights_sha256, "shards": shards_key}
    fields = keys.stage_fields("evaluate", config)
    return keys.stage_key("evaluate", version or EVALUATE_VERSION, fields, inputs)


def evaluation_folder(config: PipelineConfig, run: Run, key: str) -> Path:
    """Where the evaluation of a key belongs: the plain name is for the run's own settings."""
    home = RunFolder.of(run)
    recorded = home.record or run
    which = config.evaluate.checkpoint
    is_runs_own = recorded.checkpoint(which).name == run.checkpoint(which).name
    own = config.evaluate == home.config.evaluate and is_runs_own
    return home.result_folder(EVALUATION, None if own else key)


def text_fingerprint(evaluation: Evaluation) -> float | None:
    """What depends on the held-out text alone: its bits per byte by xz.

    Two texts whose documents have the same lengths differ in it. None where it was not measured.
    """
    baselines = (evaluation.details.get("beside") or {}).get("references", [])
    return next((float(row["bpb"]) for row in baselines if row["name"] == XZ), None)
