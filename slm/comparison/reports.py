"""All reports of a data folder on one page: `slm.report_index`, and `slm report --index`.

It is made from the records alone, with nothing verified and MLflow not asked, so that hundreds of
runs take a second. What is not comparable is in groups of its own.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pydantic import Field

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, NewerFormat
from slm.evaluation.identity import text_fingerprint
from slm.evaluation.ranking import by_held_out_text
from slm.figures import count, counted
from slm.records import Evaluation, Frozen, Report, Version
from slm.registry.tags import read_note, registered_notes
from slm.report.summary import headline, level_of
from slm.report.templates import environment, stylesheet
from slm.run_folder import EVALUATION, REPORT, DataRoot, RunFolder
from slm.tracking.store import file_of, version_aliases

PAGE = "reports.html"  # in the data folder
MLFLOW_STORE = Path("mlflow", "mlflow.db")
Aliases = dict[tuple[str, str], list[str]]  # of each version, by model and number
AliasesIn = Callable[[Path], Aliases | None]  # in a store; None where it cannot be read


class RegisteredAs(Frozen):
    """A version that was made from a run."""

    uri: str  # models:/NAME/VERSION
    aliases: list[str] | None  # None where only a server knows them


class ListedReport(Frozen):
    """A report in a line."""

    run: str
    report: str  # the page, relative to the data folder
    others: list[str] = Field(default_factory=list)  # those by other settings than the run's own
    started: float | None  # the training, unix seconds
    verdict: str  # the sentence at the head of the report
    val_bpb: float | None
    interval: tuple[float, float] | None  # 95 %, of val_bpb
    parameters: int
    tokens: int  # trained on
    data: str  # the dataset, without its folder
    registered: list[RegisteredAs] = Field(default_factory=list)

    @property
    def level(self) -> str:
        """good, warn or bad, by the verdict."""
        return level_of(self.verdict)

    @property
    def date(self) -> str:
        """Day and minute of `started`, UTC."""
        if self.started is None:
            return "–"
        return f"{datetime.fromtimestamp(self.started, UTC):%Y-%m-%d %H:%M}"


class ReportGroup(Frozen):
    """Reports whose bits per byte are of the same held-out text, the newest first."""

    documents: int | None  # None: of runs without an evaluation by their own settings
    bytes: int | None
    reports: list[ListedReport]

    @property
    def heading(self) -> str:
        """What the figures of these reports are of."""
        if self.documents is None:
            return "Not evaluated by their own settings"
        return f"{counted(self.documents, 'held-out document')}, {self.bytes:,} bytes"

    @property
    def best(self) -> ListedReport | None:
        """The one with the fewest bits per byte; None where there is only one."""
        scored = [each for each in self.reports if each.val_bpb is not None]
        return min(scored, key=lambda each: each.val_bpb or 0.0) if len(scored) > 1 else None


class NoReport(Frozen):
    """A run without a report, and why."""

    run: str
    why: str


class ReportIndex(Frozen):
    """All reports of a data folder."""

    html: Path
    groups: list[ReportGroup]  # that with the newest report first
    without_report: list[NoReport]


def report_index(root: str | Path | None = None) -> ReportIndex:
    """Write `reports.html` into the data folder: one page that lists and links all reports.

    >>> index = slm.report_index()
    >>> index.html, index.groups[0].reports[0].verdict

    The page shows what is there when it is made; no stage rewrites it. Figures of different
    held-out texts are in different groups. Marks such as `champion` are read from the data folder's
    own MLflow store; of versions on a server only the number is shown.

    Args:
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where the data folder cannot be written.
    """
    data = DataRoot(root)
    aliases_in = cache(_read_aliases)  # each store once
    listed: list[tuple[ListedReport, Evaluation | None]] = []
    without: list[NoReport] = []
    for run in data.runs():
        try:
            entry = _listed(run, aliases_in)
        except (CorruptionError, NewerFormat) as error:
            entry = NoReport(run=run.name, why=f"cannot be read: {error}")
        if isinstance(entry, NoReport):
            without.append(entry)
        else:
            listed.append(entry)
    index = ReportIndex(
        html=storage.make_folder(data.path).resolve() / PAGE,
        groups=_groups(listed),
        without_report=without,
    )
    storage.write_file(index.html, render(index))
    return index


# ---- a run ------------------------------------------------------------------------------------


def _listed(
    run: RunFolder, aliases_in: AliasesIn
) -> tuple[ListedReport, Evaluation | None] | NoReport:
    """Its line and its evaluation, or why there is none."""
    record = run.record
    if record is None:
        state = "in training" if run.is_training else f"stopped: slm train {run.name}"
        return NoReport(run=run.name, why=state)
    pages = _pages(run)
    if not pages:
        return NoReport(run=run.name, why=f"not written: slm report {run.name}")
    folder = run.result_folder(EVALUATION)
    evaluation = storage.read_record(folder, Evaluation, verify=False)
    bounds = evaluation.details.get("val_bpb_interval") if evaluation else None
    first, *others = (page.relative_to(run.root.path).as_posix() for page in pages)
    checkpoint = run.checkpoint(evaluation.checkpoint) if evaluation else None
    entry = ListedReport(
        run=run.name,
        report=first,
        others=others,
        started=run.started,
        verdict=_verdict(pages[0].parent),
        val_bpb=evaluation.val_bpb if evaluation else None,
        interval=(bounds[0], bounds[1]) if bounds else None,
        parameters=record.parameters,
        tokens=checkpoint.tokens if checkpoint else record.tokens,
        data=_dataset(run.config),
        registered=_registered(run, aliases_in),
    )
    return entry, evaluation


def _pages(run: RunFolder) -> list[Path]:
    """The pages of its reports that are there, that by its own settings first."""
    folders = [run.result_folder(REPORT), *sorted(run.path.glob(f"{REPORT}-{'[0-9a-f]' * 12}"))]
    pages = []
    for folder in folders:
        with suppress(CorruptionError):
            report = storage.read_record(folder, Report, verify=False)
            if report and (page := storage.named(folder, report.html)).is_file():
                pages.append(page)
    return pages


def _verdict(report: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return headline(report)
    return ""


def _dataset(config: PipelineConfig) -> str:
    """What a run was trained on, in a word; of a folder or a file the last part alone."""
    data = config.data
    if data.sources:
        return ", ".join(data.sources)
    if data.source == "files":
        return Path(data.path).name or data.path
    return data.path or data.source


def _registered(run: RunFolder, aliases_in: AliasesIn) -> list[RegisteredAs]:
    """The versions that its notes name; those that are gone from a store of ours are left out."""
    versions = []
    for noted in filter(None, map(read_note, registered_notes(run.path))):
        store = _store_of(noted, run.root.path)
        aliases = aliases_in(store) if store else None
        if aliases is None:
            versions.append(RegisteredAs(uri=noted.uri, aliases=None))
        elif (noted.model, noted.version) in aliases:
            here = aliases[noted.model, noted.version]
            versions.append(RegisteredAs(uri=noted.uri, aliases=here))
    return versions


def _store_of(noted: Version, root: Path) -> Path | None:
    """The file of the store that a note names; None where that is a server, or gone.

    A store that moved with its data folder is in the usual place.
    """
    file = file_of(noted.tracking_uri)
    places = (root / file, root / MLFLOW_STORE) if file else ()
    return next((each for each in places if each.is_file()), None)


def _read_aliases(store: Path) -> Aliases | None:
    try:
        return version_aliases(store)
    except sqlite3.Error:
        return None


# ---- groups -----------------------------------------------------------------------------------


def _groups(listed: Sequence[tuple[ListedReport, Evaluation | None]]) -> list[ReportGroup]:
    """By held-out text: the number of documents, their bytes, and the text's fingerprint."""
    newest = sorted(listed, key=lambda pair: (-(pair[0].started or 0.0), pair[0].run))
    scored = [(entry, evaluation) for entry, evaluation in newest if evaluation]
    sizes = [np.array([e.documents, e.bytes], np.int64) for _, e in scored]
    prints = [text_fingerprint(evaluation) for _, evaluation in scored]
    groups = [
        ReportGroup(
            documents=int(sizes[members[0]][0]),
            bytes=int(sizes[members[0]][1]),
            reports=[scored[i][0] for i in sorted(members)],
        )
        for members in by_held_out_text(list(zip(sizes, prints, strict=True)))
    ]
    if unscored := [entry for entry, evaluation in newest if not evaluation]:
        groups.append(ReportGroup(documents=None, bytes=None, reports=unscored))
    return sorted(groups, key=lambda group: -(group.reports[0].started or 0.0))


# ---- the page ---------------------------------------------------------------------------------


def sentence(index: ReportIndex) -> str:
    """What the page has, in a sentence."""
    reports = sum(len(group.reports) for group in index.groups)
    if not reports:
        return "No report yet"
    newest = index.groups[0].reports[0]
    figure = "" if newest.val_bpb is None else f", {newest.val_bpb:.3f} bits per byte"
    return f"{counted(reports, 'report')}; the newest is {newest.run}{figure}"


def render(index: ReportIndex) -> bytes:
    """The page."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    templates = environment(folder)
    templates.filters |= {"address": quote, "amount": count}
    facts: dict[str, Any] = {
        "title": "Reports",
        "sentence": sentence(index),
        "css": Markup(stylesheet(folder / "reports.css")),
        "index": index,
    }
    text = templates.get_template("reports.html.j2").render(facts)
    return text.encode("utf-8", "replace")
