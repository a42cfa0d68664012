"""A growing file of events, read from where the last pass ended."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

TAIL_BYTES = 256  # of what was read: if they differ, the file was rewritten


class Tail:
    """A growing file of events, read from where the last pass ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0  # bytes that are sent
        self.tail = b""  # the last of those bytes; if they differ, the file was rewritten
        self.last_time: int | None = None  # milliseconds

    def events(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Events after `position`, each with the position after it; without a torn last line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position - len(self.tail))
            if file.read(len(self.tail)) != self.tail:
                file.seek(0)
            position = file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                with suppress(ValueError, KeyError):
                    event = json.loads(line)
                    self.last_time = int(event["time"] * 1000)
                    yield event, position

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The events since the last read, and whether the file was rewritten: then from its first.

        One look at the file: what rewrites it meanwhile is noticed by the next.
        """
        if not self.path.exists():
            return [], False
        with self.path.open("rb") as file:
            file.seek(self.position - len(self.tail))
            data, rewritten = file.read(), False
            if not data.startswith(self.tail):
                file.seek(0)
                data, self.position, self.tail, rewritten = file.read(), 0, b"", True
        whole = data[: data.rfind(b"\n") + 1]
        new = whole[len(self.tail) :]
        self.position += len(new)
        self.tail = whole[-TAIL_BYTES:]
        return [entry for line in new.splitlines() if (entry := _event(line))], rewritten

    def advance(self, position: int) -> None:
        """Remember that everything before `position` is sent."""
        self.position = position
        if position:
            with self.path.open("rb") as file:
                file.seek(max(0, position - TAIL_BYTES))
                self.tail = file.read(position - file.tell())

    def first_time(self) -> int:
        """When the run began, in milliseconds."""
        for event, _ in Tail(self.path).events():
            return int(event["time"] * 1000)
        return int(time.time() * 1000)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None where it is none, as after a torn write."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"event", "time"} <= event.keys() else None
