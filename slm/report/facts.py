"""Everything that the templates of a report show."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.config import PipelineConfig
from slm.evaluation.memorisation import Copy
from slm.history.lineage import Lineage, lineage
from slm.model.export.hugging_face import usage
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.progress import Progress, silent
from slm.records import Benchmarks, Checkpoint, Evaluation, Run, Shards, Source
from slm.report import benchmarks as report_benchmarks
from slm.report import cards, evidence, overview, plots, vocabulary
from slm.report import sources as report_sources
from slm.report.judge import ask_judge
from slm.report.other_runs import find_other_runs, other_run_findings
from slm.report.prompts import report_prompts
from slm.report.samples import ReportSample, compare_with_held_out, write_samples
from slm.report.summary import summarise, training_findings
from slm.report.surprise import surprises
from slm.run_folder import RunFolder
from slm.tokens.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class _Subject:
    """What a report is about, each part read once."""

    config: PipelineConfig  # without folders of this machine
    run: Run
    home: RunFolder
    checkpoint: Checkpoint
    evaluation: Evaluation
    shards: Shards | None
    source: Source | None
    benchmarks: Sequence[Benchmarks]
    chain: Lineage
    curves: plots.Curves
    model: GPT
    tokenizer: Tokenizer

    @property
    def train_loss(self) -> float:
        """The training loss around the step that was evaluated."""
        return self.curves.train_loss(self.checkpoint.step) or self.checkpoint.train_loss


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
    prompts = report_prompts(config, shards)
    subject = _read(config, run, evaluation, shards, benchmarks)
    samples = write_samples(subject.model, subject.tokenizer, prompts, config.report, progress)
    facts = {
        **_text_facts(subject, prompts, samples, champion, progress),
        **_figure_facts(subject),
        **_data_facts(subject),
        "surprise": surprises(subject.model, subject.tokenizer, shards, samples),
        "judge": ask_judge(samples, config.report, progress),
        "usage": usage(next(iter(prompts), "")),
        "commands": cards.commands(subject.config, run, prompts),
        "promise": cards.promise(run),
        "lineage": subject.chain,
        "config": cards.settings(subject.config),
    }
    return facts, samples


def _read(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
    benchmarks: Sequence[Benchmarks],
) -> _Subject:
    home = RunFolder.of(run)
    checkpoint = home.checkpoint(evaluation.checkpoint)
    assert checkpoint is not None, f"{run.path} lacks {evaluation.checkpoint}, which was evaluated"
    source = home.root.source(shards.source_key) if shards else None
    chain = lineage(home, evaluation_key=evaluation.key, check=False)
    texts = (config.data, *config.data.sources.values())
    if any(text.source == "files" for text in texts):
        config, source, chain = _without_folders(config, source, chain)
    if config.train.init_from:
        config, chain = _without_folder_of_start(config, chain)
    # On the CPU wherever it was trained, so that the samples do not depend on the machine's GPU.
    model, tokenizer = load_model(checkpoint.path)
    curves = plots.read_curves(home)
    return _Subject(
        config, run, home, checkpoint, evaluation, shards, source, benchmarks, chain, curves,
        model, tokenizer,
    )  # fmt: skip


def _text_facts(
    subject: _Subject,
    prompts: Sequence[str],
    samples: list[ReportSample],
    champion: RunFolder | None,
    progress: Progress,
) -> dict[str, Any]:
    """The samples, how good they are, next to those of other runs, and the summary of it all."""
    run, checkpoint, evaluation = subject.run, subject.checkpoint, subject.evaluation
    settings = subject.config.report
    quality = compare_with_held_out(samples, settings, subject.shards, subject.tokenizer, progress)
    others = find_other_runs(run, champion, subject.config.folder_name, samples)
    tasks = report_benchmarks.tasks(subject.benchmarks)
    findings = [
        *training_findings(
            subject.curves.evaluations,
            checkpoint.step,
            subject.train_loss,
            evaluation.val_loss,
            evidence.comparable_bpb(evaluation),
            evidence.references_by_name(evaluation),
        ),
        *report_benchmarks.findings(tasks),
        *other_run_findings(others),
    ]
    shown = [
        _shown(sample, copy, quality.copy_line, subject.tokenizer)
        for sample, copy in zip(samples, quality.copies, strict=True)
    ]
    return {
        "title": f"{run.name}, step {checkpoint.step:,}",
        "summary": summarise(quality.checks, findings, evaluation.val_bpb),
        "examples": overview.examples(shown, len(prompts)),
        "sample_count": len(shown),
        "has_copies": any(part["copied"] for sample in shown for part in sample["parts"]),
        "settings": settings,
        "grid": [
            (prompt, sorted(shown[i :: len(prompts)], key=lambda s: s["top_k"]))
            for i, prompt in enumerate(prompts)
        ],
        "quality": quality,
        "benchmarks": tasks,
        "other_runs": others,
    }


def _figure_facts(subject: _Subject) -> dict[str, Any]:
    """The training and the evaluation, in figures and plots."""
    run, checkpoint, evaluation = subject.run, subject.checkpoint, subject.evaluation
    curves, references = subject.curves, evidence.references(checkpoint, evaluation)
    of_sources = report_sources.rows(
        subject.config, subject.home, subject.shards, subject.source, evaluation
    )
    return {
        "figures": cards.key_figures(run, checkpoint, evaluation),
        "head_figures": cards.head_figures(run, checkpoint, evaluation),
        "overview_plot": overview.overview_plot(curves, evaluation, references),
        "training": cards.training_card(run, checkpoint, subject.train_loss),
        "training_plots": plots.training_plots(curves),
        "evaluation": cards.evaluation_card(evaluation),
        "sources": of_sources,
        "source_plots": report_sources.plot(curves, [row.name for row in of_sources]),
        "references": references,
        "reference_plot": plots.reference_plot(references),
        "evaluation_plots": plots.evaluation_plots(evaluation),
        "model": cards.model_card(subject.config, run, checkpoint, subject.model.vocab_size),
    }


def _data_facts(subject: _Subject) -> dict[str, Any]:
    """What was trained on: its documents, what cleaning did, its vocabulary; the model card."""
    config, shards, tokenizer = subject.config, subject.shards, subject.tokenizer
    evaluation, source = subject.evaluation, subject.source
    is_own = shards is not None and subject.home.root.vocabulary_of(shards) is not None
    return {
        "extremes": evidence.extremes(evaluation, shards, tokenizer),
        "duplicates": evidence.duplicates(evaluation),
        "cleaning": evidence.cleaning(source, shards),
        "front_matter": cards.front_matter(
            config, subject.run, evaluation, source, subject.benchmarks
        ),
        "data": [
            *cards.data_card(config, shards, source),
            *(vocabulary.facts(shards, tokenizer) if shards and is_own else ()),
        ],
        "data_plots": plots.data_plots(shards),
    }


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
    parts = {
        key: part.model_copy(update={"dataset": sources[key].path})
        if key in sources and sources[key].source == "files"
        else part
        for key, part in (source.parts if source else {}).items()
    }
    update = {"path": name(config.data.path), "sources": sources}
    data = config.data.model_copy(update=update)
    links = tuple(
        link.model_copy(update={"value": name(link.value)}) if link.name == "dataset" else link
        for link in chain.links
    )
    return (
        config.model_copy(update={"data": data}),
        source and source.model_copy(update={"dataset": name(source.dataset), "parts": parts}),
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
