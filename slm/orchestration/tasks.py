"""One thin Prefect task a stage.

Prefect's result cache stays off: keys and records on disk say what is done, with and without
Prefect. Only the download is tried again, as only it needs the network.
"""

import logging
from contextlib import AbstractContextManager, nullcontext

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.tasks import Task

import slm.evaluation.evaluate
import slm.registry.register
import slm.retraining.decide
import slm.source.download
import slm.tokens.encode
import slm.training.launch
from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.orchestration import events, stages
from slm.orchestration.artifacts import LiveProgress
from slm.orchestration.display import current
from slm.records import Evaluation, Parent, Progress, Report, Run, Shards, Source, Version
from slm.registry.versions import GateDecision
from slm.retraining.decide import Decision
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

GPU = "gpu"  # the global concurrency limit of the server that a training on a GPU holds
LEASE_SECONDS = 60.0  # that a training which died keeps it

logging.getLogger("slm").setLevel(logging.INFO)  # for the Prefect page; a terminal shows warnings


def may_pass(task: Task[..., Source], task_run: TaskRun, state: State[Source]) -> bool:
    """Whether the hub could not be reached. Bad input, damage and bugs come back the same."""
    error = state.result(raise_on_failure=False)
    return type(error) is SlmError or isinstance(error, ConnectionError | TimeoutError)


@task(
    task_run_name="download",
    retries=3,
    retry_delay_seconds=[5, 20, 60],
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def download(config: PipelineConfig) -> Source:
    """A dataset of the hub, local files or the generated corpus → parquet files."""
    return current().stage("download", lambda p: slm.source.download.download(config, progress=p))


@task(task_run_name="encode", cache_policy=NO_CACHE, persist_result=False)
def encode(config: PipelineConfig, source: Source, parent: Parent | None = None) -> Shards:
    """Parquet files → token shards and their tokenizer: the parent's, where there is one."""
    tokenizer = Tokenizer.load(parent.path / TOKENIZER) if parent else None
    return current().stage(
        "encode",
        lambda p: slm.tokens.encode.encode(config, source, tokenizer=tokenizer, progress=p),
    )


@task(task_run_name="train", cache_policy=NO_CACHE, persist_result=False)
def train(config: PipelineConfig, shards: Shards, parent: Parent | None = None) -> Run:
    """Token shards → a run folder with checkpoints, trained in a child process."""

    def work(progress: Progress) -> Run:
        shown = LiveProgress(progress, "training")
        return stages.train_mirrored(config, shards, shown, parent=parent, turn=gpu(config))

    return current().stage("train", work)


def gpu(config: PipelineConfig) -> AbstractContextManager[None]:
    """The server's limit held, where training takes a GPU. A server without it lets all train."""
    if config.train.device == "cpu" or not slm.training.launch.gpu_count():
        return nullcontext()
    return concurrency(GPU, lease_duration=LEASE_SECONDS)


@task(task_run_name="evaluate", cache_policy=NO_CACHE, persist_result=False)
def evaluate(config: PipelineConfig, run: Run, shards: Shards) -> Evaluation:
    """A checkpoint → its loss and bits per byte on every held-out document."""
    return current().stage(
        "evaluate", lambda p: slm.evaluation.evaluate.evaluate(config, run, shards, progress=p)
    )


@task(task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def report(config: PipelineConfig, run: Run, evaluation: Evaluation, shards: Shards) -> Report:
    """A run and its evaluation → one HTML file and its Markdown twin."""
    return current().stage("report", lambda p: stages.reported(config, run, evaluation, shards, p))


@task(task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register(
    config: PipelineConfig, run: Run, evaluation: Evaluation, report: Report, shards: Shards
) -> Version:
    """A run with its evaluation and report → a version in the MLflow registry."""
    return current().stage(
        "register",
        lambda _: slm.registry.register.register(config, run, evaluation, report, shards),
    )


@task(task_run_name="decide", cache_policy=NO_CACHE, persist_result=False)
def decide(config: PipelineConfig, source: Source) -> Decision:
    """A source and the champion → whether to train again, and how much."""
    with current().progress("decide") as progress:
        decision = slm.retraining.decide.decide(config, source, progress=progress)
    current().write(f"decide    {decision.action:<7} {decision.reason}")
    return decision


@task(task_run_name="judge", cache_policy=NO_CACHE, persist_result=False)
def judge(config: PipelineConfig, version: Version) -> GateDecision | None:
    """A version and the champion → the gate's verdict; None where it is the champion."""
    return stages.judge(config, version, current())


@task(task_run_name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote(
    config: PipelineConfig, version: Version, verdict: GateDecision | None = None
) -> GateDecision | None:
    """A version → champion, where the gate finds it better; None where it is champion already.

    `verdict`: that of `judge`, after a person was asked.
    """
    found = stages.promote(config, version, current(), verdict)
    if found and not found.reused:
        events.judged(found)
    return found
