"""Which benchmarks a config asks for: their key, and their folder in the run's, without PyTorch."""

from collections.abc import Sequence
from pathlib import Path

from slm import keys
from slm.config import PipelineConfig
from slm.evaluation.benchmark.items import Task
from slm.records import Run
from slm.run_folder import BENCHMARKS, RunFolder

BENCHMARK_VERSION = 1


def benchmark_key(
    config: PipelineConfig, tasks: Sequence[Task], weights_sha256: str, shards_key: str
) -> str:
    """The key of the scores of these weights on these tasks.

    It has what the items are, not where they were read from. The shards count where the baselines
    are asked for, which are made from them.
    """
    inputs = {
        "weights": weights_sha256,
        "tasks": [[task.name, task.sha256] for task in tasks],
        "shards": shards_key if config.benchmark.baselines else None,
    }
    fields = {"baselines": config.benchmark.baselines}
    return keys.stage_key("benchmark", BENCHMARK_VERSION, fields, inputs)


def benchmark_folder(config: PipelineConfig, run: Run, key: str) -> Path:
    """Where the scores of a key belong: the plain name is for the run's own settings."""
    home = RunFolder.of(run)
    recorded = home.record or run
    which = config.evaluate.checkpoint
    is_runs_own = recorded.checkpoint(which).name == run.checkpoint(which).name
    same = config.evaluate.checkpoint == home.config.evaluate.checkpoint
    own = same and is_runs_own and config.benchmark == home.config.benchmark
    return home.result_folder(BENCHMARKS, None if own else key)
