"""The held-out curve of a run, read from its journal in a millisecond or two."""

import re
from dataclasses import dataclass

from slm.run_folder import JOURNAL, RunFolder, parse_entry

# The beginnings of lines, and of a step's line what a curve needs, as the trainer writes them: to
# parse the JSON of every line takes ten times longer.
_EVALUATION = b'{"event": "evaluate", '
_STEP = b'{"event": "step", '
_SPEED = re.compile(rb'"tok_per_sec": ([0-9.e+-]+|null), "tokens": (\d+)[,}]')


@dataclass(frozen=True)
class HeldOutCurve:
    """Bits per byte on the fixed slice of val, as training scored it: an entry per evaluation."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]  # of the training up to there, evaluations left out
    val_bpb: tuple[float, ...]
    tokens: int  # up to the journal's end, 0 where no step gives them
    total_seconds: float  # likewise
    parameters: int | None


def held_out_curve(run: RunFolder) -> HeldOutCurve:
    """The curve so far; what is torn, no entry or not finite is left out.

    Seconds are summed over the steps' throughput, as in the report: neither evaluations nor the
    hours after an interruption count.
    """
    path = run.path / JOURNAL
    data = path.read_bytes() if path.is_file() else b""
    data = data[: data.rfind(b"\n") + 1]  # the rest is being written
    points: list[tuple[int, float, float]] = []  # step, seconds, bits per byte
    seconds, tokens = 0.0, 0
    # Cut before the evaluations: [steps, evaluation and steps, …, evaluation and steps].
    for number, part in enumerate((b"\n" + data).split(b"\n" + _EVALUATION)):
        evaluation, _, steps = part.partition(b"\n") if number else (b"", b"", part)
        entry = parse_entry(_EVALUATION + evaluation + b"\n") if number else None
        if entry and entry.get("val_bpb") is not None:
            points.append((int(entry["step"]), seconds, float(entry["val_bpb"])))
        for speed, after in _speeds(steps):
            seconds += (after - tokens) / speed if speed else 0.0
            tokens = after
    first = parse_entry(data[: data.find(b"\n") + 1])
    return HeldOutCurve(
        steps=tuple(step for step, _, _ in points),
        seconds=tuple(second for _, second, _ in points),
        val_bpb=tuple(bpb for _, _, bpb in points),
        tokens=tokens,
        total_seconds=seconds,
        parameters=first.get("parameters") if first else None,
    )


def _speeds(lines: bytes) -> list[tuple[float, int]]:
    """Tokens/s and tokens so far of each step in some lines; 0 tokens/s where it is not known."""
    pairs = _SPEED.findall(lines)
    if len(pairs) == lines.count(_STEP):
        return [(0.0 if speed == b"null" else float(speed), int(after)) for speed, after in pairs]
    entries = filter(None, map(parse_entry, lines.splitlines(keepends=True)))
    return [  # of other lines than this trainer's
        (entry.get("tok_per_sec") or 0.0, entry["tokens"])
        for entry in entries
        if entry["event"] == "step" and entry.get("tokens")
    ]
