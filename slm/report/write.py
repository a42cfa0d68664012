"""The report of a run: one HTML file that needs nothing else, the same as Markdown, a model card.

All text that comes from outside (prompts, samples, names, settings) reaches the page through
Jinja's escaping, and the page's policy allows no scripts and no addresses. The same inputs give
the same bytes: there is no clock in it.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.evaluation import grammar
from slm.evaluation.memorisation import Copy
from slm.evaluation.scoring import token_losses
from slm.history.lineage import Lineage, lineage
from slm.model.export.hugging_face import usage
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.progress import Progress, automatic, silent
from slm.records import Benchmarks, Evaluation, Report, Run, Shards, Source, check_input
from slm.report import benchmarks as report_benchmarks
from slm.report import cards, evidence, plots, vocabulary
from slm.report.identity import report_folder, report_key
from slm.report.judge import ask_judge
from slm.report.lineage_picture import lineage_svg
from slm.report.other_runs import find_other_runs, other_run_findings
from slm.report.prompts import report_prompts
from slm.report.samples import ReportSample, compare_with_held_out, write_samples
from slm.report.summary import summarise, training_findings
from slm.report.templates import environment, stylesheet
from slm.run_folder import RunFolder
from slm.storage import hashing_once, read_record, reading, run_stage
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

SIGNS = {"good": "✓", "note": "·", "warn": "△", "bad": "✕"}
SURPRISE_EDGES = (0.5, 1.5, 3.0, 6.0)  # nats, between the shades of a token
MAX_SURPRISE_TOKENS = 200  # of a text that is shown with its shades


@hashing_once()
def write_report(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
    benchmarks: Sequence[Benchmarks] = (),
    *,
    champion: Callable[[], RunFolder | None] = lambda: None,
    progress: Progress = automatic,
) -> Report:
    """Sample from the checkpoint that was evaluated, assess the samples, write the report.

    It goes to `<run>/report/`; one by other settings than the run's own, or on an evaluation by
    other settings, to `<run>/report-<key>/`.

    Args:
        benchmarks: scores of the checkpoint on the tasks of benchmarks, to show.
        champion: finds the run of the present champion, to compare with. A report that is complete
            stays as it is when the champion changes.
    """
    check_input(run, Run)
    check_input(evaluation, Evaluation)
    key = report_key(config, run, evaluation, benchmarks)
    if grammar.is_left_out(config.report.language):
        left_out = (grammar.LEFT_OUT,)
        whole, key = key, report_key(config, run, evaluation, benchmarks, left_out=left_out)
        with suppress(CorruptionError):  # one that was made where nothing is left out is better
            folder = report_folder(config, run, evaluation, whole, benchmarks)
            report = read_record(folder, Report)
            if report and report.key == whole:
                return report.model_copy(update={"reused": True})

    def build(staging: Path) -> Report:
        report = Report(key=key, run=run.name)
        facts, samples = gather(config, run, evaluation, shards, benchmarks, champion(), progress)
        (staging / report.html).write_bytes(render("page.html.j2", facts))
        (staging / report.markdown).write_bytes(render("page.md.j2", facts))
        (staging / report.card).write_bytes(render("card.md.j2", facts))
        rows = [asdict(sample) for sample in samples]
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        (staging / "samples.json").write_bytes(text.encode("utf-8", "replace"))
        return report

    folder = report_folder(config, run, evaluation, key, benchmarks)
    with reading(*([shards.path] if shards else [])):
        return run_stage(folder, Report, key, build, keys.made("report", config))


# ---- facts ------------------------------------------------------------------------------------


def gather(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
    benchmarks: Sequence[Benchmarks] = (),
    champion: RunFolder | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Any], list[ReportSample]]:
    """Everything that the templates show, and the samples themselves."""
    home = RunFolder.of(run)
    checkpoint = home.checkpoint(evaluation.checkpoint)
    assert checkpoint is not None, f"{run.path} lacks {evaluation.checkpoint}, which was evaluated"
    source = home.root.source(shards.source_key) if shards else None
    chain = lineage(home, evaluation_key=evaluation.key, check=False)
    prompts = report_prompts(config, shards)
    texts = (config.data, *config.data.sources.values())
    if any(text.source == "files" for text in texts):
        config, source, chain = _without_folders(config, source, chain)
    if config.train.init_from:
        config, chain = _without_folder_of_start(config, chain)
    # On the CPU wherever it was trained, so that the samples do not depend on the machine's GPU.
    model, tokenizer = load_model(checkpoint.path)
    samples = write_samples(model, tokenizer, prompts, config.report, progress)
    is_own = shards is not None and home.root.vocabulary_of(shards) is not None
    curves = plots.read_curves(home)
    quality = compare_with_held_out(samples, config.report, shards, tokenizer, progress)
    others = find_other_runs(run, champion, config.folder_name, samples)
    tasks = report_benchmarks.tasks(benchmarks)
    findings = [
        *training_findings(
            curves.evaluations,
            checkpoint.step,
            curves.train_loss(checkpoint.step) or checkpoint.train_loss,
            evaluation.val_loss,
            evidence.comparable_bpb(evaluation),
            evidence.references_by_name(evaluation),
        ),
        *report_benchmarks.findings(tasks),
        *other_run_findings(others),
    ]
    references = evidence.references(checkpoint, evaluation)
    shown = [
        _shown(sample, copy, quality.copy_line, tokenizer)
        for sample, copy in zip(samples, quality.copies, strict=True)
    ]
    facts = {
        "title": f"{run.name}, step {checkpoint.step:,}",
        "summary": summarise(quality.checks, findings, evaluation.val_bpb),
        "figures": cards.key_figures(run, checkpoint, evaluation),
        "example": shown[len(shown) // 2] if shown else None,
        "sample_count": len(shown),
        "has_copies": any(part["copied"] for sample in shown for part in sample["parts"]),
        "settings": config.report,
        "grid": [
            (prompt, sorted(shown[i :: len(prompts)], key=lambda s: s["top_k"]))
            for i, prompt in enumerate(prompts)
        ],
        "quality": quality,
        "surprise": _surprises(model, tokenizer, shards, samples),
        "training_plots": plots.training_plots(curves),
        "evaluation": cards.evaluation_card(evaluation),
        "references": references,
        "reference_plot": plots.reference_plot(references),
        "benchmarks": tasks,
        "extremes": evidence.extremes(evaluation, shards, tokenizer),
        "duplicates": evidence.duplicates(evaluation),
        "cleaning": evidence.cleaning(source, shards),
        "other_runs": others,
        "judge": ask_judge(samples, config.report, progress),
        "usage": usage(next(iter(prompts), "")),
        "front_matter": cards.front_matter(config, run, evaluation, source, benchmarks),
        "evaluation_plots": plots.evaluation_plots(evaluation),
        "data": [
            *cards.data_card(config, shards, source),
            *(vocabulary.facts(shards, tokenizer) if shards and is_own else ()),
        ],
        "data_plots": plots.data_plots(shards),
        "model": cards.model_card(config, run, checkpoint, model.vocab_size),
        "commands": cards.commands(config, run, prompts),
        "promise": cards.promise(run),
        "lineage": chain,
        "config": cards.settings(config),
    }
    return facts, samples


def _without_folders(
    config: PipelineConfig, source: Source | None, chain: Lineage
) -> tuple[PipelineConfig, Source | None, Lineage]:
    """The same without the folders that the data were in: a model card is public."""

    def name(path: str) -> str:
        return Path(path).name or path

    sources = {
        key: text.model_copy(update={"path": name(text.path)} if text.source == "files" else {})
        for key, text in config.data.sources.items()
    }
    update = {"path": name(config.data.path), "sources": sources}
    data = config.data.model_copy(update=update)
    links = tuple(
        link.model_copy(update={"value": name(link.value)}) if link.name == "dataset" else link
        for link in chain.links
    )
    return (
        config.model_copy(update={"data": data}),
        source and source.model_copy(update={"dataset": name(source.dataset)}),
        chain.model_copy(update={"links": links}),
    )


def _without_folder_of_start(
    config: PipelineConfig, chain: Lineage
) -> tuple[PipelineConfig, Lineage]:
    """The same without the folders that the model was in which the training started from."""
    named = cards.without_folders(config.train.init_from or "")
    train = config.train.model_copy(update={"init_from": named})
    links = tuple(
        link.model_copy(update={"value": cards.without_folders(link.value)})
        if link.name == "parent"
        else link
        for link in chain.links
    )
    return (
        config.model_copy(update={"train": train}),
        chain.model_copy(update={"links": links}),
    )


def _shown(
    sample: ReportSample, copy: Copy, copy_line: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """A sample for the templates: its completion cut around what is copied.

    With the prompt "Once" and the tokens "Once| upon| a| time| ago", of which `copy` starts at 1
    and has 3, the parts are " upon a time" (copied) and " ago".
    """
    begin = end = 0
    if copy.length > copy_line:
        ids = tokenizer.encode(sample.text)
        before = len(tokenizer.decode(ids[: copy.start])) - len(sample.prompt)
        copied = len(tokenizer.decode(ids[copy.start : copy.start + copy.length]))
        begin, end = max(0, before), max(0, before + copied)
    whole = sample.completion
    parts = ((whole[:begin], False), (whole[begin:end], True), (whole[end:], False))
    return {
        **asdict(sample),
        "parts": [{"text": text, "copied": copied} for text, copied in parts if text],
    }


# ---- surprise ---------------------------------------------------------------------------------


def _surprises(
    model: GPT, tokenizer: Tokenizer, shards: Shards | None, samples: Sequence[ReportSample]
) -> list[dict[str, Any]]:
    """A held-out document and a sample, as pieces of text with a shade by their nats."""
    texts: list[tuple[str, Ids]] = []
    if shards and (held_out := next(documents(shards, "val"), None)) is not None:
        texts.append(("a held-out document", held_out.astype(np.int64)))
    if samples:
        chosen = samples[len(samples) // 2]
        name = f"a sample, temperature {chosen.temperature}"
        texts.append((name, np.array(tokenizer.encode(chosen.text))))
    shown = [ids[:MAX_SURPRISE_TOKENS] for _, ids in texts]
    losses = token_losses(model, shown, tokenizer.eot)
    return [
        {
            "name": name,
            "pieces": _pieces(part, nats.tolist(), tokenizer),
            "cut": len(part) < len(ids),
        }
        for (name, ids), part, nats in zip(texts, shown, losses, strict=True)
    ]


def _pieces(ids: Ids, nats: Sequence[float], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens as whole characters; tokens that share a character are one piece."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces, pending = [], 0.0
    for token, loss in zip(ids.tolist(), nats, strict=False):
        pending += float(loss)
        if text := characters.decode(tokenizer.decode_bytes([token])):
            shade = sum(pending > edge for edge in SURPRISE_EDGES)
            word = text.lstrip()
            pieces.append({"space": text[: len(text) - len(word)], "word": word, "shade": shade})
            pending = 0.0
    return pieces


# ---- templates --------------------------------------------------------------------------------


def render(template: str, facts: Mapping[str, Any]) -> bytes:
    """A template of this folder, rendered; HTML is escaped as it is filled in."""
    from markupsafe import Markup

    templates = environment()
    percent = report_benchmarks.percent
    templates.filters |= {"md": escape_markdown, "fenced": fenced, "percent": percent}
    css = Markup(stylesheet())
    svg = {
        name: [Markup(plot) for plot in facts[name]]  # of our own making, texts in it escaped
        for name in ("training_plots", "reference_plot", "evaluation_plots", "data_plots")
    }
    svg["benchmark_plots"] = [Markup(task.plot) for task in facts["benchmarks"]]
    extra = {"css": css, "signs": SIGNS, "lineage_picture": Markup(lineage_svg(facts["lineage"]))}
    text = templates.get_template(template).render({**facts, **svg, **extra})
    return text.encode("utf-8", "replace")


def escape_markdown(text: object) -> str:
    """Text as one line of Markdown in which nothing is markup, HTML and links included."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_\[\]<>#|~&:@$])", r"\\\1", line)
    return re.sub(r"(?i)(www)(?=\.)", r"\1\\", line) or " "  # GitHub makes links of bare names


def fenced(text: str) -> str:
    """Text as a code block, with a longer fence than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
