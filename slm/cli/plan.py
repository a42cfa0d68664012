"""`slm plan`, and what `slm run --dry-run` prints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli import sweep_options
from slm.cli.completion import recipe_and_run_names
from slm.cli.options import AsJson, Settings, overrides, show_line, show_wide
from slm.cli.sweep_plan import show_sweep_plan
from slm.errors import UserError, excerpt
from slm.figures import duration, size
from slm.orchestration.display import shorten
from slm.recipes import default_recipe, find_recipes, load_recipe, load_with_origins
from slm.storage import to_json

if TYPE_CHECKING:
    from slm.planning.plan import PipelinePlan
    from slm.planning.results import Changed
    from slm.planning.stage import Stage

MAX_VALUE = 60  # characters of a setting's value that is shown
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Hash the files, and ask hub and registry, instead of assuming."),
]


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|RUN|SWEEP",
            autocompletion=recipe_and_run_names,
            help="A recipe of pipelines.yaml, by default that of `slm run`; a run, which is "
            "compared with its recipe; a sweep of pipelines.yaml, or the folder of one.",
        ),
    ] = None,
    settings: Settings = None,
    space: sweep_options.Space = None,
    trials: sweep_options.Trials = None,
    batch: sweep_options.Batch = None,
    sampler: sweep_options.Sampler = None,
    seeds: sweep_options.Seeds = None,
    seed: sweep_options.Seed = None,
    budget: sweep_options.Budget = None,
    halving: sweep_options.Halving = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run or a sweep would reuse, resume and make, why, and what it would cost.

    Nothing is done. The options from --space on are those of `slm sweep`.

    Examples: slm plan quickstart --set train.learning_rate=3e-3 · slm plan
    quickstart-3693316e0b15 · slm plan quickstart --space model.n_layer=2,4,6 --seeds 2
    """
    fields = {
        "trials": trials, "batch": batch, "sampler": sampler, "seeds": seeds, "seed": seed,
        "budget": budget, "halving": halving,
    }  # fmt: skip
    name = recipe or default_recipe()
    if sweep := sweep_options.find(name, space, settings, fields):
        from slm.planning.sweep import plan_of_sweep

        show_sweep_plan(plan_of_sweep(sweep, verify=verify), as_json)
        return
    show_plan(make_plan(name, settings, verify=verify), as_json)


def make_plan(
    name: str,
    settings: list[str] | None,
    as_name: str | None = None,
    *,
    verify: bool = False,
) -> "PipelinePlan":
    """The plan of a recipe; of a run, that of its recipe, compared with the run.

    Raises UserError where there is neither.
    """
    from slm.planning.plan import plan_config
    from slm.registry.opening import open_run

    changes = overrides(settings, as_name)
    recipes = find_recipes()
    if name in recipes:
        config, origins = load_with_origins(name, changes)
        return plan_config(config, verify=verify, origins=origins)
    if not looks_like_a_run(name):
        load_recipe(name)  # it names the nearest recipe
    run = open_run(name)
    recipe = run.config.recipe
    if recipe not in recipes:
        raise UserError(
            f"{run.name} was made by the recipe {recipe}, which pipelines.yaml no longer has: "
            f"nothing can be compared with it; its settings are in {run.path / 'config.json'}"
        )
    config, origins = load_with_origins(recipe, changes)
    return plan_config(config, verify=verify, against=run, origins=origins)


def looks_like_a_run(name: str) -> bool:
    """Whether a name that is no recipe's is meant for a run, in any form that names one."""
    key = re.fullmatch(r"(.+-)?[0-9a-f]{4,}", Path(name).name)
    version = name.startswith("models:") or "@" in name
    return name == "latest" or version or key is not None or Path(name).is_dir()


# ---- showing ----------------------------------------------------------------------------------


