"""The pipeline as an outline: one for Prefect's flow and for a plain call."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from slm.config import PipelineConfig
from slm.errors import UserError, unknown
from slm.orchestration import stages
from slm.orchestration.display import Display, current, showing
from slm.recipes import default_recipe, load_recipe
from slm.records import Benchmarks, Evaluation, Report, Run, Shards, Source, Version, Vocabulary
from slm.run_folder import CHECKPOINTS

if TYPE_CHECKING:
    from slm.registry.initial import Start
    from slm.registry.version import GateDecision

    Result: TypeAlias = (
        Source
        | Vocabulary
        | Shards
        | dict[str, Shards]
        | Run
        | Evaluation
        | Benchmarks
        | Report
        | Version
        | GateDecision
        | None
    )

Until = Literal[
    "download",
    "tokenizer",
    "encode",
    "mix",
    "train",
    "evaluate",
    "benchmark",
    "report",
    "register",
    "promote",
]


# Why a stage is not there.
MISSING = {
    "tokenizer": "the vocabulary is GPT-2's: set data.tokenizer.train=bpe",
    "mix": "there is one source alone: set data.sources",
    "benchmark": "no task is given: set benchmark.tasks=[blimp]",
}


def outline(
    steps: ModuleType, config: PipelineConfig, start: "Start | None" = None
) -> "Iterator[Result]":
    """Every stage's result, in order, as of `stages_of`. A stage runs when its result is asked for.

    Args:
        steps: `slm.orchestration.stages`, or `tasks`, which are the same as tasks of Prefect.
        start: what the training starts from, as of `stages.starting_point`; None: the seed.
    """
    yield (source := stages.downloaded(config, steps))
    parent = steps.initial_model(start) if start else None
    for made in stages.encoded(config, source, parent, steps):
        yield (shards := made)
    yield (run := steps.train(config, shards, parent))
    yield (evaluation := steps.evaluate(config, run, shards))
    if config.benchmark.tasks:
        yield steps.benchmark(config, run, shards)
    yield (report := steps.report(config, run, evaluation, shards))
    yield (version := steps.register(config, run, evaluation, report, shards))
    yield steps.promote(config, version)


def stages_of(config: PipelineConfig) -> list[str]:
    """The stages of a config, in order: some are there only where the config asks for them."""
    asked = {
        "tokenizer": config.data.makes_vocabulary,
        "mix": bool(config.data.sources),
        "benchmark": bool(config.benchmark.tasks),
    }
    return [name for name in get_args(Until) if asked.get(name, True)]


def run(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    until: Until = "promote",
) -> dict[str, Any]:
    """Run a recipe's pipeline, without Prefect; returns what was made, as JSON values.

    >>> slm.run("quickstart", {"train.max_steps": 100}, until="evaluate")["val_bpb"]

    Args:
        recipe: a name in `pipelines.yaml`; None: the only one there is, else quickstart.
        overrides: settings by dotted key.
        until: the last stage to run. A stage that is complete is reused.
    """
    return run_pipeline(load_recipe(recipe or default_recipe(), overrides), until)


def run_pipeline(
    config: PipelineConfig, until: Until = "promote", *, steps: ModuleType = stages
) -> dict[str, Any]:
    """Run a pipeline up to a stage; returns what was made, as JSON values.

    `steps`: as of `outline`.
    """
    if until not in get_args(Until):
        raise unknown("stage", until, get_args(Until))
    every = stages_of(config)
    if until not in every:
        raise UserError(f"until={until}, but {MISSING[until]}")
    count = every.index(until) + 1
    if count > every.index("train"):
        stages.check_tracking(config)
    with showing(current()) as display:
        start = None
        if count > every.index("encode"):
            config, start = steps.starting_point(config)
        if count > every.index("train"):
            stages.preflight(config, start)
        elif count > 1:
            stages.check_encoding(config, start)
        made = summary(config, islice(outline(steps, config, start), count))
        started = {"init_from": start.model} if start else {}
        return {**made, **started, **took(display)}


def took(display: Display) -> dict[str, Any]:
    """The seconds of each stage, which were reused, and which of these a store had, if any."""
    pulled = {"pulled": display.pulled} if display.pulled else {}
    return {"seconds": display.seconds, "reused": display.reused, **pulled}


def summary(config: PipelineConfig, results: "Iterable[Result]") -> dict[str, Any]:
    """What was made, as JSON values."""
    made: dict[str, Any] = {"recipe": config.recipe}
    for result in results:
        made |= _facts(result)
    return made


def _facts(result: "Result") -> dict[str, Any]:
    match result:
        case Source():
            return {"source": str(result.path)}
        case Vocabulary():
            return {"tokenizer": str(result.path)}
        case Shards():
            return {"shards": str(result.path)}
        case dict():
            return {"parts": {name: str(shards.path) for name, shards in result.items()}}
        case Run():
            return {"run": str(result.path)}
        case Evaluation(val_loss=val_loss, val_bpb=val_bpb):
            checkpoint = result.path.parent / CHECKPOINTS / result.checkpoint
            return {"checkpoint": str(checkpoint), "val_loss": val_loss, "val_bpb": val_bpb}
        case Benchmarks(tasks=tasks):
            return {"benchmarks": {score.name: score.accuracy for score in tasks}}
        case Report():
            return {"report": str(result.path / result.html)}
        case Version():
            return {"version": result.uri}
        case None:  # of the last stage
            return {"champion": True, "verdict": "it is the champion already"}
        case decision:
            promoted = decision.decision == "promoted"
            return {"champion": promoted, "verdict": decision.reason}
