"""Which report a config asks for: its key, and its folder in the run's, without PyTorch."""

from collections.abc import Sequence
from pathlib import Path

from slm import keys
from slm.config import PipelineConfig
from slm.records import Benchmarks, Evaluation, Run
from slm.run_folder import BENCHMARKS, EVALUATION, REPORT, RunFolder
from slm.storage import content_hash

REPORT_VERSION = 4
"""Goes up when the same run has other samples or figures, not for other wording or looks: those
make no old report stale.
"""


def report_key(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    benchmarks: Sequence[Benchmarks] = (),
    *,
    version: int | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """The key of the report of a run, its evaluation and its scores on benchmarks, if it has any.

    Args:
        version: of the stage; None: today's.
        left_out: figures that it lacks, as a library is not installed. Where the library is, the
            key is another and the report is rebuilt.
    """
    inputs = [run.key, run.weights_sha256, content_hash(evaluation)]
    inputs += map(content_hash, benchmarks)
    fields = keys.stage_fields("report", config)
    if left_out:
        fields["left_out"] = list(left_out)
    return keys.stage_key("report", version or REPORT_VERSION, fields, inputs)


def report_folder(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    key: str,
    benchmarks: Sequence[Benchmarks] = (),
) -> Path:
    """Where the report of a key belongs: the plain name is for the run's own settings."""
    home = RunFolder.of(run)
    shown = {result.path.name for result in (evaluation, *benchmarks)}
    own = config.report == home.config.report and shown <= {EVALUATION, BENCHMARKS}
    return home.result_folder(REPORT, None if own else key)
