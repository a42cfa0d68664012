"""`slm plan`: what a run of a recipe would reuse, resume and make, why, and what it would cost."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slm import keys
from slm.config import DEFAULT_RECIPE, PipelineConfig
from slm.machine import cpu_name
from slm.planning.cost import with_cost
from slm.planning.data import plan_download, plan_encode, plan_tokenizer
from slm.planning.lines import Lines
from slm.planning.mixture import plan_mix, plan_sources
from slm.planning.of_run import plan_benchmark, plan_evaluate, plan_register, plan_report
from slm.planning.results import Changed, Results, differences
from slm.planning.stage import OWN, Stage
from slm.planning.training import plan_train
from slm.recipes import load_with_origins
from slm.records import Evaluation, Frozen, Run
from slm.run_folder import DataRoot, RunFolder
from slm.size import Origin
from slm.storage import hashing_once
from slm.training.needs import measure
from slm.training.provenance import code_state


class ModelSize(Frozen):
    """How large a model is, and its FLOPs in training; those of the vocabulary apart."""

    parameters: int
    non_embedding: int  # of the matrices inside the blocks
    vocabulary: int
    flops_per_token: float  # all of them
    vocabulary_flops_per_token: float  # of the output layer


class PipelinePlan(Frozen):
    """What a run would do, stage by stage. Nothing was done for it."""

    recipe: str
    run: str | None = None  # that the stages are compared with; None: with the nearest results
    stages: tuple[Stage, ...]
    uncounted: Changed  # settings that differ from that run's, and change no result
    environment: Changed  # how this machine and code differ from what made that run
    model: ModelSize | None = None  # None: not known before the weights are here
    derived: tuple[Origin, ...] = ()  # what a size or depth could derive, and where it came from
    seconds: float  # of the stages whose time is known
    unknown: tuple[str, ...]  # the stages whose time is not
    verified: bool  # whether files were hashed and servers asked

    def __getitem__(self, stage: str) -> Stage:
        """A stage by its name, such as `download`; of one source of a mixture `download wiki`."""
        named = (each for each in self.stages if each.title == stage)
        return next(named, None) or next(each for each in self.stages if each.stage == stage)

    @property
    def first(self) -> Stage | None:
        """The first stage that is not reused as it is; None where all are."""
        return next((each for each in self.stages if each.action != "reused"), None)


@hashing_once()
def plan_config(
    config: PipelineConfig,
    *,
    root: Path | None = None,
    verify: bool = False,
    against: RunFolder | None = None,
    origins: Sequence[Origin] = (),
) -> PipelinePlan:
    """The plan of a config.

    Args:
        root: the data folder; None: as of `DataRoot`.
        verify: hash the files and ask hub and registry, as a run does, which takes its time.
        against: a run that each stage is compared with; None: the nearest results.
        origins: as of `load_with_origins`.

    Raises UserError for what a run would refuse before its first stage, such as missing files.
    """
    results = Results(DataRoot(root))
    lines, run, evaluation = plan_scored(config, results, verify=verify, against=against)
    plan_benchmark(lines, run)
    report = plan_report(lines, run, evaluation)
    plan_register(lines, run, evaluation, report)
    stages = tuple(
        with_cost(stage, lines.of_sources.get(stage.part or "", lines)) for stage in lines.stages
    )
    pending = [stage for stage in stages if stage.action in ("to run", "resumed")]
    return PipelinePlan(
        recipe=config.recipe,
        run=against.name if against else None,
        stages=stages,
        uncounted=_uncounted(lines, stages),
        environment=_environment(lines.reference),
        model=model_size(config) if lines.start_known else None,
        derived=tuple(origins),
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        unknown=tuple(stage.title for stage in pending if stage.seconds is None),
        verified=verify,
    )


def plan_scored(
    config: PipelineConfig,
    results: Results,
    *,
    verify: bool = False,
    against: RunFolder | None = None,
    explain: bool = True,
) -> tuple[Lines, Run | None, Evaluation | None]:
    """The stages up to evaluate, without what they cost, and the two that these would reuse.

    The other arguments are those of `plan_config` and `Lines`.
    """
    if config.train.init_from is None:
        lines = Lines(config, results, verify=verify, against=against, explain=explain)
    else:  # which loads PyTorch
        from slm.planning.initial import plan_start

        config, start, line = plan_start(config, results.root.path, verify=verify)
        lines = Lines(config, results, verify=verify, against=against, explain=explain)
        lines.start, lines.start_known = start, line.key is not None
        lines.stages.append(line)
    mixed = bool(config.data.sources)
    lines.source = plan_sources(lines) if mixed else plan_download(lines)
    if config.data.makes_vocabulary:
        lines.vocabulary = plan_tokenizer(lines, lines.source)
    lines.shards = plan_mix(lines) if mixed else plan_encode(lines, lines.source)
    run = plan_train(lines, lines.shards)
    return lines, run, plan_evaluate(lines, run, lines.shards)


def plan(
    recipe: str = DEFAULT_RECIPE,
    overrides: dict[str, Any] | None = None,
    *,
    verify: bool = False,
) -> PipelinePlan:
    """What `slm.run` of a recipe would reuse, resume and make, and why; nothing is done.

    >>> slm.plan("quickstart", {"train.learning_rate": 3e-3})["train"].changed
    {'train.learning_rate': (0.006, 0.003)}

    Args:
        recipe: a name in `pipelines.yaml`.
        overrides: settings by dotted key.
        verify: hash local files and results instead of comparing sizes and times.
    """
    config, origins = load_with_origins(recipe, overrides)
    return plan_config(config, verify=verify, origins=origins)


def model_size(config: PipelineConfig) -> ModelSize:
    """How large the model of a config is."""
    needs = measure(config)
    return ModelSize(
        parameters=needs.parameters,
        non_embedding=needs.non_embedding,
        vocabulary=needs.vocabulary,
        flops_per_token=needs.flops_per_token,
        vocabulary_flops_per_token=needs.vocabulary_flops_per_token,
    )


def _uncounted(lines: Lines, stages: tuple[Stage, ...]) -> Changed:
    """The settings that differ from those of the run and that no key of this config has."""
    if lines.reference is None:
        return {}
    old = lines.reference.config.flat()
    counted = {name for names in OWN.values() for name in names(lines.config)}
    if lines.config.data.source == "files" and lines.source:
        counted.discard("data.path")  # its files are those that are here already
    counted |= {"data.sources"} if lines.config.data.sources else set()
    if not lines.cadence_counts:
        counted -= set(keys.names_of("select"))
    named = {name for stage in stages for name in stage.changed}
    rest = (name for name in lines.flat if name not in counted | named | {"recipe"})
    return differences(old, lines.flat, rest)


def _environment(run: RunFolder | None) -> Changed:
    """How code, packages and machine differ from those that trained a run: in no key."""
    record = run.record if run else None
    if record is None:
        return {}
    state = code_state()
    here = {
        "commit": state["commit"],
        "dirty": state["dirty"],
        "python": platform.python_version(),
        "torch": _torch_version(),
        "cpu": cpu_name(),
    }
    recorded = record.environment
    return {
        name: (recorded[name], value)
        for name, value in here.items()
        if name in recorded and recorded[name] != value
    }


def _torch_version() -> str | None:
    """The installed torch, which is not imported."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
