"""A sweep without Prefect, as a plain call: `slm.sweep`.

A trial is an ordinary run up to its evaluation. Source and shards are made once, before the first
trial, and reused by all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

from slm.config import CleanConfig, DataConfig, PipelineConfig, TokenizerConfig, data_root
from slm.errors import NewerFormat, Untrainable, UserError
from slm.orchestration import stages
from slm.orchestration.display import Display, current, showing
from slm.planning.sweep import SweepPlan, plan_of_sweep
from slm.progress import Progress
from slm.recipes import load_recipe
from slm.records import Evaluation, Run, Shards
from slm.run_folder import DataRoot
from slm.storage import hashing_once, make_folder, sha256_file, sha256_json
from slm.sweeps.checking import corners
from slm.sweeps.definition import Sweep, define_sweep, load_sweep, sweep_names, warnings_of
from slm.sweeps.driver import OnTrial, RunTrial, check_stopping, run_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SweepResult, Trial
from slm.sweeps.tracked import tracked
from slm.sweeps.winner import choose
from slm.tokens.functions import KINDS, functions_of
from slm.tracking.sweeps import mirror
from slm.training.warm import warm_starts

logger = logging.getLogger(__name__)
START, TOKENIZER = "train.init_from", "data.tokenizer.path"


def sweep(
    name: str,
    space: Mapping[str, Any] | None = None,
    /,
    *,
    workers: int = 1,
    **fields: Any,
) -> SweepResult:
    """Run a sweep of `pipelines.yaml`, or of a recipe over a space; resume it if it was begun.

    >>> slm.sweep("quickstart", {"train.learning_rate": "log:1e-3:1e-2"}, trials=12).winner.values

    Args:
        name: a name under `sweeps:`, or, with a space, of a recipe.
        space: by dotted key, as on the command line.
        workers: trainings that run at a time.
        fields: other fields of the sweep: name, overrides, sampler, trials, batch, seeds, seed,
            budget, halving.
    """
    return carry_out(asked(name, space, **fields), workers=workers)


def plan_sweep(
    name: str, space: Mapping[str, Any] | None = None, /, *, verify: bool = False, **fields: Any
) -> SweepPlan:
    """What `slm.sweep` of the same arguments would run and reuse, and its cost; nothing is done.

    >>> slm.plan_sweep("quickstart", {"model.n_layer": [2, 4, 6]}, seeds=2).seconds

    `verify`: as of `slm.plan`.
    """
    return plan_of_sweep(asked(name, space, **fields), verify=verify)


def asked(name: str, space: Mapping[str, Any] | None = None, /, **fields: Any) -> Sweep:
    """The sweep that a name means: with a space of a recipe, else one of `sweeps:`.

    Raises UserError.
    """
    if space:
        return define_sweep(name, space, **fields)
    if name not in sweep_names():
        load_recipe(name, fields.get("overrides"))  # its error names the nearest recipe
        raise UserError(
            f"{name} is a recipe: a sweep needs a space too, such as --space "
            "train.learning_rate=log:1e-3:1e-2, or a name under `sweeps:` in pipelines.yaml"
        )
    return load_sweep(name, **fields)


def carry_out(
    sweep: Sweep,
    *,
    workers: int = 1,
    run_trial: RunTrial | None = None,
    on_trial: OnTrial = lambda trial: None,
    links: Mapping[str, str] | None = None,
) -> SweepResult:
    """Run a sweep in the data folder in use, its inputs fixed first, its source and shards made.

    MLflow shows it meanwhile: see `slm.tracking.sweeps`. `links`: text → address, for its page.

    `run_trial`: as of `run_sweep`, but it may raise UserError of settings that are refused too;
    None: `train_and_evaluate`.
    """
    for warning in warnings_of(sweep):
        logger.warning(warning)
    with hashing_once(), warm_starts():  # source and shards are shared by all trials
        sweep = with_inputs(sweep)
        shards = prepare(sweep)
        folder = SweepFolder.of(sweep)
        show_in_mlflow = mirror(lambda: tracked(folder, links))
        with current().progress("sweep") as show, show_in_mlflow as changed:
            done = _Done(len(folder.trials), sweep.seeds)

            def of_trial(config: PipelineConfig) -> tuple[Run, Evaluation]:
                def progress(stage: str, what: str, share: float) -> None:
                    if stage == "train":
                        done.has_trained(share)
                    show(what, done.trials, sweep.trials)

                with done.training(), showing(_OfTrial(progress)):
                    return train_and_evaluate(config)

            def ended(trial: Trial) -> None:
                done.end_trial()
                changed.set()
                on_trial(trial)

            return run_sweep(
                sweep,
                data_root(),
                run_trial=_refusing(sweep, shards, run_trial or of_trial),
                workers=workers,
                progress=show,
                on_trial=ended,
            )


def with_inputs(sweep: Sweep) -> Sweep:
    """The same, with the hash of what its config only names: files, a branch, weights, functions.

    The sweep's key has it: other data are another sweep.
    """
    config = sweep.config()
    inputs: dict[str, Any] = {}
    if config.data.sources or config.data.source != "stories":
        inputs["source"] = stages.downloaded(config).key
    if of_data := _named_by_the_data(sweep, config.data):
        inputs["data"] = of_data
    for name in _named(sweep, START, config.train.init_from):
        _, start = stages.starting_point(sweep.config({START: name}))
        assert start is not None, "it is named"
        inputs[name] = start.parent.key if start.parent else start.model
    return sweep.model_copy(update={"inputs": sha256_json(inputs) if inputs else ""})


def _named(sweep: Sweep, key: str, own: str | None) -> list[str]:
    """The values of a setting in a sweep, `own` being the recipe's."""
    dimension = sweep.space.get(key)
    values = dimension.choices if dimension else (own,)
    return [str(value) for value in values if value]


