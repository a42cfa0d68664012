"""`slm report --index`: the list of all reports of the data folder."""

import webbrowser
from typing import TYPE_CHECKING, Any

from slm.cli.options import show, show_line, show_wide, suggest
from slm.figures import count
from slm.orchestration.display import shorten

if TYPE_CHECKING:
    from slm.comparison.reports import ListedReport, ReportIndex

COLUMNS = ("run", "date", "val_bpb", "parameters", "data", "verdict", "registered as")


def show_index(open_page: bool, as_json: bool) -> None:
    """Write the page, and show what it lists."""
    from slm.comparison.reports import report_index

    index = report_index()
    if as_json:
        show(index.model_dump(mode="json"), as_json)
    else:
        _show(index)
    if open_page:
        webbrowser.open(index.html.as_uri())
    else:
        suggest(as_json, "slm report --index --open")


def _show(index: "ReportIndex") -> None:
    from slm.cli import tables
    from slm.comparison.reports import sentence

    show_line(sentence(index))
    for group in index.groups:
        if len(index.groups) > 1:
            show_line(f"\n{group.heading}")
        show_wide(tables.listing(COLUMNS, map(_row, group.reports)))
    if index.without_report:
        show_line("\nRuns without a report")
        rows = [(each.run, each.why) for each in index.without_report]
        show_wide(tables.listing(("run", "why"), rows))
    show_line(f"\npage      {shorten(index.html)}")


def _row(each: "ListedReport") -> list[Any]:
    versions = (" ".join([v.uri, *(v.aliases or ())]) for v in each.registered)
    parameters = count(each.parameters)
    registered = ", ".join(versions)
    return [each.run, each.date, each.val_bpb, parameters, each.data, each.verdict, registered]
