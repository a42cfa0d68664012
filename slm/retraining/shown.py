"""A decision as it is shown: its figures, in Markdown, and as tags."""

from slm.retraining.decide import Action, Decision

WORDS: dict[Action, str] = {
    "nothing": "Nothing to do",
    "skip": "Nothing to do yet",
    "continue": "Continue from the champion",
    "retrain": "Train from scratch",
}


def figures(decision: Decision) -> list[tuple[str, str]]:
    """What was measured, each with its threshold."""
    limits, changes, measured = decision.limits, decision.evidence.changes, decision.evidence.drift
    rows = [("champion", decision.evidence.champion or "none")]
    if decision.evidence.trial:
        rows.append(("the champion is", decision.evidence.trial))
    if decision.evidence.chosen:
        chosen = ", ".join(decision.evidence.chosen)
        rows.append(("its settings that the recipe has not", chosen))
    if changes:
        rows += [
            ("documents of the champion", f"{changes.before:,}"),
            ("documents now", f"{changes.now:,}"),
            ("new", f"{changes.new:,}"),
            ("changed", f"{changes.changed:,}"),
            ("gone", f"{changes.gone:,}"),
            (
                f"new or changed (from {limits.min_new_fraction:.2%} on: train)",
                f"{changes.new_fraction:.2%}",
            ),
            (
                f"gone (above {limits.max_gone_fraction:.1%}: train from scratch)",
                f"{changes.gone_fraction:.2%}",
            ),
        ]
    if measured:
        rows += [
            ("new documents measured", f"{measured.documents:,}"),
            ("divergence from the champion's train, bits", f"{measured.divergence:.4f}"),
            ("the same of held-out documents, bits", f"{measured.usual:.4f}"),
            (
                f"drift (from {limits.drift_threshold:g} on: train from scratch)",
                f"{measured.excess:.4f}",
            ),
            ("the champion on new documents, bits per byte", f"{measured.new_bpb:.4f}"),
            ("the champion on held-out documents, bits per byte", f"{measured.held_out_bpb:.4f}"),
            (f"rise (from {limits.bpb_rise:g} on: train from scratch)", f"{measured.rise:+.4f}"),
        ]
    for name, each in decision.evidence.sources.items():
        rows.append((f"source {name}: new or changed", f"{each.changes.new_fraction:.2%}"))
        rows.append((f"source {name}: gone", f"{each.changes.gone_fraction:.2%}"))
        if each.drift:
            rows.append((f"source {name}: drift", f"{each.drift.excess:.4f}"))
            rows.append((f"source {name}: rise", f"{each.drift.rise:+.4f}"))
    return rows


def describe(decision: Decision) -> str:
    """The decision in Markdown."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures(decision))
    return (
        f"# {WORDS[decision.action]}\n\n{decision.reason}.\n\n"
        f"Recipe `{decision.recipe}`, dataset `{decision.dataset}`, revision "
        f"`{decision.revision}`.\n\n| figure | value |\n|---|---|\n{rows}\n"
    )


def tags(decision: Decision) -> dict[str, str]:
    """The decision in a few short values, for whoever lists runs and versions."""
    changes, measured = decision.evidence.changes, decision.evidence.drift
    values = {"retrain": decision.action, "retrain_reason": decision.reason}
    if changes:
        values["new_documents"] = f"{changes.new_fraction:.2%}"
    if measured:
        values |= {"drift_bits": f"{measured.excess:.4f}", "bpb_rise": f"{measured.rise:+.4f}"}
    for name, each in decision.evidence.sources.items():
        if each.drift:
            values[f"drift_bits.{name}"] = f"{each.drift.excess:.4f}"
            values[f"bpb_rise.{name}"] = f"{each.drift.rise:+.4f}"
    return values
