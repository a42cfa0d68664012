"""What the Prefect page shows of a pipeline: live progress, the report, the metrics, the links."""

import logging
import time
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from slm.records import Evaluation, Progress, Report, Run, Shards, Version

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0  # between two updates of the live progress


class LiveProgress:
    """A progress callback that hands on what it is told and shows it as a Prefect artifact too.

    The artifact is an ornament: where the server fails, the training goes on without it.
    """

    def __init__(self, progress: Progress, key: str) -> None:
        self.progress = progress
        self.key = key
        self.artifact: UUID | None = None
        self.first: tuple[float, float] | None = None  # (time, how much was done then)
        self.due = 0.0

    def __call__(self, what: str, done: float, total: float | None) -> None:
        self.progress(what, done, total)
        now = time.monotonic()
        if not total or (now < self.due and done < total):
            return
        self.due = now + UPDATE_SECONDS
        began, before = self.first = self.first or (now, done)
        rate = (done - before) / (now - began) if done > before else None
        left = f"  {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        try:
            self._publish(100 * done / total, f"{done:,.0f} of {total:,.0f}  {what}{left}")
        except Exception as error:
            logger.debug("no progress artifact: %s", error)

    def _publish(self, percent: float, text: str) -> None:
        if self.artifact is None:
            created = create_progress_artifact(percent, key=self.key, description=text)
            assert isinstance(created, UUID)  # a coroutine only where a loop is running
            self.artifact = created
        else:
            update_progress_artifact(self.artifact, percent, description=text)


def publish_results(
    shards: Shards, run: Run, evaluation: Evaluation, report: Report, version: Version
) -> None:
    """Leaves the report, the table of metrics and the links as artifacts of the flow run."""
    create_markdown_artifact((report.path / report.markdown).read_text("utf-8"), key="report")
    create_table_artifact(
        [{"metric": name, "value": value} for name, value in _metrics(shards, run, evaluation)],
        key="metrics",
        description=f"{run.name}, registered as {version.model} version {version.version}",
    )
    create_link_artifact((report.path / report.html).as_uri(), "the report", key="report-html")
    if version.tracking_uri.startswith("http"):
        page = f"{version.tracking_uri}/#/models/{version.model}/versions/{version.version}"
        create_link_artifact(page, "the version in MLflow", key="model-version")


def _metrics(shards: Shards, run: Run, evaluation: Evaluation) -> list[tuple[str, str]]:
    train = shards.splits["train"]
    return [
        ("val_bpb (bits a byte)", f"{evaluation.val_bpb:.4f}"),
        ("val_loss (nats a token)", f"{evaluation.val_loss:.4f}"),
        ("train_loss (nats a token)", f"{run.train_loss:.4f}"),
        ("parameters", f"{run.parameters:,}"),
        ("steps", f"{run.step:,}"),
        ("tokens trained on", f"{run.tokens:,}"),
        ("tokens a second", f"{run.tok_per_sec:,.0f}"),
        ("training seconds", f"{run.seconds:,.1f}"),
        ("documents, train split", f"{train.documents:,}"),
        ("documents scored", f"{evaluation.documents:,}"),
    ]
