"""What follows a training in a plan: evaluate, report, register."""

from collections.abc import Iterable
from typing import Any

from slm import keys
from slm.evaluation.benchmark.identity import benchmark_folder, benchmark_key
from slm.evaluation.benchmark.tasks import are_here, read_tasks
from slm.evaluation.grammar import LEFT_OUT
from slm.evaluation.identity import evaluate_key, evaluation_folder
from slm.planning.lines import Lines
from slm.planning.results import Changed, differences
from slm.planning.stage import OWN, Stage, after
from slm.records import Benchmarks, Evaluation, Report, Run, Shards, Version
from slm.registry.tags import (
    PREFIX,
    chain_tags,
    ingredients,
    read_note,
    register_key,
    registered_notes,
)
from slm.report.identity import report_folder, report_key
from slm.run_folder import RunFolder
from slm.source.hub_client import keep_cache_in
from slm.store.entries import Entry
from slm.tracking.server import recorded_uri, tracking_uri
from slm.tracking.store import file_of, version_tags


def plan_evaluate(lines: Lines, run: Run | None, shards: Shards | None) -> Evaluation | None:
    """Add the evaluation of a run; returns the one that it would reuse."""
    candidates = lines.results.evaluations(lines.reference) if lines.reference else []
    which = lines.config.evaluate.checkpoint
    upstream = keys.names_of("select")
    if lines.pulled and shards:
        return _stored_evaluation(lines, lines.pulled, shards)
    if run is None or shards is None or (which == "best" and not lines.best_known):
        lines.make("evaluate", None, candidates, reasons=[after("train")])
        return None
    name = run.checkpoint(which).name
    checkpoint = RunFolder.of(run).checkpoint(name)
    if checkpoint is None:
        lines.make("evaluate", None, candidates, reasons=[f"damaged: {name} is gone"])
        return None
    key = evaluate_key(lines.config, checkpoint.weights_sha256, shards.key)
    folder = evaluation_folder(lines.config, run, key)
    evaluation, damage = lines.complete(folder, Evaluation, key)
    if evaluation:
        lines.reuse("evaluate", evaluation, candidates)
        return evaluation
    reasons = [f"damaged: {damage}"] if damage else []
    best = lines.make(
        "evaluate", key, candidates,
        upstream=upstream, inputs=checkpoint.weights_sha256, reasons=reasons,
        result=str(folder),
    )  # fmt: skip
    if best and best.inputs != checkpoint.weights_sha256:
        lines.add_reason(f"other weights: those of {name}")
    return None


def _stored_evaluation(lines: Lines, run: Entry, shards: Shards) -> Evaluation | None:
    """Add the evaluation of a run that would be pulled: it is pulled too where the store has it."""
    assert lines.store is not None
    record = lines.store.record_of(run)
    if isinstance(record, Run):
        name = record.checkpoint(lines.config.evaluate.checkpoint).name
        key = evaluate_key(lines.config, run.weights_sha256(name), shards.key)
        entry = lines.stored("evaluation", key, run.key)
        folder = lines.results.root.path / "runs" / run.name
        if entry and (evaluation := lines.pull("evaluate", entry, folder / entry.name, Evaluation)):
            return evaluation
    lines.make("evaluate", None, [], reasons=[after("train")])
    return None


def plan_benchmark(lines: Lines, run: Run | None) -> None:
    """Add the scores of a run on tasks, where there are any."""
    config = lines.config
    if not config.benchmark.tasks:
        return
    candidates = lines.results.benchmarks(lines.reference) if lines.reference else []
    checkpoint = None
    if run is not None and (config.evaluate.checkpoint == "last" or lines.best_known):
        checkpoint = RunFolder.of(run).checkpoint(run.checkpoint(config.evaluate.checkpoint).name)
    keep_cache_in(lines.results.root.path)
    lines.benchmarked = False
    facts: dict[str, Any] = {}
    if lines.reference and not candidates:
        old = lines.reference.config.flat()
        facts["changed"] = differences(old, lines.flat, OWN["benchmark"](config))
    if run is None or checkpoint is None:
        lines.make("benchmark", None, candidates, reasons=[after("train")], **facts)
        return
    if not are_here(config.benchmark.tasks):
        reason = "its key is known once the hub has sent the items"
        lines.make("benchmark", None, candidates, reasons=[reason], **facts)
        return
    tasks = read_tasks(config.benchmark.tasks)
    key = benchmark_key(config, tasks, checkpoint.weights_sha256, run.shards_key)
    folder = benchmark_folder(config, run, key)
    scored, damage = lines.complete(folder, Benchmarks, key)
    if scored:
        lines.benchmarked = True
        lines.reuse("benchmark", scored, candidates)
        return
    lines.make(
        "benchmark", key, candidates,
        upstream=keys.names_of("select"), inputs=checkpoint.weights_sha256, result=str(folder),
        reasons=[f"damaged: {damage}"] if damage else [], **facts,
    )  # fmt: skip