def _named_by_the_data(sweep: Sweep, data: DataConfig) -> dict[str, list[str]]:
    """The user's functions and given tokenizers, by the hashes of their files."""
    hashes: dict[str, list[str]] = {}
    cleaning = {f"data.sources.{name}.clean": text.clean for name, text in data.sources.items()}
    for section, clean in {"data.clean": data.clean, **cleaning}.items():
        for kind in KINDS:
            named = kind if section == "data.clean" else f"{section}.{kind}"
            for name in _named(sweep, f"{section}.{kind}", getattr(clean, kind)):
                [function] = functions_of(CleanConfig.model_validate({kind: name}))
                hashes.setdefault(named, []).append(f"{function.name} {function.sha256}")
    for name in _named(sweep, TOKENIZER, data.tokenizer.path):
        from slm.tokens.vocabulary import given_file

        file, _ = given_file(TokenizerConfig(path=name), data_root())
        hashes.setdefault(TOKENIZER, []).append(sha256_file(file))
    return hashes


def prepare(sweep: Sweep) -> Shards:
    """The shards of a sweep's recipe, and those of every setting of its data, made if need be.

    Raises UserError where the recipe cannot be run, or settings hold out other documents.
    """
    config = sweep.config()
    stages.check_tracking(config)
    shards = _encoded(config)
    of_data = {
        key: dimension.model_copy(update={"when": {}})
        for key, dimension in sweep.space.items()
        if key.startswith("data.")
    }
    for values in corners(of_data) if of_data else ():
        check_held_out(_encoded(sweep.config(values)), shards)
    return shards


def _encoded(config: PipelineConfig) -> Shards:
    config, start = stages.starting_point(config)
    stages.check_encoding(config, start)
    source = stages.downloaded(config)
    return stages.shards_of(config, source, stages.initial_model(start) if start else None)


def check_held_out(trial: Shards, recipe: Shards) -> None:
    """Raises UserError where a trial would be scored on other documents than the recipe is."""
    ours, theirs = (
        (part.documents, part.bytes) if (part := shards.splits.get("val")) else (0, 0)
        for shards in (trial, recipe)
    )
    if ours != theirs:
        raise UserError(
            f"{trial.name} holds out {ours[0]:,} documents of {ours[1]:,} bytes, and the recipe's "
            f"{recipe.name} {theirs[0]:,} of {theirs[1]:,}: scores on them cannot be compared; "
            "leave settings of the data out of the space, and make a sweep of each"
        )


# ---- a trial ----------------------------------------------------------------------------------


