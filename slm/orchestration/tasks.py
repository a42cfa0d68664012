"""The stages as Prefect tasks, with what the Prefect page shows of their results.

Prefect's result cache stays off: keys and records on disk decide what is complete, with and
without Prefect. Only what downloads is retried, as only it needs the network.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

import slm.training.processes
from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.orchestration import artifacts, events, stages
from slm.orchestration.gpu_limit import slot
from slm.records import Benchmarks, Evaluation, Parent, Report, Run, Shards, Version
from slm.registry.initial import Start
from slm.registry.version import GateDecision

P = ParamSpec("P")
R = TypeVar("R")

logging.getLogger("slm").setLevel(logging.INFO)  # for the Prefect page; a terminal shows warnings


def stage_task(work: Callable[P, R], **options: Any) -> Task[P, R]:
    """A stage as a task of the same name."""
    return Task(
        work, task_run_name=work.__name__, cache_policy=NO_CACHE, persist_result=False, **options
    )


def may_pass(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether the hub could not be reached. Bad input, damage and bugs come back the same."""
    error = state.result(raise_on_failure=False)
    return type(error) is SlmError or isinstance(error, ConnectionError | TimeoutError)


asks_the_hub: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [5, 20, 60],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
download = stage_task(stages.download, **asks_the_hub)
initial_model = stage_task(stages.initial_model, **asks_the_hub)
_starting_point = stage_task(stages.starting_point, **asks_the_hub)
tokenizer = stage_task(stages.tokenizer, **asks_the_hub)
encode = stage_task(stages.encode)
encode_part = stage_task(stages.encode_part)
mix = stage_task(stages.mix)
decide = stage_task(stages.decide)
assess = stage_task(stages.assess)


def each(work: Task[..., R], arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, R]:
    """The results of a task for each source of a mixture, which run at the same time."""
    futures = {name: work.submit(*given) for name, given in arguments.items()}
    return {name: future.result() for name, future in futures.items()}


def starting_point(config: PipelineConfig) -> tuple[PipelineConfig, Start | None]:
    """The config with the shape of what it starts from: a task only where that is not the seed."""
    return _starting_point(config) if config.train.init_from else (config, None)


@stage_task
def train(config: PipelineConfig, shards: Shards, parent: Parent | None = None) -> Run:
    """Token shards → a trained run, with its progress as an artifact."""
    live = artifacts.LiveProgress("training")
    return stages.train(config, shards, parent, turn=gpu(config), also=live)


def gpu(config: PipelineConfig) -> AbstractContextManager[None]:
    """The server's limit held, where training takes a GPU."""
    on_cuda = config.train.device in ("auto", "cuda")
    if not (on_cuda and slm.training.processes.gpu_count()):
        return nullcontext()
    return slot()


@stage_task
def evaluate(config: PipelineConfig, run: Run, shards: Shards) -> Evaluation:
    """A run → its evaluation, with a table of its figures."""
    evaluation = stages.evaluate(config, run, shards)
    artifacts.publish_metrics(run, evaluation)
    return evaluation


@stage_task
def benchmark(config: PipelineConfig, run: Run, shards: Shards) -> Benchmarks:
    """A run → its scores on tasks, with a table of them."""
    scored = stages.benchmark(config, run, shards)
    artifacts.publish_benchmarks(scored)
    return scored


@stage_task
def report(config: PipelineConfig, run: Run, evaluation: Evaluation, shards: Shards) -> Report:
    """A run and its evaluation → the report, shown on the page."""
    written = stages.report(config, run, evaluation, shards)
    artifacts.publish_report(written)
    return written


@stage_task
def register(
    config: PipelineConfig, run: Run, evaluation: Evaluation, report: Report, shards: Shards
) -> Version:
    """A run with its evaluation and report → a version, with links to it and its lineage."""
    version = stages.register(config, run, evaluation, report, shards)
    artifacts.publish_version(run, version)
    return version


@stage_task
def promote(
    config: PipelineConfig, version: Version, decision: GateDecision | None = None
) -> GateDecision | None:
    """A version → champion, where the gate finds it better; with an event of what it decided."""
    carried_out = stages.promote(config, version, decision)
    if carried_out and not carried_out.reused:
        events.decided(carried_out)
    return carried_out
