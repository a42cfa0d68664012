"""The stages, each a call: `shards = stages.encode(config, source)`.

The display in use times a stage, prints its line and passes it the progress callback. What a stage
needs is imported when it is called, so that a command of one stage starts fast; nothing here
imports Prefect (`tasks.py` does).
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from slm.config import CleanConfig, PipelineConfig, data_root
from slm.errors import UserError
from slm.figures import duration
from slm.orchestration.display import current, outcome_of_record, stage
from slm.progress import Progress, silent
from slm.recipes import store_address
from slm.records import (
    Benchmarks,
    Evaluation,
    JournalEntry,
    Parent,
    Report,
    Run,
    Shards,
    Source,
    Version,
    Vocabulary,
)
from slm.run_folder import RunFolder
from slm.storage import hashing_once

if TYPE_CHECKING:
    from types import ModuleType

    from slm.registry.initial import Start
    from slm.registry.version import GateDecision
    from slm.retraining.decide import Decision
    from slm.store.sharing import SharedStore

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("slm.training")  # below `slm`, so that its lines reach the Prefect page


def starting_point(config: PipelineConfig) -> "tuple[PipelineConfig, Start | None]":
    """The config with the shape of the model that it starts from, and that model.

    Without `train.init_from` the config is as it was, and the model is None. Of a model of the hub
    only small files are downloaded: `initial_model` gets the weights.
    """
    if config.train.init_from is None:
        return config, None
    import slm.registry.initial

    start = slm.registry.initial.resolve(config)
    assert start is not None, "it is named"
    return slm.registry.initial.agreed(config, start), start


@stage("init_from", lambda parent: ("done", parent.model))
def initial_model(progress: Progress, start: "Start") -> Parent:
    """What a training starts from, with its weights: downloaded and converted if need be."""
    import slm.registry.initial

    return slm.registry.initial.open_parent(start, progress=progress)


def preflight(config: PipelineConfig, start: "Start | None" = None) -> None:
    """Refuse what cannot be trained on this machine, before any stage; log what is unlikely.

    `start`: of `starting_point`, where that is not the seed.
    """
    from slm.training.preflight import check_before_download

    tokenizer_sha256 = start.tokenizer_sha256 if start else None
    for warning in check_before_download(config, tokenizer_sha256=tokenizer_sha256):
        logger.warning(warning)


def store_in_use() -> "SharedStore | None":
    """The store that the project shares its results in; None where it has none."""
    if store_address() is None:
        return None
    import slm.store.sharing

    return slm.store.sharing.shared_store()


def shared(
    work: Callable[Concatenate[Progress, P], R],
) -> Callable[Concatenate[Progress, P], R]:
    """Let a stage ask the project's store before it computes, and fill it when it is done."""

    @wraps(work)
    def call(progress: Progress, /, *args: P.args, **kwargs: P.kwargs) -> R:
        store = store_in_use()
        if store is None:
            return work(progress, *args, **kwargs)
        with hashing_once():
            with store.asked(progress):
                result = work(progress, *args, **kwargs)
            store.fill(result, progress)
        return result

    return call


def _vocabulary(result: Vocabulary) -> tuple[str, str]:
    """The line of its stage, with its size."""
    word, place = outcome_of_record(result)
    return word, f"{place}   {result.vocab_size:,} tokens, {result.kind}"


def check_encoding(config: PipelineConfig, start: "Start | None" = None) -> None:
    """Refuse what cannot be encoded here, before any download; `preflight` does too."""
    data = config.data
    cleaning = [source.clean for source in data.sources.values()] or [data.clean]
    if data.runner == "local" and set(cleaning) == {CleanConfig()} and not data.tokenizer.is_set:
        return
    from slm.training.preflight import check_encoding

    check_encoding(config, tokenizer_sha256=start.tokenizer_sha256 if start else None)


