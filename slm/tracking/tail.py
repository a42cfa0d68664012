"""A growing file of events, read from where the last pass ended."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


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

    def advance(self, position: int) -> None:
        """Remember that everything before `position` is sent."""
        self.position = position
        if position:
            with self.path.open("rb") as file:
                file.seek(max(0, position - 256))
                self.tail = file.read(position - file.tell())

    def first_time(self) -> int:
        """When the run began, in milliseconds."""
        for event, _ in Tail(self.path).events():
            return int(event["time"] * 1000)
        return int(time.time() * 1000)
