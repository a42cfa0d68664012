"""What a ladder shows, in sentences."""

from collections.abc import Iterator

from slm.figures import count, counted, duration
from slm.size import MAX_PASSES
from slm.sizing.best import Best, Shape
from slm.sizing.law import Interval
from slm.sizing.result import FURTHER, OWN, Answer, Check, LadderResult, Own

MAX_SCATTER = 0.02  # of runs from the law, beyond which it is not theirs
MAX_BEYOND = 10.0  # times the compute of the largest run, beyond which a prediction is a guess


def sentences(result: LadderResult) -> list[str]:
    """The best sizes, then the law and how far it can be trusted."""
    lines = [line for answer in result.answers for line in _answer(answer)]
    return [*lines, *_law(result)]


def _answer(answer: Answer) -> Iterator[str]:
    best, further = answer.best, answer.further
    yield f"{best.budget.text}: the best is {_shape(best.shape)}; {_spent(best)}"
    yield from _doubts(best)
    if answer.own:
        yield f"{best.budget.text}: {_own(answer.own, best)}"
    yield (
        f"{FURTHER} times the compute, {further.budget.text}: {_shape(further.shape)}; "
        f"{_spent(further)}; {best.bpb.value - further.bpb.value:.3f} bits per byte less"
    )
    yield from _doubts(further)


def _shape(shape: Shape) -> str:
    name = "" if shape.size == OWN else f"size={shape.size}, "
    total = count(shape.parameters["total"])
    layers = counted(shape.n_layer, "layer")
    return f"{name}{layers} of width {shape.n_embd}, {total} parameters"


def _spent(best: Best) -> str:
    epochs = f" in {best.epochs:.1f} epochs" if best.epochs > 1.05 else ""
    other = (
        f" and {count(best.flops, 'FLOP')}"
        if best.budget.kind == "seconds"
        else f" and about {duration(best.seconds)}"
        if best.seconds is not None
        else ""
    )
    return f"{count(best.tokens)} tokens{epochs}{other}: {_between(best.bpb)} bits per byte"


def _between(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _doubts(best: Best) -> Iterator[str]:
    good, chosen = best.as_good, best.sizes
    low, high = min(good[0], chosen[0]), max(good[1], chosen[1])
    if high > 1.2 * low:
        yield f"sizes from {count(low)} to {count(high)} parameters are not distinguishable from it"
    if best.at_end:
        yield "it is at the end of the sizes that were considered: a further one may be better"
    if best.epochs > MAX_PASSES:
        yield (
            f"it sees the data {best.epochs:.0f} times: beyond {MAX_PASSES:g} a model overfits, "
            "which no law of this form shows; more text, or a larger model, is a better use of it"
        )
    elif best.bounded:
        yield (
            f"smaller sizes are left out: they would see the data more than {MAX_PASSES:g} times, "
            "and overfit"
        )
    if best.beyond > MAX_BEYOND:
        yield (
            f"that is {best.beyond:.0f} times the compute of the largest run: a guess, not a "
            "prediction"
        )


def _own(own: Own, best: Best) -> str:
    behind = own.behind
    text = f"the recipe's own model, {_shape(own.shape)}, is predicted at {_between(own.bpb)}"
    if own.epochs > MAX_PASSES:
        return f"{text}, but would see the data {own.epochs:.0f} times, and overfit"
    if behind.low <= 0.0005:
        return f"{text}: not distinguishable from the best"
    return f"{text}: {behind.value:.3f} more ({behind.low:.3f} to {behind.high:.3f})"


def _law(result: LadderResult) -> Iterator[str]:
    fit = result.fit
    parts = {name: fit.intervals[name] for name in ("E", "alpha", "beta")}
    shown = ", ".join(f"{n} {i.value:.3f} ({i.low:.3f} to {i.high:.3f})" for n, i in parts.items())
    yield (
        f"the law of {counted(len(result.rungs), 'run')}: {shown}; N is {fit.counted} parameters; "
        f"runs are {100 * fit.scatter:.1f} % from it"
    )
    if fit.scatter > MAX_SCATTER:
        yield (
            f"the law does not describe these runs, which are {100 * fit.scatter:.0f} % from it: "
            "very short trainings follow none; leave out the smallest budget, or add a larger one"
        )
    for name, reason in fit.assumed.items():
        yield f"{name} is {fit.intervals[name].value:.3g}, {reason}"
    if result.check:
        yield _check(result.check)
    if result.failed:
        yield f"{counted(len(result.failed), 'training')} failed: {result.failed[0]}"


def _check(check: Check) -> str:
    return (
        f"without the largest budget the law predicts its {counted(check.runs, 'run')}, of up to "
        f"{check.factor:.1f} times the compute: {check.inside} in the band, the farthest off by "
        f"{100 * check.largest_error:+.1f} %"
    )


def headline(result: LadderResult) -> str:
    """One line for the top of a page."""
    best = result.answers[0].best
    return f"{result.recipe} for {best.budget.text}: {_shape(best.shape)}"
