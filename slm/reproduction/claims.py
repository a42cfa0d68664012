"""What a run claims: the figures of its records, of its journal, of its version and its report.

They are compared with those of the rebuilt run; the figures of the clock, which no other run
repeats, are compared with each other.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.records import (
    Checkpoint,
    Decision,
    Evaluation,
    FileEntry,
    JournalEntry,
    Plan,
    Run,
    Shards,
    Source,
)
from slm.registry.tags import Ingredients, chain_tags
from slm.reproduction import pages
from slm.reproduction.comparing import FOLLOWS_WEIGHTS, MISSING, Comparisons, exact, segments
from slm.run_folder import CHECKPOINTS, EVALUATION, REPORT, RunFolder, checkpoint_name
from slm.storage import LEFTOVER, read_record, sha256_json
from slm.training.needs import planned_steps
from slm.training.plan import decision_sha256, plan_sha256

# Tags of a version that tell of the code, the machine and the report, which are not rebuilt.
TAGS_NOT_REPEATED = {
    "code_commit", "code_dirty", "code_diff_sha256", "code_modules_sha256", "environment_sha256",
    "report_sha256",
}  # fmt: skip
SAME_SECONDS = 1e-9  # relative: sums of the same figures in another order


@dataclass(frozen=True)
class Claims:
    """The records of a run and its journal; what is gone, or not rebuilt yet, is empty."""

    source: Source | None = None
    shards: Shards | None = None
    run: Run | None = None
    journal: tuple[JournalEntry, ...] = ()
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)  # by their folders' names
    config: PipelineConfig | None = None
    plan: Plan | None = None
    decision: Decision | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # of the version, without their prefix
    pages: Mapping[str, str] = field(default_factory=dict)  # of the report: file → text

    @classmethod
    def of(cls, run: RunFolder, tags: Mapping[str, str] | None = None) -> "Claims":
        """Those of a finished run. Spare checkpoints that are damaged are left out."""
        checkpoints, evaluations = {}, {}
        for _, path in run.checkpoints:
            with suppress(CorruptionError):
                if checkpoint := read_record(path, Checkpoint):
                    checkpoints[path.name] = checkpoint
        for path in sorted(run.path.glob(f"{EVALUATION}*")):
            if LEFTOVER.fullmatch(path.name):
                continue
            with suppress(CorruptionError):
                if evaluation := read_record(path, Evaluation):
                    evaluations[path.name] = evaluation
        return cls(
            source=run.source,
            shards=run.shards,
            run=run.record,
            journal=tuple(run.journal),
            checkpoints=checkpoints,
            evaluations=evaluations,
            config=run.config,
            plan=run.plan,
            decision=run.decision,
            tags=tags or {},
            pages=pages.read_pages(run.path / REPORT),
        )

    @property
    def files(self) -> dict[str, FileEntry]:
        """The files of the checkpoints, by their paths in the run's folder.

        Their records are not among them: those hold the time and the machine.
        """
        assert self.run is not None, "compared once it is there"
        listed = {
            f"{CHECKPOINTS}/{name}/{file}": entry
            for name, checkpoint in self.checkpoints.items()
            for file, entry in checkpoint.files.items()
        }
        listed |= self.run.files
        return {
            name: entry
            for name, entry in sorted(listed.items())
            if name.startswith(f"{CHECKPOINTS}/") and not name.endswith("/record.json")
        }


def compare_data(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare the records of source and shards; their files and keys are links of the lineage."""
    for name in ("source", "shards"):
        old, new = getattr(recorded, name), getattr(rebuilt, name)
        if old and new:
            _compare_sizes(compared, name, old.files, new.files)
            compared.add_record(name, old, new)


