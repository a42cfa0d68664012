"""The runs of a data folder, a line each."""

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from slm.errors import CorruptionError, NewerFormat, unknown
from slm.keys import UNHASHED, with_sources
from slm.records import Evaluation, Frozen, JournalEntry, Run, TaskScore, task_scores
from slm.run_folder import DataRoot, RunFolder

Order = Literal["started", "name", "step", "val_bpb", "seconds"]


class RunFacts(Frozen):
    """A run folder in a line."""

    run: str
    state: str  # finished, training, stopped, damaged, newer (of a newer slm)
    started: float | None  # unix seconds
    step: int
    val_bpb: float | None  # of the evaluation
    benchmarks: dict[str, float] = Field(default_factory=dict)  # task → accuracy
    slice_val_bpb: float | None  # the last one in training, on the fixed slice of val
    seconds: float | None  # spent in steps
    recipe: str | None = None  # None where its settings cannot be read
    sweep: str | None = None  # whose trial it is; of several the first
    differs: dict[str, Any] = Field(
        default_factory=dict
    )  # its settings that other runs of its recipe have otherwise


def list_runs(
    root: Path | None = None,
    pattern: str = "*",
    *,
    recipe: str | None = None,
    order: Order = "started",
) -> list[RunFacts]:
    """The runs of a data folder, the newest first.

    Args:
        root: the data folder; None: as of `DataRoot`.
        pattern: of the names, such as `quickstart-*`; a name without `*` is the beginning of one.
        recipe: only those of this recipe.
        order: `started` (the newest first), `name`, `step` (the most first), `val_bpb` (the best
            first) or `seconds`. Runs without that figure come last.
    """
    if order not in get_args(Order):
        raise unknown("order", order, get_args(Order))
    glob = pattern if any(character in pattern for character in "*?[") else f"{pattern}*"
    folders = [run for run in DataRoot(root).runs() if fnmatchcase(run.name, glob)]
    settings = [_settings(run) for run in folders]
    facts = [
        _facts(run).model_copy(update={"recipe": of.get("recipe"), "differs": differing})
        for run, of, differing in zip(folders, settings, differences(settings), strict=True)
        if recipe in (None, of.get("recipe"))
    ]
    return sorted(facts, key=lambda each: _rank(each, order))


def differences(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, by its flat settings, those in which the runs of its recipe are not all alike.

    Two runs of a recipe with n_layer 4 and 6 → {"model.n_layer": 4}, {"model.n_layer": 6}.
    """
    of_recipe: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in settings:
        of_recipe[each.get("recipe", "")].append(each)
    varying = {
        recipe: [
            key
            for key in runs[0]
            if key not in UNHASHED and any(run.get(key) != runs[0][key] for run in runs)
        ]
        for recipe, runs in of_recipe.items()
    }
    return [{key: each.get(key) for key in varying[each.get("recipe", "")]} for each in settings]


def _settings(run: RunFolder) -> dict[str, Any]:
    """Its settings by dotted keys; none where they cannot be read."""
    try:
        return with_sources(run.config.flat())
    except (CorruptionError, NewerFormat):
        return {}


def _rank(facts: RunFacts, order: Order) -> tuple[bool, float | str, float]:
    """By what runs are sorted: the order's figure, then the newest first."""
    newest = -(facts.started or 0.0)
    if order == "name":
        return False, facts.run, newest
    figures = {
        "started": newest,
        "step": -facts.step,
        "seconds": facts.seconds,
        "val_bpb": facts.slice_val_bpb if facts.val_bpb is None else facts.val_bpb,
    }
    figure = figures[order]
    return figure is None, figure or 0.0, newest


def _facts(run: RunFolder) -> RunFacts:
    entries: list[JournalEntry] = []
    record: Run | None = None
    evaluation: Evaluation | None = None
    scores: list[TaskScore] = []
    try:
        for entry in run.journal:
            entries.append(entry)  # one by one, so that those before a broken line are kept
        record, evaluation = run.record, run.evaluation
        scores = task_scores(run.all_benchmarks)
        state = "finished" if record else "training" if run.is_training else "stopped"
    except NewerFormat:
        state = "newer"
    except CorruptionError:
        state = "damaged"
    # The entry `end` has the score of all held-out documents.
    evaluations = [entry for entry in entries if entry.get("event") == "evaluate"]
    slices = [entry["val_bpb"] for entry in evaluations if entry.get("val_bpb") is not None]
    return RunFacts(
        run=run.name,
        state=state,
        started=run.started,
        step=max((entry.get("step") or 0 for entry in entries), default=0),
        val_bpb=evaluation.val_bpb if evaluation else None,
        benchmarks={score.name: score.accuracy for score in scores},
        slice_val_bpb=slices[-1] if slices else None,
        seconds=record.seconds if record else None,
    )
