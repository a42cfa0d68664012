"""What the Prefect page shows of a pipeline: live progress, the report, the metrics, the links."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State

from slm.figures import duration
from slm.history.lineage import lineage
from slm.records import Benchmarks, Evaluation, Report, Run, Version
from slm.report.write import escape_markdown
from slm.run_folder import RunFolder
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SweepResult, Trial
from slm.sweeps.tracked import outcome, settings
from slm.tracking.entities import public_uri
from slm.tracking.server import connect

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0  # between two updates of the live progress


def clear_earlier(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    """A hook of flows that start: remove what an earlier try of the same flow run has published.

    A run that is resumed or retried publishes all of it again.
    """
    earlier = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(artifact_filter=earlier):
            client.delete_artifact(artifact.id)


class LiveProgress:
    """A progress callback that shows a training as an artifact.

    The artifact is an ornament: where the server fails, the training continues without it.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.artifact: UUID | None = None
        self.first: tuple[float, float] | None = None  # (time, how much was done then)
        self.due = 0.0

    def __call__(self, what: str, done: float, total: float | None) -> None:
        now = time.monotonic()
        if not total or (now < self.due and done < total):
            return
        self.due = now + UPDATE_SECONDS
        began, before = self.first = self.first or (now, done)
        parts = [f"step {done:,.0f} of {total:,.0f}", *what.split("  ")]
        if done > before:
            seconds = (total - done) * (now - began) / (done - before)
            parts.append(f"{duration(seconds)} left" if done < total else "ended")
        try:
            self._publish(100 * done / total, " · ".join(parts))
        except Exception as error:
            logger.debug("no progress artifact: %s", error)

    def _publish(self, percent: float, text: str) -> None:
        if self.artifact is None:
            created = create_progress_artifact(percent, key=self.key, description=text)
            assert isinstance(created, UUID)  # a coroutine only where a loop is running
            self.artifact = created
        else:
            update_progress_artifact(self.artifact, percent, description=text)


class TrialTable:
    """The trials of a sweep as a table, the best first, which grows as they end.

    An ornament as `LiveProgress` is: where the server fails, the sweep continues without it.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.artifact: UUID | None = None

    def update(self) -> None:
        """Show the trials that have ended so far."""
        try:
            if trials := self.folder.trials:
                self._publish(trial_rows(trials), outcome(self.folder))
        except Exception as error:
            logger.warning("the table of trials was not updated: %s", error)

    def _publish(self, rows: list[dict[str, Any]], description: str) -> None:
        if self.artifact is None:
            created = create_table_artifact(rows, key="trials", description=description)
            assert isinstance(created, UUID)  # a coroutine only where a loop is running
            self.artifact = created
            return
        with get_client(sync_client=True) as client:
            update = ArtifactUpdate(data=json.dumps(rows), description=description)
            client.update_artifact(self.artifact, update)


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row per trial, the best first and the failed last; few columns: the page cuts wide tables.

    A trial of a shorter limit is below every one of a longer.
    """
    finished = (trial for trial in trials if trial.val_bpb is not None)
    ranked = sorted(finished, key=lambda trial: (-trial.rung, trial.val_bpb, trial.number))
    failed = [trial for trial in trials if trial.val_bpb is None]
    return [
        {
            "trial": str(trial.number),
            "bits per byte": "failed" if trial.val_bpb is None else f"{trial.val_bpb:.4f}",
            "settings": settings(trial.overrides),
            "training": trial.reason or duration(trial.seconds),
        }
        for trial in (*ranked, *failed)
    ]


def publish_sweep(folder: SweepFolder, result: SweepResult) -> None:
    """Leave the outcome of a sweep, and what to do with it, as an artifact."""
    sentence = outcome(folder)
    lines = [f"# {folder.name}", sentence]
    if winner := result.winner:
        rows = "\n".join(f"| {name} | {value} |" for name, value in winner.overrides.items())
        lines += [f"| setting | value |\n|---|---|\n{rows}"]
        lines += [f"Its run: {seed.run}" for seed in winner.seeds]
    ended = {
        "trials": "all its trials are done",
        "budget": "its budget is spent",
        "space": "no settings are left in its space",
    }
    lines.append(f"It ended because {ended[result.ended]}.")
    lines.append(f"`slm compare {folder.name}` compares its runs.")
    create_markdown_artifact("\n\n".join(lines), key="winner", description=sentence)