def compare_results(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare the evaluations, and what the version and the report copy of all records."""
    for name, evaluation in recorded.evaluations.items():
        compared.add_record(name, evaluation, rebuilt.evaluations[name])
    _compare_tags(compared, recorded, rebuilt)
    _compare_pages(compared, recorded, rebuilt)


def _compare_sizes(
    compared: Comparisons,
    prefix: str,
    recorded: Mapping[str, FileEntry],
    rebuilt: Mapping[str, FileEntry],
) -> None:
    """Compare the files' bytes; their hashes are those of the lineage."""
    for file, entry in recorded.items():
        new = rebuilt.get(file)
        size = exact(new.bytes) if new else None
        compared.add(f"{prefix}/{file}, bytes", exact(entry.bytes), size)


# ---- training ---------------------------------------------------------------------------------


def compare_training(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare journals, checkpoints and records; and the figures of the clock with each other."""
    assert recorded.run is not None
    assert rebuilt.run is not None
    compared.add_journals(*_common_journals(recorded.journal, rebuilt.journal))
    for row in _interruptions(recorded.journal, rebuilt.journal):
        compared.add(*row)
    _compare_checkpoints(compared, recorded, rebuilt)
    compared.add_record("run", recorded.run, rebuilt.run)
    for row in (*_clock(recorded), *_plan(recorded, rebuilt)):
        compared.add(*row)


def _common_journals(
    recorded: Iterable[JournalEntry], rebuilt: Iterable[JournalEntry]
) -> tuple[list[JournalEntry], list[JournalEntry]]:
    """Both journals with only those checkpoints that both have saved, in the order of the steps.

    Where training was interrupted, it saved more of them, or was killed before it noted one.
    """
    pair = (list(recorded), list(rebuilt))
    old, new = ({_step(e) for e in each if e["event"] == "checkpoint"} for each in pair)
    kept = [[e for e in each if e["event"] != "checkpoint"] for each in pair]
    saved = [
        sorted((e for e in each if e["event"] == "checkpoint" and _step(e) in old & new), key=_step)
        for each in pair
    ]
    return kept[0] + saved[0], kept[1] + saved[1]


def _step(entry: JournalEntry) -> int:
    return entry.get("step") or 0


def _interruptions(
    recorded: Iterable[JournalEntry], rebuilt: Iterable[JournalEntry]
) -> Iterator[tuple[str, str, str]]:
    """What the journal's lines on interruptions claim, and what they must."""
    start = next((e for e in rebuilt if e["event"] == "start"), None)
    saved = {_step(e) for e in rebuilt if e["event"] == "checkpoint"}
    reached, extra = 0, set[int]()
    for entry in recorded:
        if entry["event"] == "resume":
            last = min(_step(entry), reached)  # it cannot have resumed after the last step
            yield f"journal.resume.step {_step(entry)}", exact(entry.get("step")), exact(last)
            for name in ("max_steps", "parameters"):
                if start and name in entry:
                    old, new = (exact(dict(each).get(name)) for each in (entry, start))
                    yield f"journal.resume.{name}", old, new
        elif entry["event"] == "checkpoint" and _step(entry) not in saved:
            step, last = _step(entry), min(_step(entry), reached)
            name = MISSING if step in extra else checkpoint_name(step)
            yield f"journal.checkpoint.step {step}", exact(step), exact(last)
            yield f"journal.checkpoint.name of step {step}", exact(entry.get("name")), name
            extra.add(step)
        elif entry["event"] == "step":
            reached = max(reached, _step(entry))


def _compare_checkpoints(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare all files and records of checkpoints, except those that only an interruption saved.

    The best and the last, which the run's record lists, must be there.
    """
    assert recorded.run is not None
    new_files, own = rebuilt.files, recorded.run.files
    for file, entry in recorded.files.items():
        new = new_files.get(file)
        if new is None and file not in own:
            continue
        step = int(Path(file).parent.name.rpartition("_")[2])
        digest, size = (new.sha256, exact(new.bytes)) if new else (None, None)
        compared.add(file, entry.sha256, digest, step, follows=True)
        compared.add(f"{file}, bytes", exact(entry.bytes), size, step, follows=True)
    for name, checkpoint in recorded.checkpoints.items():
        for file, entry in checkpoint.files.items():
            if listed := own.get(f"{CHECKPOINTS}/{name}/{file}"):
                compared.add(f"{name}/{file} in its own record", str(entry), str(listed))
        if new_record := rebuilt.checkpoints.get(name):
            config_sha256 = _config_sha256(recorded, checkpoint.config_sha256)
            expected = new_record.model_copy(update={"config_sha256": config_sha256})
            compared.add_record(f"{CHECKPOINTS}/{name}", checkpoint, expected, checkpoint.step)


def _config_sha256(recorded: Claims, claimed: str | None) -> str | None:
    """What a claim of the config's hash must be: of those that the config has had, the same one."""
    hashes = keys.config_hashes(recorded.config) if recorded.config else [None]
    return claimed if claimed in hashes else hashes[0]


# ---- what no other run repeats ----------------------------------------------------------------


def _clock(recorded: Claims) -> Iterator[tuple[str, str, str]]:
    """The figures of the clock, and what the others of the same run give for them."""
    run, config = recorded.run, recorded.config
    steps = [entry for entry in recorded.journal if entry["event"] == "step"]
    rates = [entry["tok_per_sec"] for entry in steps if entry.get("tok_per_sec")]
    if run and config and rates:
        tokens = config.train.tokens_per_step
        yield _near("run.tok_per_sec", run.tok_per_sec, statistics.median(rates))
        yield _near("run.seconds", run.seconds, sum(tokens / rate for rate in rates))
    # FLOPs per token are the model's; a share of a GPU's peak is also that of the GPU.
    for name, parts in (("gflops", [steps]), ("mfu", segments(recorded.journal))):
        for part in parts:
            yield from _speeds(name, part)


def _speeds(name: str, steps: Sequence[JournalEntry]) -> Iterator[tuple[str, str, str]]:
    """A figure that is in proportion to the tokens/s: the steps where it is not, or one row."""
    figures: list[Mapping[str, Any]] = [entry for entry in steps if dict(entry).get(name)]
    ratios = [e[name] / e["tok_per_sec"] for e in figures if e.get("tok_per_sec")]
    rows = [
        _near(
            f"journal.step.{name} of step {entry['step']}",
            entry[name],
            statistics.median(ratios) * (entry.get("tok_per_sec") or math.nan),
        )
        for entry in figures
        if ratios
    ]
    differing = [row for row in rows if row[1] != row[2]]
    yield from differing
    if rows and not differing:
        digest = sha256_json([recorded for _, recorded, _ in rows])
        yield f"journal.step.{name}, {len(rows)} values", digest, digest


def _near(name: str, recorded: float, expected: float) -> tuple[str, str, str]:
    same = math.isclose(recorded, expected, rel_tol=SAME_SECONDS)
    return name, exact(recorded), exact(recorded if same else expected)


def _plan(recorded: Claims, rebuilt: Claims) -> Iterator[tuple[str, str, str]]:
    """What the config alone decides of a plan, and the hashes of plan and decision in checkpoints.

    All else in them is what the machine chose: the run was rebuilt by it.
    """
    plan, config, shards = recorded.plan, recorded.config, rebuilt.shards
    if plan is None or config is None:
        return
    yield "plan.parallel", plan.parallel, config.train.parallel
    yield "plan.rows", exact(plan.rows), exact(config.train.tokens_per_step // config.model.seq_len)
    if shards and (steps := planned_steps(config, shards.trained_on)):
        yield "plan.max_steps", exact(plan.end(recorded.decision)), exact(steps)
    for name, checkpoint in recorded.checkpoints.items():
        if checkpoint.plan_sha256:
            yield f"plan of {name}", plan_sha256(plan), checkpoint.plan_sha256
        digest = decision_sha256(recorded.decision, checkpoint.step)
        if digest or checkpoint.decision_sha256:
            yield f"decision of {name}", digest, checkpoint.decision_sha256


# ---- copies -----------------------------------------------------------------------------------


def _shown(recorded: Claims, rebuilt: Claims) -> tuple[Checkpoint, Evaluation] | None:
    """The rebuilt evaluation that tags or report copy, and its checkpoint.

    It is the one that the tags name, or the run's own.
    """
    key = recorded.tags.get("evaluation_key")
    named = [name for name, each in recorded.evaluations.items() if each.key == key]
    name = next((name for name in (*named, EVALUATION) if name in rebuilt.evaluations), None)
    if name is None:
        return None
    evaluation = rebuilt.evaluations[name]
    checkpoint = rebuilt.checkpoints.get(evaluation.checkpoint)
    return (checkpoint, evaluation) if checkpoint else None


def _compare_tags(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare the tags of a version with those that the rebuilt run would have."""
    shown = _shown(recorded, rebuilt)
    if not recorded.tags or shown is None or rebuilt.run is None or recorded.config is None:
        return
    checkpoint, evaluation = shown
    made = chain_tags(
        Ingredients(
            config=recorded.config, source=rebuilt.source, shards=rebuilt.shards, parent=None,
            run=rebuilt.run, checkpoint=checkpoint, evaluation=evaluation, report=None,
        )
    )  # fmt: skip
    made["config_sha256"] = _config_sha256(recorded, recorded.tags.get("config_sha256")) or ""
    for name, value in made.items():
        if name not in TAGS_NOT_REPEATED:
            follows = name in FOLLOWS_WEIGHTS
            compared.add(f"tag.{name}", recorded.tags.get(name), value, follows=follows)


def _compare_pages(compared: Comparisons, recorded: Claims, rebuilt: Claims) -> None:
    """Compare the figures that the report and its model card copy from the records."""
    shown = _shown(Claims(evaluations=recorded.evaluations), rebuilt)
    config, old, new = recorded.config, recorded.run, rebuilt.run
    if shown is None or config is None or old is None or new is None:
        return
    checkpoint, evaluation = shown
    clock = {"seconds": old.seconds, "tok_per_sec": old.tok_per_sec}
    expected = pages.copied_figures(
        config, new.model_copy(update=clock), checkpoint, evaluation, rebuilt.shards
    )
    for page, text in recorded.pages.items():
        for name, value, should_be in pages.compare_page(text, expected):
            compared.add(f"report/{page}: {name}", value, should_be, follows=True)