@stage("download")
@shared
def download(
    progress: Progress, config: PipelineConfig, parts: Mapping[str, Source] | None = None
) -> Source:
    """A dataset of the hub, local files or the generated corpus → parquet files.

    `parts`: of a mixture, its sources, which are joined; `downloaded` downloads them first.
    """
    import slm.source.download
    import slm.source.mixture

    if parts is not None:
        return slm.source.mixture.join_sources(config, parts)
    store = store_in_use()
    pulled = store is not None and store.pull_hub_source(config, progress)
    source = slm.source.download.download(config, progress=progress)
    return source.model_copy(update={"pulled": True}) if pulled else source


def downloaded(config: PipelineConfig, steps: "ModuleType | None" = None) -> Source:
    """The source of a config; of a mixture each of its own, then all joined.

    `steps`: as of `slm.orchestration.outline`; None: these stages.
    """
    work, every = (steps.download, steps.each) if steps else (download, each)
    if not config.data.sources:
        source: Source = work(config)
        return source
    parts = every(work, {name: (config.of_source(name),) for name in config.data.sources})
    joined: Source = work(config, parts)
    return joined


def each(work: Callable[..., R], arguments: Mapping[str, tuple[object, ...]]) -> dict[str, R]:
    """The results of a stage for each source of a mixture, one after another."""
    return {name: work(*given) for name, given in arguments.items()}


@stage("tokenizer", _vocabulary)
@shared
def tokenizer(progress: Progress, config: PipelineConfig, source: Source) -> Vocabulary:
    """The documents of train, or a given file → a vocabulary of one's own."""
    import slm.orchestration.encoding

    return slm.orchestration.encoding.make_tokenizer(config, source, progress=progress)


def vocabulary_of(
    config: PipelineConfig,
    source: Source,
    parent: Parent | None = None,
    *,
    make: Callable[[PipelineConfig, Source], Vocabulary] = tokenizer,
) -> Vocabulary | None:
    """The vocabulary that a stage makes; None where it is GPT-2's, or comes with the parent.

    `make`: the stage, or the task of it.
    """
    return make(config, source) if config.data.makes_vocabulary and not parent else None


@stage("encode")
@shared
def encode(
    progress: Progress,
    config: PipelineConfig,
    source: Source,
    parent: Parent | None = None,
    vocabulary: Vocabulary | None = None,
) -> Shards:
    """Parquet files → token shards and their tokenizer: the parent's, where there is one."""
    import slm.orchestration.encoding

    return slm.orchestration.encoding.encode(
        config, source, parent=parent, vocabulary=vocabulary, progress=progress
    )


@stage("encode")
@shared
def encode_part(
    progress: Progress,
    config: PipelineConfig,
    source: Source,
    name: str,
    parent: Parent | None = None,
    vocabulary: Vocabulary | None = None,
) -> Shards:
    """One source of a mixture → its token shards, by the vocabulary of all."""
    import slm.orchestration.encoding

    return slm.orchestration.encoding.encode_part(
        config, source, name, parent=parent, vocabulary=vocabulary, progress=progress
    )


@stage("mix")
@shared
def mix(
    progress: Progress, config: PipelineConfig, source: Source, parts: Mapping[str, Shards]
) -> Shards:
    """The shards of the sources of a mixture → its own, without duplicates across them."""
    import slm.tokens.mixture.joining

    return slm.tokens.mixture.joining.mix(config, source, parts, progress=progress)


def encoded(
    config: PipelineConfig,
    source: Source,
    parent: Parent | None = None,
    steps: "ModuleType | None" = None,
) -> "Iterator[Vocabulary | dict[str, Shards] | Shards]":
    """What becomes of a source: its vocabulary if a stage makes one, and last its shards.

    Of a mixture the shards of each of its sources come before them.

    `steps`: as of `slm.orchestration.outline`; None: these stages.
    """
    own = steps or sys.modules[__name__]
    if vocabulary := vocabulary_of(config, source, parent, make=own.tokenizer):
        yield vocabulary
    if not config.data.sources:
        yield own.encode(config, source, parent, vocabulary)
        return
    yield (parts := {
        name: own.encode_part(config, source, name, parent, vocabulary)
        for name in config.data.sources
    })  # fmt: skip
    yield own.mix(config, source, parts)


def shards_of(config: PipelineConfig, source: Source, parent: Parent | None = None) -> Shards:
    """A source → its shards, by the vocabulary that the config or the parent has."""
    *_, shards = encoded(config, source, parent)
    assert isinstance(shards, Shards)
    return shards


