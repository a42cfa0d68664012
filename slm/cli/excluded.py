"""What `slm inspect` prints of documents that were dropped, and the data card that it writes."""

import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.cli.options import show, show_line, suggest
from slm.config import data_root
from slm.orchestration.display import shorten
from slm.records import Shards
from slm.run_folder import DataRoot


def counts_of_dropped(shards: Shards) -> dict[str, Any]:
    """Rows that the download left out, by reason; of a mixture also what its sources share."""
    from slm.inspection.texts import origins_of

    not_read: dict[str, int] = {}
    for origin in origins_of(shards, DataRoot(data_root())).values():
        for reason, count in (origin.source.dropped if origin.source else {}).items():
            not_read[reason] = not_read.get(reason, 0) + count
    between = {name: part.excluded for name, part in shards.parts.items()}
    return {"not_read": not_read, **({"excluded_between_sources": between} if between else {})}


def show_excluded(shards: Shards, reason: str | None, as_json: bool) -> None:
    """Print every document that was dropped, a line each."""
    from slm.inspection.shards import dropped

    documents = dropped(shards, DataRoot(data_root()), reason)
    if as_json:
        show({"shards": shards.name, "excluded": [asdict(each) for each in documents]}, as_json)
        return
    count = 0
    for each in documents:
        count += 1
        of = f" of {each.of['file']}, row {each.of['row']:,}" if each.of else ""
        text = each.text.replace("\n", "⏎").strip()
        place = f"{each.file}, row {each.row:,} ({each.split}, {each.bytes:,} bytes)"
        sys.stdout.write(f"{each.reason}{of}: {place}: {text}\n")
    show_line(f"{count:,} documents were dropped")
    suggest(as_json, f"slm inspect {shards.name} --card --open")


def write_card(shards: Shards, html: Path | None, open_page: bool, as_json: bool) -> None:
    """Write a data card, and open it where that is asked for."""
    from slm.inspection.card import data_card

    path = data_card(shards, html)
    if as_json:
        show({"shards": shards.name, "card": str(path)}, as_json)
    else:
        show_line(f"card      {shorten(path)}")
    if open_page:
        webbrowser.open(path.as_uri())
