"""What the stages of a plan are likely to take: from their limits, from earlier results, by shape.

An estimate names what it rests on; what nothing here shows is unknown. Nothing is timed, as
`slm check` does.
"""

import math
import statistics
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from slm import keys
from slm.machine import cpu_name
from slm.planning.lines import Lines
from slm.planning.results import Result, differences, nearest
from slm.planning.stage import OWN, Stage
from slm.records import Run, ShardSplit, Source
from slm.run_folder import RunFolder
from slm.training.needs import measure, planned_steps

MAX_RUNS = 20  # whose evaluations and reports are looked at, the newest ones
RECENT_STEPS = 50  # of a journal, for its speed
NO_TOKENS = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
SHAPE = (*(name for name in keys.SETTINGS["train"] if name.startswith("model.")), "data.vocab_size",
         "data.tokenizer.train", "data.tokenizer.vocab_size", "data.tokenizer.path")  # fmt: skip
SPEED = (
    *SHAPE, "train.tokens_per_step", "train.micro_batch_size", "train.optimizer", "train.device",
    "train.precision", "train.compile", "train.threads", "train.processes", "train.parallel",
    "train.micro_batches",
)  # fmt: skip


def with_cost(line: Stage, lines: Lines) -> Stage:
    """A stage of a plan with what it is likely to take."""
    if line.action == "reused":
        return line.model_copy(update={"seconds": 0.0})
    if line.action in ("refused", "to pull"):
        return line
    kinds = {
        "download": _download, "tokenizer": _tokenizer, "encode": _encode, "mix": _encode,
        "train": _train,
    }  # fmt: skip
    update = kinds.get(line.stage, _inside_run)(line, lines)
    return line.model_copy(update=update)


def _as(name: str) -> str:
    return f"estimated: as {name} took"


def _download(line: Stage, lines: Lines) -> dict[str, Any]:
    best = _timed(lines.pinned(lines.results.sources), lines, OWN["download"](lines.config))
    if best is None or best.made is None:
        return {}
    record, share = best.record, 1.0
    assert isinstance(record, Source)
    if lines.config.data.source == "stories" and lines.config.data.documents:
        share = lines.config.data.documents / max(1, record.documents)
    return _scaled(best, share)


def _tokenizer(line: Stage, lines: Lines) -> dict[str, Any]:
    return _by_text(
        _timed(lines.results.vocabularies, lines, OWN["tokenizer"](lines.config)), lines
    )


def _encode(line: Stage, lines: Lines) -> dict[str, Any]:
    made = lines.pinned(lines.results.shards)
    return _by_text(_timed(made, lines, OWN[line.stage](lines.config)), lines)


def _by_text(best: Result | None, lines: Lines) -> dict[str, Any]:
    """As an earlier result took, times the text."""
    if best is None or best.made is None:
        return {}
    old, share = lines.results.root.source(best.inputs), 1.0
    if old and lines.source:
        share = _text_bytes(lines.source) / max(1, _text_bytes(old))
    return _scaled(best, share)


def _text_bytes(source: Source) -> int:
    return sum(split.bytes for split in source.splits.values())


def _scaled(best: Result, share: float) -> dict[str, Any]:
    assert best.made is not None
    size = sum(entry.bytes for entry in best.record.files.values())
    text = _as(best.path.name) + ("" if share == 1 else f", for {share:.2g} times the text")
    return {
        "seconds": best.made.seconds * share,
        "seconds_from": text,
        "disk_bytes": round(size * share),
    }


def _timed(results: Iterable[Result], lines: Lines, names: Iterable[str]) -> Result | None:
    """The nearest result that this machine made and whose time was recorded."""
    here = cpu_name()
    return nearest([r for r in results if r.made and r.made.cpu == here], lines.flat, names)


def _inside_run(line: Stage, lines: Lines) -> dict[str, Any]:
    """An evaluation or a report of a model of this shape, that this machine made."""
    results = lines.results
    kinds = {
        "evaluate": results.evaluations,
        "benchmark": results.benchmarks,
        "report": results.reports,
    }
    look = kinds.get(line.stage)
    if look is None:
        return {}
    newest = sorted(results.runs, key=lambda run: -run.time)
    same = (run for run in newest if not differences(run.settings, lines.flat, SHAPE))
    made = [each for run in islice(same, MAX_RUNS) for each in look(RunFolder(run.path))]
    best = _timed(made, lines, OWN[line.stage](lines.config))
    if best is None or best.made is None:
        return {}
    name = f"{best.path.parent.name}/{best.path.name}"
    size = sum(entry.bytes for entry in best.record.files.values())
    return {"seconds": best.made.seconds, "seconds_from": _as(name), "disk_bytes": size}


# ---- train ------------------------------------------------------------------------------------


def _train(line: Stage, lines: Lines) -> dict[str, Any]:
    needs, like = measure(lines.config), _run_like(lines)
    facts: dict[str, Any] = {
        "memory_bytes": needs.state + needs.checkpoint + needs.batches,
        "memory_from": "at least, by the model's shape",
    }
    steps = _steps(line, lines)
    if like and (peak := _peak(RunFolder(like.path))):
        facts |= {"memory_bytes": peak, "memory_from": _as(like.path.name)}
    train = lines.config.train
    saves = math.ceil(steps / train.checkpoint_every) if steps else math.inf
    facts["disk_bytes"] = int(min(train.keep_checkpoints + 2, saves)) * needs.checkpoint
    speed, name = _speed(line, like)
    left = steps - (line.step or 0) if steps else 0
    if steps:
        facts["tokens"] = left * train.tokens_per_step
    if line.action == "to run" and train.max_seconds is not None:
        if speed:
            facts["tokens"] = round(speed * train.max_seconds)
        return facts | {"seconds": train.max_seconds, "seconds_from": "its limit in seconds"}
    if speed and steps:
        facts["seconds"] = left * train.tokens_per_step / speed
        facts["seconds_from"] = f"estimated: {left:,} steps at the speed of {name}"
    return facts


def _steps(line: Stage, lines: Lines) -> int | None:
    """The last step of a training; None where it is not known yet."""
    if line.action == "resumed":
        return line.max_steps
    train = lines.config.train
    of_the_data = train.epochs is not None or train.max_passes is not None
    if train.max_seconds is not None or (of_the_data and lines.shards is None):
        return None
    return planned_steps(lines.config, lines.shards.trained_on if lines.shards else NO_TOKENS)


def _run_like(lines: Lines) -> Result | None:
    """The newest finished run of this machine that trained as fast as the config's would."""
    here = cpu_name()
    runs = [
        run
        for run in lines.results.runs
        if not differences(run.settings, lines.flat, SPEED)
        and isinstance(run.record, Run)
        and run.record.environment.get("cpu") == here
    ]
    return max(runs, key=lambda run: run.time, default=None)


def _speed(line: Stage, like: Result | None) -> tuple[float | None, str]:
    """Tokens per second of the run that is resumed, or of one like it; and its name."""
    if line.action == "resumed" and line.result:
        run = RunFolder(Path(line.result))
        speeds = [entry["tok_per_sec"] for entry in run.journal if entry.get("tok_per_sec")]
        if speeds:
            return statistics.median(speeds[-RECENT_STEPS:]), "its own last steps"
    if like and isinstance(like.record, Run):
        return like.record.tok_per_sec, like.path.name
    return None, ""


def _peak(run: RunFolder) -> int | None:
    """The most memory that its journal has."""
    return max((entry.get("memory_bytes") or 0 for entry in run.journal), default=0) or None
