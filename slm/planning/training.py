"""Train in a plan: a finished run, one that is resumed, or one that has to be trained."""

from collections.abc import Iterable
from contextlib import suppress

from slm import keys
from slm.errors import CorruptionError, UserError
from slm.planning.lines import Lines
from slm.planning.results import Result, differences
from slm.planning.stage import OWN, Stage, after
from slm.records import Record, Run, Selection, Shards
from slm.run_folder import SELECTION, RunFolder, checkpoint_name
from slm.training.identity import find_run, run_inputs, run_keys
from slm.training.selection import check_kept, check_resumable, choice


def plan_train(lines: Lines, shards: Shards | None) -> Run | None:
    """Add the training on shards; returns the finished run that it would reuse."""
    upstream = (*OWN["download"](lines.config), *OWN["encode"](lines.config))
    runs = _runs(lines)
    if shards is None:
        best = lines.make("train", None, runs, upstream=upstream, reasons=[after("encode")])
        _refer_to(lines, best)
        return None
    parent = lines.start.parent if lines.start else None
    if not lines.start_known:
        best = lines.make(
            "train", None, runs,
            upstream=upstream, inputs=shards.key, reasons=[after("init_from")],
        )  # fmt: skip
        _refer_to(lines, best)
        return None
    parent_key = parent.key if parent else None
    results = lines.results
    index = results.index if not lines.explain else None
    folder = find_run(lines.config, shards, parent_key, results.root, index)
    both = run_keys(lines.config, run_inputs(shards, parent_key))
    key, damage = both[0], ""
    reasons: list[str] = []
    if folder.exists:
        try:
            key = folder.settings.key
            folder.check_format()
            record = folder.record
            damage = lines.damage(record) if record else ""
        except CorruptionError as error:
            record, damage = None, str(error)
        lines.reference = lines.against or folder
        if record and not damage:
            return _trained(lines, folder, record, runs)
    if _is_stored(lines, both, folder):
        return None
    if folder.exists:
        if _resumes(lines, folder, key, damage):
            return None
        reasons.append(f"damaged: {damage}" if damage else "started, but no step was saved")
    best = lines.make(
        "train", key, runs,
        upstream=upstream, inputs=shards.key, reasons=reasons, result=str(folder.path),
    )  # fmt: skip
    if best and best.inputs != shards.key:
        lines.add_reason(_other_shards(lines, best, shards))
    if best and (start := _other_start(lines, best)):
        lines.add_reason(start)
    _refer_to(lines, best)
    return None


def _is_stored(lines: Lines, keys: Iterable[str], folder: RunFolder) -> bool:
    """Add a training whose end the project's store has; False where it has none."""
    for key in keys:
        entry = lines.stored("run", key)
        if entry and lines.pull("train", entry, folder.path.with_name(entry.name), Run):
            lines.pulled = entry
            return True
    return False


def _runs(lines: Lines) -> list[Result]:
    """The finished runs; where the plan is compared with one, that one, finished or not."""
    if lines.against is None:
        return lines.results.runs
    settings = lines.against.settings
    record = Record(key=settings.key, path=lines.against.path)
    flat, recipe = settings.config.flat(), settings.config.recipe
    return [Result(record, recipe, flat, settings.shards_key, None)]


def _refer_to(lines: Lines, best: Result | None) -> None:
    if best and lines.reference is None:
        lines.reference = RunFolder(best.path)


def _other_shards(lines: Lines, best: Result, shards: Shards) -> str:
    old = lines.results.root.shards(best.inputs)
    name = old.name if old else "shards that are gone"
    other = old is not None and old.tokenizer_sha256 != shards.tokenizer_sha256
    tokenizer = ", by another tokenizer" if other else ""
    return f"other shards: {shards.name} instead of {name}{tokenizer}"


def _other_start(lines: Lines, best: Result) -> str:
    """The other model that the nearest run started from; empty where it is the same."""
    with suppress(CorruptionError):
        run, parent = RunFolder(best.path), lines.start.parent if lines.start else None
        old, new = run.settings.parent_key, parent.key if parent else None
        if old != new and old and new:
            before = run.parent_record
            name = before.model if before else old[:12]
            return f"other weights to start from: {name} → {lines.start.model}"  # type: ignore[union-attr]
    return ""


def _trained(lines: Lines, folder: RunFolder, record: Run, runs: list[Result]) -> Run | None:
    """A finished run, with the best checkpoint by the cadence of the config."""
    try:
        chosen = choice(folder, record, lines.config)
        if chosen is None:
            lines.cadence_counts = False
            lines.reuse("train", record, runs)
            return record
        kept = folder.result_folder(SELECTION, chosen.key)
        selection, _ = lines.complete(kept, Selection, chosen.key)
        if selection:
            lines.reuse("train", record, runs)
            return record.model_copy(update={"best": selection.best})
        check_kept(folder, lines.config, map(checkpoint_name, chosen.missing))
        reason = "trains nothing; its best checkpoint is chosen again"
        best = None
        if chosen.missing:
            reason += f", for which {len(chosen.missing)} saved checkpoints are scored"
            lines.best_known = False
        else:
            best = chosen.best(chosen.known)
            check_kept(folder, lines.config, [best])
    except UserError as error:
        _refuse(lines, folder, str(error))
        return None
    names = keys.names_of("select")
    changed = differences(folder.config.flat(), lines.flat, names)
    facts = {"changed": changed, "nearest": str(folder.path), "reasons": (reason,)}
    lines.reuse("train", record, runs, **facts)
    return record.model_copy(update={"best": best}) if best else record


def _refuse(lines: Lines, folder: RunFolder, message: str) -> None:
    """Add a training that a run would refuse, with its message."""
    changed = differences(folder.config.flat(), lines.flat, keys.names_of("select"))
    line = Stage(
        stage="train",
        action="refused",
        key=folder.settings.key,
        result=str(folder.path),
        nearest=str(folder.path),
        changed=changed,
        reasons=(message,),
    )
    lines.stages.append(line)


def _resumes(lines: Lines, folder: RunFolder, key: str, damage: str) -> bool:
    """Add an unfinished training that would be resumed, or refused; False where it begins."""
    with suppress(CorruptionError):
        if folder.config.train != lines.config.train:
            try:
                check_resumable(folder, lines.config)
            except UserError as error:
                _refuse(lines, folder, str(error))
                return True
    step = _last_step(lines, folder)
    if step is None:
        return False
    reasons = [f"damaged: {damage}"] if damage else []
    if folder.is_training:
        reasons.append("another process trains it now")
    line = Stage(
        stage="train",
        action="resumed",
        key=key,
        result=str(folder.path),
        step=step,
        max_steps=folder.max_steps,
        reasons=tuple(reasons),
    )
    lines.stages.append(line)
    return True


def _last_step(lines: Lines, folder: RunFolder) -> int | None:
    """The step of the newest checkpoint that is whole."""
    for step, path in reversed(folder.checkpoints):
        with suppress(CorruptionError):
            checkpoint = folder.checkpoint(path.name, verify=lines.verify)
            if checkpoint and not lines.damage(checkpoint):
                return step
    return None
