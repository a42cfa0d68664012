"""Whether a model is any good, in words: rules over figures, each next to that of human text.

A rule compares the samples with held-out documents of the same length, so it holds for stories as
for any other text. What is far off is `bad`, what is noticeable is `warn`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from slm.evaluation.baselines import FIVE_GRAM, XZ, Baseline
from slm.evaluation.memorisation import copy_threshold, memorised_share
from slm.evaluation.text_quality import Quality

Level = Literal["good", "note", "warn", "bad"]  # a note is neither for nor against

BEGINNINGS: dict[Level, str] = {  # of the sentence at the head of a report
    "bad": "Not a sound model",
    "warn": "A model with reservations",
    "good": "A sound model",
}


@dataclass(frozen=True)
class Check:
    """One figure of the samples, that of held-out text, and the fault if the two are far apart."""

    name: str
    samples: str
    held_out: str
    meaning: str
    fault: str  # "it loops"
    level: Level


@dataclass(frozen=True)
class Searched:
    """How much of the training documents was searched, from the first one on."""

    characters: int  # whose words count as known
    tokens: int  # in which copied passages were searched


@dataclass(frozen=True)
class Finding:
    """One sentence of the summary, and the fault in a few words."""

    level: Level
    text: str
    fault: str = ""


@dataclass(frozen=True)
class Summary:
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
    """Compare figures of samples with those of held-out text; one that either lacks is left out.

    Args:
        ended: share of texts that end within the tokens of a sample: samples', human.
        copies: tokens of the longest passage of each text that is in the training documents:
            samples', human.
        grammar: share of sentences with a grammar mistake: samples', human; None: not English.
        searched: how much of the training documents was read for this.
    """
    s, h = samples, human
    copied, copied_by_humans = (memorised_share(lengths, copies[1]) for lengths in copies)
    ours, humans = (f"{median(lengths):.0f}" if lengths else "–" for lengths in copies)
    language = [
        _share("grammar mistakes", *grammar, "sentences in which a grammar checker (Harper) finds "
               "a mistake", "its grammar is faulty", _more(*grammar, 0.02, 0.1))
    ] if grammar else []  # fmt: skip
    names = [
        _share("names that return", s.names, h.names, "names that occur again once they are "
               "introduced", "it forgets its characters", _less(s.names, h.names, 0.6, 0))
    ] if s.names is not None and h.names is not None else []  # fmt: skip
    return [
        _share("loops", s.loops, h.loops, "texts in which a phrase is repeated three times or more "
               "in a row", "it loops", _more(s.loops, h.loops, 0.1, 0.25)),
        _share("repetition", s.repeated, h.repeated, "groups of four words that occurred earlier "
               "in the text", "it repeats itself", _more(s.repeated, h.repeated, 0.08, 0.2)),
        _share("variety", s.distinct, h.distinct, "distinct word pairs among all pairs",
               "its words vary little", _less(s.distinct, h.distinct, 0.75, 0.5)),
        _share("unknown words", s.unknown, h.unknown, "words that are not in the first "
               f"{searched.characters:,} characters of the training documents",
               "it makes up words", _more(s.unknown, h.unknown, 0.02, 0.08)),
        *language,
        *names,
        _share("similarity", s.likeness, h.likeness, "groups of three words shared with the most "
               "similar sample", "its samples are alike", _more(s.likeness, h.likeness, 0.1, 0.3)),
        _share("endings", *ended, "texts that end within the length of a sample",
               "its texts do not end", _more(ended[1], ended[0], 0.35, 0.7)),
        Check("longest copied passage", ours, humans, "tokens that are word for word in the "
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
    """The level of a figure that should not exceed the human one by these amounts."""
    return "bad" if ours - human > bad else "warn" if ours - human > warn else "good"


def _less(ours: float, human: float, warn: float, bad: float) -> Level:
    """The level of a figure that should not fall below these multiples of the human one."""
    return "bad" if ours < bad * human else "warn" if ours < warn * human else "good"


# ---- training ---------------------------------------------------------------------------------


def training_findings(
    evaluations: Sequence[Mapping[str, float]],
    step: int,
    train_loss: float,
    val_loss: float,
    val_bpb: float,
    references: Mapping[str, Baseline],
) -> list[Finding]:
    """What the loss curves show, and the comparison with other predictors of the same bytes.

    Args:
        evaluations: `step` and `val_loss` of every evaluation during training, in order.
        step: of the checkpoint that is assessed.
        train_loss, val_loss: nats per token, in training up to that step and on all held-out
            documents.
        val_bpb: bits per byte of the model, on the documents that the references were scored on.
        references: other predictors of these documents, by their names.
    """
    findings = []
    if XZ in references:
        xz = references[XZ].bpb
        ratio = xz / val_bpb
        if ratio < 1:
            text = f"It predicts held-out text worse than xz compresses it: {xz:.2f} bits per byte."
            findings.append(Finding("bad", text, "it predicts worse than a file compressor"))
        else:
            text = f"It needs {val_bpb:.2f} bits per byte of held-out text; xz needs {xz:.2f}"
            findings.append(Finding("good", f"{text}, {ratio:.1f} times as many."))
    if FIVE_GRAM in references:
        findings.append(_counting_finding(val_bpb, references[FIVE_GRAM]))
    findings += _curve_findings([row for row in evaluations if row["step"] <= step])
    findings += _later_findings(evaluations, step)
    gap = val_loss - train_loss
    if gap > 0.25 * train_loss:
        text = f"Held-out loss is {gap:.2f} nats above the loss in training ({train_loss:.2f})"
        level: Level = "bad" if gap > train_loss else "warn"
        findings.append(Finding(level, f"{text}: it has memorised its documents.", "it overfits"))
    return findings


def _counting_finding(val_bpb: float, counting: Baseline) -> Finding:
    """A 5-gram model knows phrases and nothing else."""
    text = f"A {counting.name} model of the training text ({counting.knows}) needs"
    if val_bpb <= counting.bpb:
        saved = percent(1 - val_bpb / counting.bpb)
        return Finding(
            "good", f"{text} {counting.bpb:.2f} bits per byte: this one needs {saved} less."
        )
    if val_bpb <= 1.1 * counting.bpb:
        return Finding("note", f"{text} {counting.bpb:.2f} bits per byte: this one is no better.")
    fault = "counting phrases predicts better"
    return Finding("warn", f"{text} only {counting.bpb:.2f} bits per byte.", fault)


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
    """What became of the model after the checkpoint, which is neither for nor against it."""
    until = [row["val_loss"] for row in evaluations if row["step"] <= step]
    last = evaluations[-1] if evaluations else {"step": step}
    if not until or last["step"] <= step or last["val_loss"] <= 1.02 * until[-1]:
        return []
    rise = percent(last["val_loss"] / until[-1] - 1)
    text = f"Training continued too long: held-out loss rose by {rise} from step {step:,} to step"
    return [Finding("note", f"{text} {last['step']:,.0f}. This report is of step {step:,}.")]


# ---- the summary ------------------------------------------------------------------------------


def summarise(checks: Sequence[Check], findings: Sequence[Finding], val_bpb: float) -> Summary:
    """The sentence at the head of the report, and the findings under it, the worst first."""
    wrong = [c for c in checks if c.level != "good"]
    quality = [
        Finding(c.level, f"{c.name.capitalize()}: {c.samples}, held-out text {c.held_out}"
                f" ({c.meaning}).", c.fault)
        for c in wrong
    ]  # fmt: skip
    if checks and not wrong:
        names = [c.name for c in checks if c.fault]
        text = f"Its samples are not far from held-out text in any of {len(names)} figures"
        quality.append(Finding("good", f"{text}: {', '.join(names)}."))
    order = {"bad": 0, "warn": 1, "note": 2, "good": 3}
    ordered = sorted([*findings, *quality], key=lambda f: order[f.level])
    return Summary(_sentence(ordered, val_bpb, bool(checks)), ordered)


def _sentence(findings: Sequence[Finding], val_bpb: float, sampled: bool) -> str:
    figure = f"{val_bpb:.3f} bits per byte"
    faults = list(dict.fromkeys(f.fault for f in findings if f.level == "bad"))
    if faults:
        return f"{BEGINNINGS['bad']}: {_enumerate(faults)}, at {figure}."
    faults = list(dict.fromkeys(f.fault for f in findings if f.level == "warn"))
    if faults:
        return f"{BEGINNINGS['warn']}: {_enumerate(faults)}, at {figure}."
    if sampled:
        return f"{BEGINNINGS['good']}: every check passed, at {figure}."
    return f"{BEGINNINGS['good']}, by its loss, at {figure}."


def _enumerate(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def headline(report: Path) -> str:
    """The sentence at the head of a report, from its folder; empty where there is none.

    It is the first bold line of its Markdown, in which signs are escaped.
    """
    lines = (report / "report.md").read_text("utf-8").splitlines()
    bold = (re.fullmatch(r"\*\*(.+)\*\*", line) for line in lines)
    sentence = next((match[1] for match in bold if match), "")
    return re.sub(r"\\(?=[^\w\s])", "", sentence)


def level_of(sentence: str) -> Level:
    """The level of a report by the sentence at its head; `note` where it is not one of ours."""
    levels = (level for level, words in BEGINNINGS.items() if sentence.startswith(words))
    return next(levels, "note")
