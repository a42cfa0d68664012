"""Whether a model is any good, in words: rules over figures, each beside that of human text.

A rule compares the samples with held-out documents of the same length, so it holds for stories as
for any other text. What is far off is `bad`, what is noticeable is `warn`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from slm.evaluation.baselines import FIVE_GRAM, XZ, Baseline
from slm.evaluation.memorisation import copy_threshold, memorised_share
from slm.evaluation.text_quality import Quality

Level = Literal["good", "note", "warn", "bad"]  # a note speaks neither for nor against


@dataclass(frozen=True)
class Check:
    """One figure of the samples beside that of held-out text, and what is wrong if it is."""

    name: str
    samples: str
    held_out: str
    meaning: str
    fault: str  # "it loops"
    level: Level


@dataclass(frozen=True)
class Searched:
    """How much of the training documents the texts were compared with, from the first one on."""

    characters: int  # whose words count as known
    tokens: int  # in which copied passages were looked for


@dataclass(frozen=True)
class Finding:
    """One sentence of the summary, and the fault in a few words."""

    level: Level
    text: str
    fault: str = ""


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what it rests on."""

    sentence: str
    findings: list[Finding]  # the worst first

    @property
    def level(self) -> Level:
        worst = self.findings[0].level if self.findings else "good"
        return "good" if worst == "note" else worst


# ---- samples ----------------------------------------------------------------------------------


def quality_checks(
    samples: Quality,
    human: Quality,
    ended: tuple[float, float],
    copies: tuple[Sequence[int], Sequence[int]],
    grammar: tuple[float, float] | None,
    searched: Searched,
) -> list[Check]:
    """The samples' figures against those of held-out text; a figure that either lacks is left out.

    Args:
        ended: share of texts that end within the tokens of a sample: samples', human.
        copies: tokens of the longest passage found in the training documents, a number a text:
            samples', human.
        grammar: share of sentences with a fault of grammar: samples', human; None: not English.
        searched: how much of the training documents was read for this.
    """
    s, h = samples, human
    copied, copied_by_humans = (memorised_share(found, copies[1]) for found in copies)
    ours, humans = (f"{median(found):.0f}" if found else "–" for found in copies)
    language = [
        _share("faults of grammar", *grammar, "sentences in which a grammar checker (Harper) finds "
               "a fault", "its grammar is faulty", _more(*grammar, 0.02, 0.1))
    ] if grammar else []  # fmt: skip
    names = [
        _share("names that return", s.names, h.names, "names that come again once they are "
               "introduced", "it forgets its characters", _less(s.names, h.names, 0.6, 0))
    ] if s.names is not None and h.names is not None else []  # fmt: skip
    return [
        _share("loops", s.loops, h.loops, "texts in which a phrase follows upon itself three times "
               "or more", "it loops", _more(s.loops, h.loops, 0.1, 0.25)),
        _share("said before", s.repeated, h.repeated, "groups of four words that the text has had "
               "before", "it repeats itself", _more(s.repeated, h.repeated, 0.08, 0.2)),
        _share("variety", s.distinct, h.distinct, "different pairs of words among all pairs",
               "its words vary little", _less(s.distinct, h.distinct, 0.75, 0.5)),
        _share("unknown words", s.unknown, h.unknown, "words that are not in the first "
               f"{searched.characters:,} characters of the training documents",
               "it makes up words", _more(s.unknown, h.unknown, 0.02, 0.08)),
        *language,
        *names,
        _share("likeness", s.likeness, h.likeness, "groups of three words shared with the sample "
               "most like it", "its samples are alike", _more(s.likeness, h.likeness, 0.1, 0.3)),
        _share("come to an end", *ended, "texts that end within the length of a sample",
               "its texts do not end", _more(ended[1], ended[0], 0.35, 0.7)),
        Check("longest copied passage", ours, humans, "tokens that stand word for word in the "
              f"first {searched.tokens:,} training tokens, median", "", "good"),
        _share("copied", copied, copied_by_humans, "texts with a copied passage longer than "
               f"{copy_threshold(copies[1])} tokens: about one held-out text in twenty has one",
               "it copies its training documents", _more(copied, copied_by_humans, 0.15, 0.4)),
    ]  # fmt: skip


def _share(
    name: str, samples: float, human: float, meaning: str, fault: str, level: Level
) -> Check:
    return Check(name, percent(samples), percent(human), meaning, fault, level)


