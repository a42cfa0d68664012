"""The plan of a sweep, for a person."""

from collections.abc import Iterator
from statistics import mode
from typing import TYPE_CHECKING, Any

from slm.cli.options import show_line, show_wide
from slm.figures import count, counted, duration, size
from slm.storage import to_json

if TYPE_CHECKING:
    from slm.planning.sweep import SweepPlan, TrialPlan


def show_sweep_plan(made: "SweepPlan", as_json: bool) -> None:
    """Print the plan of a sweep: its stages, its trials, and the sum; or one line of JSON."""
    if as_json:
        extra = {"counts": made.counts}
        print(to_json({**made.model_dump(mode="json"), **extra}, ensure_ascii=False))
        return
    from slm.cli import tables

    rows: list[tuple[Any, ...]] = [
        (stage.stage, _stage_action(stage.action, stage.assumed), None, _time(stage.seconds))
        for stage in made.shared
    ]
    settings = _short_names(made)
    rows += [_row(trial, settings) for trial in made.trials]
    show_wide(tables.listing(("trial", "action", "settings", "time"), rows))
    print()
    for line in explanation(made):
        show_line(line)


def _stage_action(action: str, assumed: bool) -> str:
    return f"{action} (assumed)" if assumed else action


def _row(trial: "TrialPlan", names: dict[str, str]) -> tuple[Any, ...]:
    if trial.values is None:
        text = "trained again for longer" if trial.rung else "from the results before it"
    else:
        text = " ".join(f"{names[key]}={value}" for key, value in trial.values.items())
    action = trial.action if trial.begins else "after the budget"
    if trial.rung:
        text += f" (rung {trial.rung})"
    return str(trial.number), action, text, _time(trial.seconds)


def _short_names(made: "SweepPlan") -> dict[str, str]:
    """Settings by their last names, or whole where two have the same."""
    keys = sorted({key for trial in made.trials for key in trial.values or {}})
    last = [key.rpartition(".")[2] for key in keys]
    return {k: s if last.count(s) == 1 else k for k, s in zip(keys, last, strict=True)}


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return "unknown"
    return duration(seconds) if seconds else None


def explanation(made: "SweepPlan") -> Iterator[str]:
    """The lines below the table: the sum, what it rests on, and what is not known."""
    begun = made.beginning
    parts = ", ".join(f"{number:,} {action}" for action, number in made.counts.items())
    each = f" of {counted(made.seeds, 'seed')} each" if made.seeds > 1 else ""
    yield f"{'trials':<9} {counted(len(begun), 'trial')}{each}: {parts or 'none'}"
    if made.ends == "budget":
        less = counted(len(made.trials) - len(begun), "trial")
        yield f"{'budget':<9} {made.budget} are spent then: {less} less"
    if made.ends == "space":
        yield f"{'space':<9} it has no other settings"
    later = [trial for trial in begun if trial.values is None]
    if later:
        yield (
            f"{'later':<9} {counted(len(later), 'trial')} whose settings depend on results: "
            "counted at the mean of the others"
        )
    for trial in begun:
        if trial.reason:
            yield f"{trial.action:<9} trial {trial.number}: {trial.reason}"
    sources = [trial.seconds_from for trial in begun if trial.seconds and trial.seconds_from]
    if sources:
        yield f"{'time':<9} of most trials: {mode(sources)}"
    if made.seconds:
        total = duration(made.seconds)
        yield f"{'time':<9} {total} in all, one trial at a time, as far as it is known"
    if made.tokens:
        yield f"{'tokens':<9} {count(made.tokens)} to train on, as far as it is known"
    if made.disk_bytes:
        yield f"{'disk':<9} about {size(made.disk_bytes)}, checkpoints included"
    if made.unknown:
        yield f"{'unknown':<9} the time of {_names(made.unknown)}"
    if not made.verified:
        yield f"{'assumed':<9} results by their records and sizes; --verify hashes them"


def _names(names: tuple[str, ...], limit: int = 6) -> str:
    trials = [name.removeprefix("trial ") for name in names if name.startswith("trial ")]
    others = [name for name in names if not name.startswith("trial ")]
    if not trials:
        return ", ".join(others)
    more = f" and {len(trials) - limit} more" if len(trials) > limit else ""
    listed = f"{'trial' if len(trials) == 1 else 'trials'} {', '.join(trials[:limit])}{more}"
    return ", ".join([*others, listed])