def train_and_evaluate(
    config: PipelineConfig, *, turn: AbstractContextManager[None] | None = None
) -> tuple[Run, Evaluation]:
    """A config → its run and its evaluation; what is complete is reused.

    `turn`: entered while it trains; waits where others train.
    """
    stages.check_tracking(config)
    config, start = stages.starting_point(config)
    stages.preflight(config, start)
    source = stages.downloaded(config)
    parent = stages.initial_model(start) if start else None
    shards = stages.shards_of(config, source, parent)
    run = stages.train(config, shards, parent, turn=turn, forecasts=False)
    return run, stages.evaluate(config, run, shards)


def _refusing(sweep: Sweep, shards: Shards, run_trial: RunTrial) -> RunTrial:
    """The same, raising Untrainable for a UserError that is the fault of a trial's settings."""

    def run(config: PipelineConfig) -> tuple[Run, Evaluation]:
        try:
            trained, evaluation = run_trial(config)
            if own := DataRoot().shards(trained.shards_key):
                check_held_out(own, shards)
        except NewerFormat:
            raise
        except UserError as error:
            make_folder(data_root())  # raises where this folder cannot be written to
            prepare(sweep)  # raises where not even the recipe can be run
            raise Untrainable(str(error)) from error
        return trained, evaluation

    return run


class _Done:
    """How many trials of a sweep are done, with the shares of the trainings that run now.

    So the time left is an estimate from the first minute on, and not from the first trial's end.
    """

    def __init__(self, recorded: int, seeds: int) -> None:
        self.recorded, self.seeds = recorded, seeds
        self.trainings = recorded * seeds  # that have ended
        self._shares: dict[int, float] = {}  # of each that runs, by its thread

    @property
    def trials(self) -> float:
        return (self.trainings + sum(self._shares.copy().values())) / self.seeds

    @contextmanager
    def training(self) -> Iterator[None]:
        """A training of a trial, in this thread."""
        ended = False
        try:
            yield
            ended = True
        except Untrainable:
            ended = True
            raise
        finally:
            self._shares.pop(get_ident(), None)  # first, so that nothing is counted twice
            self.trainings += ended

    def has_trained(self, share: float) -> None:
        self._shares[get_ident()] = share

    def end_trial(self) -> None:
        self.recorded += 1
        self.trainings = max(self.trainings, self.recorded * self.seeds)  # some were refused


class _OfTrial(Display):
    """Shows the stages of a trial by the sweep's own line alone, and ends them with the sweep.

    `progress`: called with the stage, what it does, and its share that is done.
    """

    def __init__(self, progress: Callable[[str, str, float], None]) -> None:
        super().__init__(logger.debug)
        self.report = progress

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        def progress(what: str, done: float, total: float | None) -> None:
            check_stopping()
            self.report(name, what or name, done / total if total else 0.0)

        yield progress


# ---- showing ----------------------------------------------------------------------------------


def trial_facts(trial: Trial) -> dict[str, Any]:
    """A trial as JSON values; run and hash are those of its first seed."""
    first = trial.seeds[0]
    return {
        "number": trial.number,
        "batch": trial.batch,
        "rung": trial.rung,
        "overrides": trial.overrides,
        "state": trial.state,
        "reason": trial.reason,
        "run": first.run,
        "val_bpb": trial.val_bpb,
        "weights_sha256": first.weights_sha256,
        "seconds": trial.seconds,
        "tokens": trial.tokens,
        "seeds": [seed.model_dump(mode="json") for seed in trial.seeds],
    }


def summary(folder: SweepFolder, result: SweepResult) -> dict[str, Any]:
    """What came of a sweep, as JSON values."""
    winner = choose(folder)
    best = next((trial for trial in result.trials if trial.number == winner.best), None)
    return {
        "sweep": str(folder.path),
        "ended": result.ended,
        "trials": [trial_facts(trial) for trial in result.trials],
        "best": trial_facts(best) if best else None,
        "distinguishable": winner.distinguishable,
        "winner": {"sentence": winner.sentence, **winner.model_dump(mode="json")},
        "seconds": result.seconds,
        "tokens": result.tokens,
        "correlations": [each.model_dump() for each in result.correlations],
    }
