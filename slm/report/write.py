"""The report of a run: one HTML file that needs nothing else, the same as Markdown, a model card.

All text that comes from outside (prompts, samples, names, settings) reaches the page through
Jinja's escaping, and the page's policy allows no scripts and no addresses. The same inputs give
the same bytes: there is no clock in it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.evaluation import grammar
from slm.progress import Progress, automatic
from slm.records import Benchmarks, Evaluation, Report, Run, Shards, check_input
from slm.report import benchmarks as report_benchmarks
from slm.report import sources as report_sources
from slm.report.facts import gather
from slm.report.identity import report_folder, report_key
from slm.report.lineage_picture import lineage_svg
from slm.report.templates import environment, stylesheet
from slm.run_folder import RunFolder
from slm.storage import hashing_once, read_record, reading, run_stage

SIGNS = {"good": "✓", "note": "·", "warn": "△", "bad": "✕"}
PLOTS = (
    "overview_plot", "training_plots", "source_plots", "reference_plot", "evaluation_plots",
    "data_plots",
)  # fmt: skip


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


# ---- templates --------------------------------------------------------------------------------


def render(template: str, facts: Mapping[str, Any]) -> bytes:
    """A template of this folder, rendered; HTML is escaped as it is filled in."""
    from markupsafe import Markup

    templates = environment()
    percent = report_benchmarks.percent
    templates.filters |= {"md": escape_markdown, "fenced": fenced, "percent": percent}
    templates.filters["cells"] = report_sources.cells
    css = Markup(stylesheet())
    svg = {
        name: [Markup(plot) for plot in facts[name]]  # of our own making, texts in it escaped
        for name in PLOTS
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