def plan_report(lines: Lines, run: Run | None, evaluation: Evaluation | None) -> Report | None:
    """Add the report of a run; returns the one that it would reuse."""
    candidates = lines.results.reports(lines.reference) if lines.reference else []
    if (
        lines.pulled
        and evaluation
        and lines.benchmarked
        and _stored_report(lines, lines.pulled, evaluation)
    ):
        return None
    if run is None or evaluation is None or not lines.benchmarked:
        reason = after("benchmark" if evaluation else "evaluate")
        lines.make("report", None, candidates, reasons=[reason])
        return None
    benchmarks = RunFolder.of(run).benchmarks_of(evaluation.weights_sha256)
    key = report_key(lines.config, run, evaluation, benchmarks)
    folder = report_folder(lines.config, run, evaluation, key, benchmarks)
    report, damage = lines.complete(folder, Report, key)
    if report:
        lines.reuse("report", report, candidates)
        return report
    upstream = keys.names_of("evaluate")
    lines.make(
        "report", key, candidates,
        upstream=upstream, inputs=evaluation.key, result=str(folder),
        reasons=[f"damaged: {damage}"] if damage else [],
    )  # fmt: skip
    return None


def _stored_report(lines: Lines, run: Entry, evaluation: Evaluation) -> bool:
    """Add the report of a run that would be pulled, where the store has it."""
    assert lines.store is not None
    record = lines.store.record_of(run)
    if not isinstance(record, Run):
        return False
    for left_out in ((), (LEFT_OUT,)):
        key = report_key(lines.config, record, evaluation, left_out=left_out)
        if entry := lines.stored("report", key, run.key):
            folder = lines.results.root.path / "runs" / run.name / entry.name
            return lines.pull("report", entry, folder, Report) is not None
    return False


def plan_register(
    lines: Lines, run: Run | None, evaluation: Evaluation | None, report: Report | None
) -> None:
    """Add the registration of a run."""
    if run is None or evaluation is None or report is None:
        reason = after("report")
        lines.stages.append(Stage(stage="register", action="to run", reasons=(reason,)))
        return
    home, root = RunFolder.of(run), lines.results.root.path
    checkpoint = home.checkpoint(evaluation.checkpoint)
    assert checkpoint is not None, "its evaluation is reused"
    made = ingredients(lines.config, run, checkpoint, evaluation, report, lines.shards)
    tags = chain_tags(made)
    key = register_key(lines.config, tags, root)
    versions = [v for v in map(read_note, registered_notes(run.path)) if v]
    facts: dict[str, Any] = {"stage": "register", "key": key}
    noted, assumed = _registered(lines, run, versions, key, tags)
    if noted:
        facts |= {"result": noted.uri, "assumed": assumed}
        note = "by the note of it in the run's folder: its server was not asked"
        facts["reasons"] = (note,) if assumed else ()
        lines.stages.append(Stage(action="reused", **facts))
        return
    if versions:
        last = versions[-1]
        changed = _of_registry(lines, last, home)
        facts |= {"nearest": last.uri, "changed": changed}
        gone = f"{last.uri} is gone, or what it was made of differs by now"
        facts["reasons"] = () if changed else (gone,)
    else:
        facts["reasons"] = ("the run is not registered yet",)
    lines.stages.append(Stage(action="to run", **facts))


def _registered(
    lines: Lines, run: Run, noted: Iterable[Version], key: str, tags: dict[str, str]
) -> tuple[Version | None, bool]:
    """The version with this chain that `register` would reuse, and whether that is assumed.

    A store that is a file is read. A server is asked by `verify` alone, else the note counts.
    """
    root = lines.results.root.path
    store = file_of(tracking_uri(lines.config, root))
    if store is None and lines.verify:
        from slm.registry.register import registered_version

        return registered_version(lines.config, run, tags, root), False
    if store is not None and not store.exists():
        return None, False
    prefixed = {PREFIX + name: value for name, value in tags.items()}
    for version in noted:
        if version.model != lines.config.model_name:
            continue
        held = version_tags(store, version.model, version.version) if store else None
        if version.key == key if held is None else prefixed.items() <= held.items():
            return version, held is None
    return None, False


def _of_registry(lines: Lines, version: Version, run: RunFolder) -> Changed:
    """The settings by which a version goes elsewhere than the one that is here."""
    old, changed = run.config.flat(), Changed()
    if version.model != lines.config.model_name:
        names = ("registry.model", "name", "data.path", "data.source", "recipe")
        by = next((name for name in names if old[name] != lines.flat[name]), None)
        changed |= {by: (old[by], lines.flat[by])} if by else {}
        changed = changed or {"registry.model": (version.model, lines.config.model_name)}
    root = lines.results.root.path
    address = recorded_uri(tracking_uri(lines.config, root), root)
    if version.tracking_uri != address:
        changed["registry.tracking_uri"] = (version.tracking_uri, address)
    if not changed and old["recipe"] != lines.flat["recipe"]:  # a version names its recipe
        changed["recipe"] = (old["recipe"], lines.flat["recipe"])
    return changed
