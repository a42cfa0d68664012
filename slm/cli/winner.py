"""The winner of a sweep, for a person."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from slm.cli import tables
from slm.cli.options import show_line, show_wide

if TYPE_CHECKING:
    from slm.sweeps.effects import Effect, Level
    from slm.sweeps.folder import SweepFolder
    from slm.sweeps.winner import Place, Winner

MAX_TRIALS = 20  # rows of a table


def show_winner(folder: "SweepFolder", winner: "Winner") -> None:
    """Print the trials that were scored, the best first, what each setting does, and the winner."""
    trials = {trial.number: trial for trial in folder.trials}
    for standing in winner.standings:
        seeds = any(place.seeds > 1 for place in standing.places)
        names = ["trial", "val_bpb", "95 %", "behind the best", *(["seeds"] if seeds else [])]
        rows = []
        for place in standing.places[:MAX_TRIALS]:
            values = trials[place.trial].values
            row = [place.trial, place.val_bpb, _interval(place.low, place.high), _behind(place)]
            rows.append([*row, *([place.seeds] if seeds else []), _settings(values)])
        show_wide(tables.listing([*names, "settings"], rows))
        if (left := len(standing.places) - MAX_TRIALS) > 0:
            show_line(f"and {left:,} more")
        print()
    for line in lines(winner):
        show_line(line)


def lines(winner: "Winner") -> Iterator[str]:
    """The effects of the settings, what was left out, and the winner with what would show more."""
    for effect in winner.effects:
        yield f"{'effect':<9} {effect_text(effect)}"
    if winner.failed:
        yield f"{'failed':<9} {', '.join(map(str, winner.failed))}"
    if winner.shorter:
        text = "trials of a shorter limit, which are compared among themselves alone"
        yield f"{'left out':<9} {len(winner.shorter)} {text}"
    yield f"{'best':<9} {winner.sentence}"
    if winner.advice:
        yield f"{'':<9} {winner.advice}"


def effect_text(effect: "Effect") -> str:
    """Such as `model.n_layer, next to 4: 2 +0.0217 (+0.0178 to +0.0255), 6 …`, in bits per byte."""
    if not effect.levels:
        return f"{effect.setting}: not known, {effect.note}"
    levels = ", ".join(map(_level, effect.levels))
    return f"{effect.setting}, compared with {effect.reference}: {levels} bits per byte"


def _level(level: "Level") -> str:
    if level.difference is None:
        return f"{level.value} not separable from other settings"
    interval = _interval(level.low, level.high, signed=True)
    return f"{level.value} {level.difference:+.4f} ({interval or 'of one trial'})"


def _behind(place: "Place") -> str:
    if not place.difference and place.difference_low in (0, None):
        return ""
    interval = _interval(place.difference_low, place.difference_high, signed=True)
    same = " =" if interval and place.close else ""
    return f"{place.difference:+.4f}" + (f" ({interval}){same}" if interval else "")


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None or high is None:
        return ""
    return f"{low:+.4f} to {high:+.4f}" if signed else f"{low:.4f} to {high:.4f}"


def _settings(values: dict[str, Any]) -> str:
    """The settings of a trial by their last names: `learning_rate=0.003 n_layer=4`."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
