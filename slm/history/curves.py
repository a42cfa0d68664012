"""The held-out curve of a run, read from its journal in about a millisecond."""

import re
from dataclasses import dataclass

from slm.run_folder import JOURNAL, RunFolder, parse_entry

_EVALUATION = re.compile(rb'^(\{"event": "evaluate", [^\n]*\n)', re.MULTILINE)
_BEGINNING = re.compile(rb'^\{"event": "(?:start|resume)", [^\n]*\n', re.MULTILINE)
_STEP = rb'{"event": "step", '
# Of a step's line, as the trainer writes it: parsing the JSON of every line takes ten times longer.
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
    # Split at the evaluations: [steps, evaluation, steps, evaluation, …, steps].
    for number, part in enumerate(_EVALUATION.split(data)):
        if number % 2:
            entry = parse_entry(part)
            if entry and entry.get("val_bpb") is not None:
                points.append((int(entry["step"]), seconds, float(entry["val_bpb"])))
            continue
        for speed, after in _speeds(part):
            seconds += (after - tokens) / speed if speed else 0.0
            tokens = after
    first = _BEGINNING.search(data)
    begun = parse_entry(first[0]) if first else None
    return HeldOutCurve(
        steps=tuple(step for step, _, _ in points),
        seconds=tuple(second for _, second, _ in points),
        val_bpb=tuple(bpb for _, _, bpb in points),
        tokens=tokens,
        total_seconds=seconds,
        parameters=begun.get("parameters") if begun else None,
    )


def _speeds(lines: bytes) -> list[tuple[float, int]]:
    """Tokens/s and tokens so far of each step in some lines; 0 tokens/s where it is not known."""
    pairs = _SPEED.findall(lines)
    if len(pairs) == lines.count(_STEP):
        return [(0.0 if speed == b"null" else float(speed), int(after)) for speed, after in pairs]
    entries = filter(None, map(parse_entry, lines.splitlines(keepends=True)))
    return [  # of other lines than this trainer's, such as an older one's
        (entry.get("tok_per_sec") or 0.0, entry["tokens"])
        for entry in entries
        if entry["event"] == "step" and entry.get("tokens")
    ]
