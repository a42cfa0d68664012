"""`slm compare`: any number of runs, in a table and as a page."""

import shlex
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.completion import run_references
from slm.cli.options import (
    REFERENCE,
    AsJson,
    console,
    show,
    show_line,
    show_wide,
    suggest,
    width,
)
from slm.figures import count, counted, duration
from slm.orchestration.display import shorten

if TYPE_CHECKING:
    from slm.comparison.results import Comparison, Group, Ranking

MIN_WIDTH = 150  # characters, for all columns of a ranking
MIN_WIDTH_OF_NAMES = 90  # below it the runs are named in a line of their own
MAX_ROWS = 40  # of a ranking in a terminal; --json and the page have all


def compare(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…|SWEEP|PATTERN",
            help=f"Two or more runs, each in any of these forms: {REFERENCE} A pattern in quotes "
            "is all runs of such names: 'quickstart-*'; a sweep's name is the runs of its trials.",
            autocompletion=run_references,
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the comparison as one HTML page.")
    ] = None,
    open_page: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Open the page in the browser; without --html it is under data/comparisons/.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare any number of runs: what differs, scores with intervals, curves, samples.

    Two runs are shown in detail. More are ranked, the best first: runs that differ in the seed
    alone are one group, each group is compared with the best on the same held-out documents, and
    what was scored on other documents is ranked apart.

    Examples: slm compare RUN RUN · slm compare 'quickstart-*' --open
    """
    from slm.cli import tables
    from slm.comparison.compare import compare as compare_runs

    compared = compare_runs(*references, html=html or open_page)
    if as_json:
        show(as_fields(compared), as_json)
    elif compared.pair:
        console().print(tables.pair(compared.pair))
    else:
        _show(compared)
    if compared.html:
        if not as_json:
            show_line(f"\npage      {shorten(compared.html)}")
        if open_page:
            webbrowser.open(compared.html.as_uri())
    else:
        best = compared.rankings[0].groups[0].runs[0] if compared.rankings else None
        report = compared.pair.b if compared.pair else best
        reports = [f"slm report {report} --open"] if report else []
        suggest(as_json, *reports, f"slm compare {shlex.join(references)} --open")


def as_fields(compared: "Comparison") -> dict[str, Any]:
    """What `--json` prints: of two runs the pair, as it always was; of more, the rankings."""
    if compared.pair is None:
        fields = compared.model_dump(mode="json", exclude={"pair"})
        for each, ranking in zip(fields["rankings"], compared.rankings, strict=True):
            each |= {"distinguishable": ranking.distinguishable, "verdict": ranking.verdict.text()}
        return fields
    page = {"html": str(compared.html)} if compared.html else {}
    return {**compared.pair.model_dump(mode="json"), **page}


# ---- tables -----------------------------------------------------------------------------------


def _show(compared: "Comparison") -> None:
    from slm.cli import tables

    for ranking in compared.rankings:
        if ranking.why_apart:
            show_line(f"\nRanked apart: {ranking.why_apart}")
        show_line(
            f"{counted(len(ranking.groups), 'group')} on the same "
            f"{counted(ranking.documents, 'held-out document')}, {ranking.bytes:,} bytes"
        )
        show_wide(tables.listing(*_ranking(compared, ranking)))
        if (left := len(ranking.groups) - MAX_ROWS) > 0:
            show_line(f"and {left:,} more: --html and --json have all of them")
        if sentence := _standing(ranking):
            show_line(f"{'best':<9} {sentence}")
    if compared.not_ranked:
        show_line("\nNot ranked" if compared.rankings else "No run is ranked")
        show_wide(tables.listing(*_not_ranked(compared)))
    for note in compared.notes:
        show_line(f"note: {note}")


def _standing(ranking: "Ranking") -> str:
    """How sure the first place is."""
    if not ranking.comparisons:
        return ""
    best = ranking.groups[0]
    return ranking.verdict.sentence("rank 1", best.val_bpb, best.low, best.high, "those with =")


def _ranking(compared: "Comparison", ranking: "Ranking") -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a ranking, as many as the terminal has room for."""
    from slm.comparison.naming import brief_settings, settings_text

    wide = width() >= MIN_WIDTH
    tasks = list(dict.fromkeys(task for group in ranking.groups for task in group.benchmarks))
    rows = []
    for rank, group in enumerate(ranking.groups[:MAX_ROWS], 1):
        row: dict[str, Any] = {
            "rank": rank,
            "differs in": settings_text(group.settings, brief_settings(compared)),
            "val_bpb": group.val_bpb,
            "95 %": "" if group.low is None else f"{group.low:.4f} to {group.high:.4f}",
            "seeds": len(group.seeds),
            "minus best": _above(group, width() >= MIN_WIDTH_OF_NAMES),
        }
        row |= {f"bpb {source}": value for source, value in group.sources.items()}
        row |= {task: _percent(group.benchmarks.get(task)) for task in tasks}
        row |= {
            "best in training": group.best_slice_val_bpb,
            "last": group.last_slice_val_bpb,
            "tokens": count(group.tokens),
            "seconds": group.seconds and duration(group.seconds),
            "FLOPs": group.flops and count(group.flops),
            "runs": _names(group.runs),
        }
        rows.append(row)
    left_out = set() if wide else {"best in training", "last", "tokens", "FLOPs"}
    left_out |= set() if compared.settings else {"differs in"}
    left_out |= {"95 %", "seconds"} if width() < MIN_WIDTH_OF_NAMES else set()
    return _columns(rows, left_out)


def _columns(
    rows: Sequence[dict[str, Any]], left_out: Iterable[str]
) -> tuple[list[str], list[list[Any]]]:
    names = [name for name in rows[0] if name not in left_out]
    return names, [[row[name] for name in names] for row in rows]


def _above(group: "Group", with_interval: bool) -> str | None:
    if group.to_best is None:
        return None
    above = group.to_best
    if above.low is None:
        return f"{above.difference:+.4f}"
    text = f"{above.difference:+.4f} {' ' if group.is_distinguishable else '='}"
    return f"{text} ({above.low:+.4f} to {above.high:+.4f})" if with_interval else text


def _percent(accuracy: float | None) -> str | None:
    return None if accuracy is None else f"{100 * accuracy:.1f} %"


def _names(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]} +{len(runs) - 1}"


def _not_ranked(compared: "Comparison") -> tuple[list[str], list[list[Any]]]:
    from slm.comparison.naming import brief_settings, settings_text
    from slm.comparison.reading import SEED

    keys = [*brief_settings(compared), SEED]
    rows = [
        {
            "run": run.run,
            "why": run.not_ranked,
            "differs in": settings_text(run.settings, keys) if run.settings else None,
            "best in training": run.best_slice_val_bpb,
            "last": run.last_slice_val_bpb,
            "tokens": count(run.tokens),
            "seconds": run.seconds and duration(run.seconds),
        }
        for run in compared.not_ranked
    ]
    return _columns(rows, {"tokens", "seconds"} if width() < MIN_WIDTH else ())