def percent(share: float) -> str:
    """A share between 0 and 1, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def _more(ours: float, human: float, warn: float, bad: float) -> Level:
    """The level of a figure that should not be above the human one by so much."""
    return "bad" if ours - human > bad else "warn" if ours - human > warn else "good"


def _less(ours: float, human: float, warn: float, bad: float) -> Level:
    """The level of a figure that should not be below so much of the human one."""
    return "bad" if ours < bad * human else "warn" if ours < warn * human else "good"


# ---- training ---------------------------------------------------------------------------------


def training_findings(
    evaluations: Sequence[Mapping[str, float]],
    step: int,
    train_loss: float,
    val_loss: float,
    val_bpb: float,
    others: Mapping[str, Baseline],
) -> list[Finding]:
    """What the loss curves and a comparison with other ways to predict the same bytes tell.

    Args:
        evaluations: `step` and `val_loss` of every evaluation during training, in order.
        step: at which the checkpoint was saved that is judged.
        train_loss, val_loss: nats a token, in training up to that step and on all held-out
            documents.
        val_bpb: bits a byte of the model, on the documents that the others were given.
        others: what else was given these documents, by its name.
    """
    findings = []
    if XZ in others:
        ratio = others[XZ].bpb / val_bpb
        if ratio < 1:
            text = f"It predicts held-out text worse than xz packs it: {others[XZ].bpb:.2f} bits."
            findings.append(Finding("bad", text, "it predicts worse than a file compressor"))
        else:
            text = f"It needs {val_bpb:.2f} bits a byte of held-out text; xz needs"
            findings.append(
                Finding("good", f"{text} {others[XZ].bpb:.2f}, {ratio:.1f} times as many.")
            )
    if FIVE_GRAM in others:
        findings.append(_counting_finding(val_bpb, others[FIVE_GRAM]))
    findings += _curve_findings([row for row in evaluations if row["step"] <= step])
    findings += _later_findings(evaluations, step)
    gap = val_loss - train_loss
    if gap > 0.25 * train_loss:
        text = f"Held-out loss is {gap:.2f} nats above the loss in training ({train_loss:.2f})"
        level: Level = "bad" if gap > train_loss else "warn"
        findings.append(Finding(level, f"{text}: it knows its documents by heart.", "it overfits"))
    return findings


def _counting_finding(val_bpb: float, counting: Baseline) -> Finding:
    """A 5-gram model knows phrases and nothing else."""
    text = f"A {counting.name} model of the training text ({counting.knows}) needs"
    if val_bpb <= counting.bpb:
        saved = percent(1 - val_bpb / counting.bpb)
        return Finding("good", f"{text} {counting.bpb:.2f} bits: this one needs {saved} less.")
    if val_bpb <= 1.1 * counting.bpb:
        return Finding("note", f"{text} {counting.bpb:.2f} bits: this one is no better.")
    fault = "counting phrases predicts better"
    return Finding("warn", f"{text} only {counting.bpb:.2f} bits.", fault)


def _curve_findings(evaluations: Sequence[Mapping[str, float]]) -> list[Finding]:
    losses = [row["val_loss"] for row in evaluations]
    if len(losses) < 3:
        return []
    lowest = losses.index(min(losses))
    rise = losses[-1] / losses[lowest] - 1
    if rise > 0.02:
        step = f"{evaluations[lowest]['step']:,.0f}"
        text = f"Held-out loss rose by {percent(rise)} after step {step}: it overfits."
        return [Finding("bad" if rise > 0.1 else "warn", text, "it overfits")]
    now = evaluations[-1]
    before = [row for row in evaluations if row["step"] <= 0.8 * now["step"]][-1:]
    if before and now["val_loss"] < 0.98 * before[0]["val_loss"]:
        fall = percent(1 - now["val_loss"] / before[0]["val_loss"])
        steps = f"from step {before[0]['step']:,.0f} to step {now['step']:,.0f}"
        return [Finding("note", f"Held-out loss still fell by {fall} {steps}.")]
    return []


def _later_findings(evaluations: Sequence[Mapping[str, float]], step: int) -> list[Finding]:
    """What became of the model after the checkpoint: that speaks neither for nor against it."""
    then = [row["val_loss"] for row in evaluations if row["step"] <= step]
    last = evaluations[-1] if evaluations else {"step": step}
    if not then or last["step"] <= step or last["val_loss"] <= 1.02 * then[-1]:
        return []
    rise = percent(last["val_loss"] / then[-1] - 1)
    text = f"Training went on too long: held-out loss rose by {rise} from step {step:,} to step"
    return [Finding("note", f"{text} {last['step']:,.0f}. Step {step:,} is what is shown here.")]


# ---- all together -----------------------------------------------------------------------------


def sum_up(checks: Sequence[Check], findings: Sequence[Finding], val_bpb: float) -> Verdict:
    """The sentence at the head of the report, and the findings under it, the worst first."""
    wrong = [c for c in checks if c.level != "good"]
    told = [
        Finding(c.level, f"{c.name.capitalize()}: {c.samples}, held-out text {c.held_out}"
                f" ({c.meaning}).", c.fault)
        for c in wrong
    ]  # fmt: skip
    if checks and not wrong:
        judged = [c.name for c in checks if c.fault]
        text = f"Its samples are not far from held-out text in any of {len(judged)} figures"
        told.append(Finding("good", f"{text}: {', '.join(judged)}."))
    order = {"bad": 0, "warn": 1, "note": 2, "good": 3}
    found = sorted([*findings, *told], key=lambda f: order[f.level])
    return Verdict(_sentence(found, val_bpb, bool(checks)), found)


def _sentence(findings: Sequence[Finding], val_bpb: float, sampled: bool) -> str:
    figure = f"{val_bpb:.3f} bits a byte"
    faults = list(dict.fromkeys(f.fault for f in findings if f.level == "bad"))
    if faults:
        return f"Not a sound model: {_enumerated(faults)}, at {figure}."
    faults = list(dict.fromkeys(f.fault for f in findings if f.level == "warn"))
    if faults:
        return f"A model with reservations: {_enumerated(faults)}, at {figure}."
    if sampled:
        return f"A sound model: every check passed, at {figure}."
    return f"A sound model, by its loss, at {figure}."


def _enumerated(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