def all_shards(config: PipelineConfig) -> Shards:
    """The shards of a config, with every stage before them."""
    config, start = starting_point(config)
    check_encoding(config, start)
    source = downloaded(config)
    parent = initial_model(start) if start else None
    return shards_of(config, source, parent)


def check_tracking(config: PipelineConfig) -> None:
    """Raises UserError where the model's experiment was deleted, before any work is spent."""
    import slm.tracking.server

    slm.tracking.server.check_experiment(config, data_root())


@stage("train")
@shared
def train(
    progress: Progress,
    config: PipelineConfig,
    shards: Shards,
    parent: Parent | None = None,
    *,
    turn: AbstractContextManager[None] | None = None,
    also: Progress = silent,
    forecasts: bool = True,
) -> Run:
    """Token shards → a run folder with checkpoints, trained in a child process, mirrored in MLflow.

    Args:
        parent: the model that the training continues from; None: it starts from the seed.
        turn: entered while it trains; waits where others train. Not for a finished run.
        also: a second progress callback.
        forecasts: whether a probe of some seconds forecasts its time before it starts.
    """
    import slm.training.launch
    from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
    from slm.training.preflight import check_prompts

    check_prompts(
        config.report, config.model.seq_len, lambda: Tokenizer.load(shards.path / TOKENIZER)
    )

    def report(what: str, done: float, total: float | None) -> None:
        progress(what, done, total)
        also(what, done, total)

    store = store_in_use()
    pulled = store is not None and store.pull_run(config, shards, parent, progress)
    run = slm.training.launch.train(
        config,
        shards,
        parent=parent,
        progress=report,
        on_event=_log_event,
        around=partial(_around, turn=turn, forecasts=forecasts),
    )
    return run.model_copy(update={"pulled": True}) if pulled else run


@contextmanager
def _around(
    run: RunFolder,
    turn: AbstractContextManager[None] | None = None,
    forecasts: bool = True,
) -> Iterator[None]:
    """What runs while a run trains: its mirror in MLflow; before it starts, its forecast."""
    import slm.tracking.mirror
    from slm.training.forecast import forecast_start

    with turn or nullcontext():
        if forecasts and (cost := forecast_start(run)):
            current().write(
                f"{'train':<9} about {duration(cost.seconds)}: {cost.max_steps:,} steps, "
                f"{cost.tok_per_sec:,.0f} tokens/s in a probe"
            )
        with slm.tracking.mirror.mirror(run):
            yield


def need_shards(run: RunFolder) -> Shards:
    """The shards of a run, rebuilt by its own settings where they are gone."""
    if shards := run.shards:
        return shards
    store = store_in_use()
    if store and store.pull("shards", run.settings.shards_key) and (shards := run.shards):
        return shards
    config = run.config
    source, parent = downloaded(config), run.parent
    shards = shards_of(config, source, parent)
    if shards.key != run.settings.shards_key:
        raise UserError(
            f"the shards of {run.name} are gone, and its data gives others now "
            f"({shards.name}): train another run on them, `slm train {config.recipe}`"
        )
    return shards


@stage("train")
@shared
def resume(progress: Progress, run: RunFolder) -> Run:
    """An unfinished run → the same, trained to its end by its own settings."""
    import slm.training.launch

    store = store_in_use()
    pulled = store is not None and store.finish_run(run, progress)
    ended = slm.training.launch.resume(run, progress=progress, on_event=_log_event, around=_around)
    return ended.model_copy(update={"pulled": True}) if pulled else ended


@stage("finish")
@shared
def finish(progress: Progress, run: RunFolder) -> Run:
    """A run that ended early → a finished one of its last checkpoint, in a folder of its own."""
    import slm.training.derive

    return slm.training.derive.finish(run, progress=progress, on_event=_log_event, around=_around)


@stage("train")
@shared
def train_longer(progress: Progress, run: RunFolder, steps: int) -> Run:
    """A run → one that is trained for more steps, in a folder of its own."""
    import slm.training.derive

    return slm.training.derive.train_longer(
        run, steps, progress=progress, on_event=_log_event, around=_around
    )