def show_plan(made: "PipelinePlan", as_json: bool) -> None:
    """Print a plan: a table, then the reasons; or one line of JSON."""
    if as_json:
        print(to_json(made.model_dump(mode="json"), ensure_ascii=False))
        return
    from slm.cli import tables

    rows = [(s.title, _action(s), _place(s), _time(s)) for s in made.stages]
    show_wide(tables.listing(("stage", "action", "result", "time"), rows))
    print()
    if made.derived:
        names = ("setting", "value", "from")
        origins = [
            (o.key, _value(o.value), f"{o.source}: {o.why}" if o.why else o.source)
            for o in made.derived
        ]
        show_wide(tables.listing(names, origins))
        print()
    for line in explanation(made):
        show_line(line)


def explanation(made: "PipelinePlan") -> Iterator[str]:
    """The lines below the table: the reasons of each stage, what is in no key, and the cost."""
    from slm.cli import tables

    waiting = [s.title for s in made.stages if s.key is None and not (s.changed or s.version)]
    first = made.first
    for stage in made.stages:
        if stage is first or stage.title not in waiting:
            for reason in _reasons(stage):
                yield f"{stage.title:<9} {reason}"
    if first and (later := [name for name in waiting if name != first.title]):
        yield (
            f"then      {', '.join(later)}: their keys are known only after {first.title}; "
            "what turns out to be the same is reused"
        )
    for difference in _pairs(made.uncounted) + _pairs(made.environment):
        yield f"in no key {difference}"
    if made.model:
        yield f"model     {tables.parameters(made.model)}"
        yield f"compute   {tables.compute(made.model)}"
    for stage in made.stages:
        if stage.seconds and stage.action != "reused":
            yield f"time      {stage.title}: {duration(stage.seconds)}, {stage.seconds_from}"
        if stage.memory_bytes:
            yield f"memory    {size(stage.memory_bytes)} per process, {stage.memory_from}"
    if made.seconds:
        yield f"time      {duration(made.seconds)} in all, as far as it is known"
    disk = sum(stage.disk_bytes or 0 for stage in made.stages if stage.action != "reused")
    if disk:
        yield f"disk      about {size(disk)}, as far as it is known"
    if made.unknown:
        yield f"unknown   the time of {', '.join(made.unknown)}"
    if not made.verified:
        yield "assumed   results by their records and sizes; --verify hashes them"


def _action(stage: "Stage") -> str:
    if stage.step is not None:
        of = f" of {stage.max_steps:,}" if stage.max_steps else ""
        return f"{stage.action} at step {stage.step:,}{of}"
    return f"{stage.action} (assumed)" if stage.assumed else stage.action


def _place(stage: "Stage") -> str | None:
    if stage.result is None or not Path(stage.result).is_absolute():
        return stage.result
    return shorten(Path(stage.result))


def _time(stage: "Stage") -> str | None:
    if stage.action in ("reused", "to pull", "refused"):
        return None
    return "unknown" if stage.seconds is None else duration(stage.seconds)


def _reasons(stage: "Stage") -> Iterator[str]:
    """Why a stage is what it is, a line each."""
    yield from stage.reasons
    if stage.version:
        old, new = stage.version
        yield f"version of the stage: {old} → {new}"
    yield from _pairs(stage.changed)
    if stage.nearest and (stage.changed or stage.version):
        yield f"compared with {_name(stage)}"


def _name(stage: "Stage") -> str:
    """The nearest result, as a person names it: `RUN`, or `RUN/report`."""
    path = Path(stage.nearest or "")
    if not path.is_absolute():
        return str(stage.nearest)  # a version
    inside = stage.stage in ("evaluate", "benchmark", "report")
    return f"{path.parent.name}/{path.name}" if inside else path.name


def _pairs(changed: "Changed") -> list[str]:
    return [f"{name}: {_value(old)} → {_value(new)}" for name, (old, new) in changed.items()]


def _value(value: Any) -> str:
    """A setting's value as `--set` takes it, shortened where it is long."""
    return excerpt(value if isinstance(value, str) and value else json.dumps(value), MAX_VALUE)
