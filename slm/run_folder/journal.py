"""The journal of a run: one line per event."""

import json
from typing import cast

from slm.records import JournalEntry


def parse_entry(line: bytes) -> JournalEntry | None:
    """The entry of a line of a journal; None where the line is torn or no entry."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return cast(JournalEntry, entry) if isinstance(entry, dict) and "event" in entry else None