def _log_event(event: JournalEntry) -> None:
    """Log what a training does besides its steps, for the Prefect page."""
    if event["event"] != "step":
        facts = {name: value for name, value in event.items() if name not in ("event", "time")}
        words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        logger.info("training: %s, %s", event["event"], ", ".join(words))


@stage("evaluate")
@shared
def evaluate(progress: Progress, config: PipelineConfig, run: Run, shards: Shards) -> Evaluation:
    """A checkpoint → its loss and bits per byte on every held-out document."""
    import slm.evaluation.evaluate

    return slm.evaluation.evaluate.evaluate(config, run, shards, progress=progress)


def _scores(result: Benchmarks) -> tuple[str, str]:
    """The line of its stage, with the accuracies."""
    from slm.evaluation.benchmark.results import show_score

    word, place = outcome_of_record(result)
    return word, f"{place}   {'; '.join(map(show_score, result.tasks))}"


@stage("benchmark", _scores)
@shared
def benchmark(
    progress: Progress, config: PipelineConfig, run: Run, shards: Shards | None = None
) -> Benchmarks:
    """A checkpoint → its accuracy on the tasks of `benchmark.tasks`."""
    import slm.evaluation.benchmark.benchmark

    return slm.evaluation.benchmark.benchmark.benchmark(config, run, shards, progress=progress)


@stage("report")
@shared
def report(
    progress: Progress,
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
) -> Report:
    """A run and its evaluation → a page that compares it with the champion, and a model card.

    It shows every task of a benchmark that the checkpoint was scored on.
    """
    import slm.report.write
    from slm.registry.versions import champion_run

    return slm.report.write.write_report(
        config,
        run,
        evaluation,
        shards,
        RunFolder.of(run).benchmarks_of(evaluation.weights_sha256),
        champion=lambda: champion_run(config),
        progress=progress,
    )


@stage("register")
def register(
    progress: Progress,
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    report: Report,
    shards: Shards | None,
) -> Version:
    """A run with its evaluation and report → a version in the MLflow registry."""
    import slm.registry.register

    return slm.registry.register.register(config, run, evaluation, report, shards)


@stage("decide", lambda decision: (decision.action, decision.reason))
def decide(
    progress: Progress, config: PipelineConfig, source: Source, initial: Parent | None = None
) -> "Decision":
    """A source and the champion → whether to train again, and how much.

    `initial`: of `initial_model`, what a training of the recipe starts from; None: the seed.
    """
    import slm.retraining.decide

    return slm.retraining.decide.decide(config, source, initial, progress=progress)


def _outcome(decision: "GateDecision | None") -> tuple[str, str]:
    if decision is None:
        return "reused", "it is the champion already"
    return decision.decision, f"{decision.uri}: {decision.reason}"


@stage("assess", lambda decision: ("done", _outcome(decision)[1]))
def assess(progress: Progress, config: PipelineConfig, version: Version) -> "GateDecision | None":
    """A version → what the gate would decide; None where it is the champion. Nothing moves."""
    import slm.registry.gate
    import slm.tracking.server
    from slm.registry.version import CHAMPION

    if CHAMPION in version.aliases:
        return None
    uri = slm.tracking.server.tracking_uri(config, data_root())
    return slm.registry.gate.assess(
        version.uri, uri=uri, thresholds=config.registry, progress=progress
    )


@stage("promote", _outcome)
def promote(
    progress: Progress,
    config: PipelineConfig,
    version: Version,
    decision: "GateDecision | None" = None,
) -> "GateDecision | None":
    """A version → champion, where the gate finds it better; None where it is champion already.

    `decision`: that of `assess`, after a person has answered.
    """
    import slm.registry.gate
    import slm.tracking.server
    from slm.registry.version import CHAMPION

    if CHAMPION in version.aliases:
        return None
    uri = slm.tracking.server.tracking_uri(config, data_root())
    if decision:
        return slm.registry.gate.carry_out(decision, uri=uri)
    return slm.registry.gate.promote(
        version.uri, uri=uri, thresholds=config.registry, progress=progress
    )
