"""The model beside the champion and beside the run of the same recipe before it."""

import math
from dataclasses import dataclass
from typing import Any

from slm.errors import CorruptionError, SlmError
from slm.history.compare import Comparison, compare, written_samples
from slm.records import Run
from slm.report.grid import GridSample
from slm.report.summary import Finding
from slm.run_folder import RunFolder

SAMPLES = 2  # shown side by side
FIGURES = {
    "val_bpb": "bits a byte, held-out",
    "val_loss": "nats a token, held-out",
    "parameters": "parameters",
    "tokens": "tokens trained on",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class Rival:
    """Another run, and what sets this one apart from it."""

    role: str  # "the champion", "the run before"
    name: str
    sentence: str
    better: bool | None  # whether this run is; None where that is not shown
    figures: list[tuple[str, str, str]]  # name, theirs, ours
    settings: list[tuple[str, str, str]]
    samples: list[tuple[str, str, str]]  # prompt, theirs, ours


def find_rivals(
    run: Run, champion: RunFolder | None, recipe: str, samples: list[GridSample]
) -> list[Rival]:
    """The champion's run, where it is another one, and the finished run of the recipe before."""
    roles: dict[RunFolder, str] = {}
    if champion is not None and champion.name != run.name:
        roles[champion] = "the champion"
    if (before := run_before(run, recipe)) is not None:
        roles.setdefault(before, "the run before")
    ours = RunFolder.of(run)
    return [r for other, role in roles.items() if (r := _rival(role, other, ours, samples))]


def run_before(run: Run, recipe: str) -> RunFolder | None:
    """The newest of the recipe's finished runs that began before this one."""
    ours = RunFolder.of(run)
    others = map(RunFolder, ours.root.results("runs", recipe))
    began = {r: _began(r) for r in others if r.is_finished and r.name != run.name}
    now = _began(ours)
    earlier = {other: time for other, time in began.items() if time < now}
    return max(earlier, key=lambda other: earlier[other], default=None)


def _began(run: RunFolder) -> float:
    try:
        first = next(run.journal, None)
    except CorruptionError:  # of whichever old run: this report does not depend on it
        first = None
    return float(first["time"]) if first else math.inf


def _rival(role: str, other: RunFolder, ours: RunFolder, samples: list[GridSample]) -> Rival | None:
    try:
        found = compare(other, ours)
    except SlmError:  # gone, or damaged
        return None
    theirs = written_samples(other)
    pairs = [
        (s.prompt, theirs[key], s.completion)
        for s in samples
        if (key := (s.prompt, s.temperature, s.top_k)) in theirs
    ]
    return Rival(
        role,
        other.name,
        _sentence(found),
        found.interval.better if found.interval else None,
        [
            (label, _figure(found.figures[name][0]), _figure(found.figures[name][1]))
            for name, label in FIGURES.items()
        ],
        [(key, _word(a), _word(b)) for key, (a, b) in found.config.items() if key != "recipe"],
        pairs[len(pairs) // 2 :][:SAMPLES],
    )


def _sentence(found: Comparison) -> str:
    if found.interval is None:
        return f"Not comparable document by document: {found.no_interval}."
    told = {True: "This run is better", False: "This run is worse", None: "No difference is shown"}
    return f"{told[found.interval.better]}: {found.interval.figures}."


def rival_findings(rivals: list[Rival]) -> list[Finding]:
    """A sentence of the summary for each that can be compared."""
    findings = []
    for rival in rivals:
        if rival.better is None:
            continue
        text = f"{rival.role.capitalize()}, {rival.name}: {rival.sentence}"
        if rival.better:
            findings.append(Finding("good", text))
        elif rival.role == "the champion":
            findings.append(Finding("warn", text, "the champion predicts better"))
        else:
            findings.append(Finding("note", text))
    return findings


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