def publish_metrics(run: Run, evaluation: Evaluation) -> None:
    """Leave a table of the run's figures as an artifact."""
    figures = {
        "bits per byte, held out": f"{evaluation.val_bpb:.4f}",
        "loss, held out (nats per token)": f"{evaluation.val_loss:.4f}",
        "loss in training (nats per token)": f"{run.train_loss:.4f}",
        "documents scored": f"{evaluation.documents:,}",
        "parameters": f"{run.parameters:,}",
        "steps": f"{run.step:,}",
        "tokens trained on": f"{run.tokens:,}",
        "tokens/s": f"{run.tok_per_sec:,.0f}",
        "seconds of training": f"{run.seconds:,.1f}",
    }
    for name, source in evaluation.details.get("sources", {}).items():
        figures[f"bits per byte, held out, of {name}"] = f"{source['val_bpb']:.4f}"
    create_table_artifact(
        [{"metric": name, "value": value} for name, value in figures.items()],
        key="metrics",
        description=f"{evaluation.val_bpb:.4f} bits per byte: {run.name}, {evaluation.checkpoint}",
    )


def publish_benchmarks(benchmarks: Benchmarks) -> None:
    """Leave a table of the accuracy on each task as an artifact."""
    rows = [
        {
            "task": score.name,
            "items": f"{score.items:,}",
            "accuracy": f"{score.accuracy:.1%} ± {score.stderr:.1%}",
            "chance": f"{score.chance:.1%}",
            "distinguishable from chance": "yes" if score.distinguishable else "no",
        }
        for score in benchmarks.tasks
    ]
    create_table_artifact(
        rows, key="benchmarks", description=f"{benchmarks.run}, {benchmarks.checkpoint}"
    )


def publish_report(report: Report) -> None:
    """Leave the report and the samples in it as artifacts.

    The page is opened by a browser that may be on another machine: the file is named as text, and
    `publish_version` links to MLflow's copy.
    """
    create_markdown_artifact(
        (report.path / report.markdown).read_text("utf-8"),
        key="report",
        description=f"How good {report.run} is, compared with other models. With plots, on the "
        f"machine that made it: {report.path / report.html}",
    )
    samples = json.loads((report.path / "samples.json").read_bytes())
    create_markdown_artifact(
        _samples(samples), key="samples", description=f"{len(samples)} samples"
    )


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Every sample as Markdown, in the report's order; as quotes, since code does not wrap."""
    parts = ["# What the model writes"]
    for sample in samples:
        paragraphs = (sample["prompt"] + sample["completion"]).split("\n")
        quoted = "\n>\n> ".join(escape_markdown(text) for text in paragraphs if text.strip())
        parts.append(
            f"Temperature {sample['temperature']:g}, top-k {sample['top_k']}:\n\n> {quoted}"
        )
    return "\n\n".join(parts)


def publish_version(run: Run, version: Version) -> None:
    """Leave the lineage of a version, and links to it, its run and its report in MLflow."""
    name = f"{version.model} version {version.version}"
    links = []
    for link in lineage(RunFolder.of(run), check=False).links:
        digest = f" `{link.digest[:12]}`" if link.digest else ""
        parents = f", made from {', '.join(link.made_from)}" if link.made_from else ""
        links.append(f"- **{link.name}**: {escape_markdown(link.value)}{digest}{parents}")
    listed = "\n".join(links)  # no table: the page cuts wide ones off
    create_markdown_artifact(
        f"# What {name} was made of\n\n{listed}\n\n`slm lineage {run.name}` checks every link.",
        key="lineage",
        description=f"What {name} was made of, with the hash of each link",
    )
    if not version.tracking_uri.startswith("http"):
        return
    server = public_uri(version.tracking_uri.rstrip("/"))
    experiment = connect(version.tracking_uri).get_run(version.run_id).info.experiment_id
    page = f"experiments/{experiment}/runs/{version.run_id}"
    for key, title, place in (
        ("mlflow-version", name, f"models/{version.model}/versions/{version.version}"),
        ("mlflow-run", run.name, page),
        ("report-html", "the report with its plots", f"{page}/artifacts/report/index.html"),
    ):
        text = f"{title} in MLflow"
        create_link_artifact(f"{server}/#/{place}", text, key=key, description=text)
