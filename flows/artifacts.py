"""What the Prefect page shows of a pipeline: live progress, the report, the metrics, the links."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from slm.records import Evaluation, Progress, Report, Run, Shards, Version

UPDATE_SECONDS = 5.0  # between two updates of the live progress


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], Progress]]:
    """Gives a wrapper that lets a progress callback feed a progress artifact as well."""
    artifact: UUID | None = None
    last = 0.0

    def publish(what: str, done: float, total: float | None, *, at_once: bool = False) -> None:
        nonlocal artifact, last
        if not total or (time.monotonic() - last < UPDATE_SECONDS and not at_once):
            return
        last = time.monotonic()
        percent = min(100.0, 100 * done / total)
        if artifact is None:
            created = create_progress_artifact(percent, key="training", description=what)
            assert isinstance(created, UUID)  # a coroutine only where a loop is running
            artifact = created
        else:
            update_progress_artifact(artifact, percent, description=what)

    def wrap(progress: Progress) -> Progress:
        def both(what: str, done: float, total: float | None) -> None:
            progress(what, done, total)
            publish(what, done, total)

        return both

    yield wrap
    if artifact is not None:
        publish("trained", 1, 1, at_once=True)


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
