"""The command `slm benchmark`: a model's scores on tasks with right answers."""

from typing import Annotated

import typer

from slm.cli.options import AsJson, RunName, display_for, show, show_wide, suggest
from slm.orchestration import stages
from slm.records import Benchmarks
from slm.registry.opening import finished_run


def benchmark(
    run: RunName,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,…",
            help="blimp, stories, a file or folder of items (json, jsonl, parquet, csv), NAME=PATH "
            "or NAME=hf:OWNER/DATASET@COMMIT/PATH; several are separated by commas. Default: "
            "the run's own, benchmark.tasks.",
        ),
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Let a 5-gram model of the training documents and the untrained model do the "
            "tasks too. Default: as of the run's settings.",
        ),
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the accuracy of every paradigm as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a run on minimal pairs and multiple-choice tasks.

    Examples: slm benchmark slm@champion --tasks blimp · slm benchmark RUN --tasks
    blimp=blimp.parquet,mine.jsonl --groups
    """
    folder, record = finished_run(run)
    config = folder.config
    changes: dict[str, object] = {}
    if tasks is not None:
        changes["tasks"] = tuple(task.strip() for task in tasks.split(",") if task.strip())
    if baselines is not None:
        changes["baselines"] = baselines
    section = type(config.benchmark).model_validate({**config.benchmark.model_dump(), **changes})
    with display_for(as_json):
        scored = stages.benchmark(
            config.model_copy(update={"benchmark": section}), record, folder.shards
        )
    if as_json:
        show(_json(scored), as_json)
        return
    _show(scored, groups)
    suggest(as_json, f"slm report {run} --open")


def _json(scored: Benchmarks) -> dict[str, object]:
    return {
        "run": scored.run,
        "checkpoint": scored.checkpoint,
        "benchmarks": str(scored.path),
        "tasks": [score.model_dump(mode="json") for score in scored.tasks],
        "reused": scored.reused,
    }


def _show(scored: Benchmarks, groups: bool) -> None:
    from slm.cli import tables

    names = ["task", "items", "accuracy", "± stderr", "chance", "per byte", "bpb of right", ""]
    rows: list[list[object]] = []
    for score in scored.tasks:
        unclear = "" if score.distinguishable else "not distinguishable from chance"
        rows.append(
            [score.name, f"{score.items:,}", _percent(score.accuracy), _percent(score.stderr),
             _percent(score.chance), _percent(score.accuracy_per_byte),
             "" if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}", unclear]
        )  # fmt: skip
        for name, value in score.baselines.items():
            rows.append([f"  {name}", "", _percent(value), "", "", "", "", "baseline"])
        parts = {**score.by_field, **(score.groups if groups else {})}
        for name, part in parts.items():
            rows.append(
                [f"  {name}", f"{part.items:,}", _percent(part.accuracy), _percent(part.stderr),
                 "", "", "", ""]
            )  # fmt: skip
        if score.truncated:
            note = f"{score.truncated:,} items lost the beginning of their context"
            rows.append(["", "", "", "", "", "", "", note])
        if score.ties:
            rows.append(["", "", "", "", "", "", "", f"{score.ties:,} ties, counted as wrong"])
    show_wide(tables.listing(names, rows))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
