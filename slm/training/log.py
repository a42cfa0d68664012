"""The log of the training processes of a run, `train.log`: how they ended."""

import re
from pathlib import Path

ENDED = re.compile(r"slm ended with (\d+): (.*)")  # the last line of a training process: peers.py
ERROR = re.compile(r"\b\w*(Error|Exception)\b: ")  # the end of a traceback


def logged(log: Path, begin: int) -> list[str]:
    """The lines of a log from a position on."""
    with log.open("rb") as file:
        file.seek(begin)
        return [line.strip() for line in file.read().decode(errors="replace").splitlines()]


def final_message(log: Path, begin: int) -> str:
    """The line that explains the child's end: its own, else the first error, else the last."""
    lines = logged(log, begin)
    own = [line for line in lines if ENDED.fullmatch(line)]
    errors = [line for line in lines if ERROR.search(line)]
    return next(
        (line for line in [*own[:1], *errors[:1], *reversed(lines)] if line),
        f"no message in {log}",
    )
