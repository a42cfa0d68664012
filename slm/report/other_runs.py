"""The run compared with the champion's run and with the previous run of its name."""

import math
from dataclasses import dataclass
from typing import Any

from slm import keys
from slm.errors import SlmError
from slm.history.compare import PairComparison, compare_pair, written_samples
from slm.records import Run
from slm.report.samples import ReportSample
from slm.report.summary import Finding
from slm.run_folder import RunFolder

MAX_SAMPLES = 2  # pairs that are shown
GROWS = {"documents", "revision"}  # settings that change as one dataset grows
NAMES = {"recipe", "name"}  # settings that no result depends on, and that the runs' names show
FIGURES = {
    "val_bpb": "bits per byte, held-out",
    "val_loss": "nats per token, held-out",
    "parameters": "parameters",
    "tokens": "tokens trained on",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class OtherRun:
    """Another run, and how this one compares with it."""

    role: str  # "the champion", "the previous run"
    name: str
    sentence: str
    better: bool | None  # whether this run is; None where that is not shown
    figures: list[tuple[str, str, str]]  # name, theirs, ours
    settings: list[tuple[str, str, str]]  # key, theirs, ours, where they differ
    samples: list[tuple[str, str, str]]  # prompt, theirs, ours


def find_other_runs(
    run: Run, champion: RunFolder | None, name: str, samples: list[ReportSample]
) -> list[OtherRun]:
    """The champion's run and the previous run, each where there is one that can be compared.

    A run that is both is the champion:

        champion A, previous B → [A "the champion", B "the previous run"]
        champion A, previous A → [A "the champion"]
        champion is this run   → [B "the previous run"]
    """
    ours = RunFolder.of(run)
    roles: dict[RunFolder, str] = {}
    if champion is not None and champion.name != run.name:
        roles[champion] = "the champion"
    if (previous := previous_run(run, name)) is not None:
        roles.setdefault(previous, "the previous run")
    compared = (_compare(role, other, ours, samples) for other, role in roles.items())
    return [other for other in compared if other]


def previous_run(run: Run, name: str) -> RunFolder | None:
    """The newest finished run of a name on the same dataset that started before this one."""
    ours = RunFolder.of(run)
    now, data = started(ours), dataset(ours)
    others = map(RunFolder, ours.root.results("runs", name))
    finished = [other for other in others if other.is_finished and other != ours]
    times = {other: started(other) for other in finished if dataset(other) == data is not None}
    earlier = [other for other, time in times.items() if time < now]
    return max(earlier, key=lambda other: times[other], default=None)


def dataset(run: RunFolder) -> dict[str, Any] | None:
    """What a run's config names as its dataset, whatever its size and revision.

    None where it cannot be read.
    """
    try:
        fields = keys.stage_fields("download", run.config)
    except SlmError:
        return None
    return {name: value for name, value in fields.items() if name not in GROWS}


def started(run: RunFolder) -> float:
    """When a run's training started, in unix seconds; infinity where that is not known."""
    return run.started or math.inf


def _compare(
    role: str, other: RunFolder, ours: RunFolder, samples: list[ReportSample]
) -> OtherRun | None:
    try:
        comparison = compare_pair(other, ours)
    except SlmError:  # gone, or damaged
        return None
    theirs = written_samples(other)
    pairs = [
        (s.prompt, theirs[key], s.completion)
        for s in samples
        if (key := (s.prompt, s.temperature, s.top_k)) in theirs
    ]
    figures, settings = comparison.figures, comparison.config
    return OtherRun(
        role,
        other.name,
        _sentence(comparison),
        comparison.interval.better if comparison.interval else None,
        [
            (label, _figure(figures[name][0]), _figure(figures[name][1]))
            for name, label in FIGURES.items()
        ],
        [(key, _setting(a), _setting(b)) for key, (a, b) in settings.items() if key not in NAMES],
        pairs[len(pairs) // 2 :][:MAX_SAMPLES],
    )


def _sentence(comparison: PairComparison) -> str:
    if comparison.interval is None:
        return f"Not comparable document by document: {comparison.no_interval}."
    result = {
        True: "This run is better",
        False: "This run is worse",
        None: "No difference is shown",
    }
    return f"{result[comparison.interval.better]}: {comparison.interval.figures}."


def other_run_findings(others: list[OtherRun]) -> list[Finding]:
    """A sentence of the summary for each run that a difference is shown to."""
    findings = []
    for other in others:
        text = f"{other.role.capitalize()}, {other.name}: {other.sentence}"
        if other.better:
            findings.append(Finding("good", text))
        elif other.better is False and other.role == "the champion":
            findings.append(Finding("warn", text, "the champion predicts better"))
        elif other.better is False:
            findings.append(Finding("note", text))
    return findings


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def _setting(value: Any) -> str:
    return "none" if value is None else str(value)
