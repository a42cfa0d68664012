"""Mirrors a run folder into an MLflow tracking server.

The run folder is the truth and MLflow shows it. `sync` asks the server what it has and sends only
what it lacks, so it can be killed at any call, repeated, or run long after the training. `mirror`
does the same in the background of a training and can neither slow nor fail it.

mlflow is imported where it is used, since that takes more than a second.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slm import storage
from slm.errors import UserError
from slm.records import Benchmarks, Evaluation, Record, Run, source_bpb, task_scores
from slm.run_folder import CONFIG, JOURNAL, RunFolder
from slm.tracking import entities, system
from slm.tracking.server import (
    connect,
    experiment_id,
    explained,
    recorded_uri,
    sentence,
    store_uri,
    tracking_uri,
)
from slm.training.tail import Tail

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities import Run as MlflowRun

logger = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between two passes of the background mirror
MAX_INTERVAL = 60.0  # seconds, after passes that failed
LAST_PASS_WAIT = 15.0  # seconds that the end of a training waits for the last pass
INTERRUPTED_WAIT = 1.0  # the same where it was interrupted: the machine may be taken away
BATCH = 1000  # metrics in one request: MLflow's limit
PARAMS = 100  # params in one request, likewise


@explained()
def sync(run: RunFolder, *, tracking_uri: str | None = None) -> str:
    """Bring the MLflow run of a run folder up to date and return its id.

    Args:
        run: it may be in training, finished, or left by a killed process,
            which closes the MLflow run as KILLED.
        tracking_uri: the server; None: the one of the run's own config.

    Raises UserError where the folder holds no run, SlmError where the server fails.
    """
    return RunMirror(run, tracking_uri).send()


@contextmanager
def mirror(run: RunFolder, uri: str | None = None) -> Iterator[None]:
    """Keep the MLflow run of a run folder up to date while the block trains.

    A daemon thread makes a pass every few seconds. What it cannot send, because the server is down
    or slow or a signal leaves no time, a later `sync` sends. Another thread watches the machine.
    """
    stop, interrupted = threading.Event(), threading.Event()
    thread = threading.Thread(target=_follow, args=(run, uri, stop, interrupted), daemon=True)
    watcher = threading.Thread(target=system.watch, args=(run.path, stop), daemon=True)
    thread.start()
    watcher.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal
            interrupted.set()
        raise
    finally:
        stop.set()
        for background in (watcher, thread):
            background.join(INTERRUPTED_WAIT if interrupted.is_set() else LAST_PASS_WAIT)
        if thread.is_alive() and not interrupted.is_set():
            logger.warning("MLflow is slow; `slm sync %s` sends the rest", run.name)


def _follow(
    run: RunFolder, uri: str | None, stop: threading.Event, interrupted: threading.Event
) -> None:
    run_mirror: RunMirror | None = None
    interval, failures = INTERVAL, 0
    stopping = False
    while not stopping:
        stopping = stop.wait(interval)
        if stopping and failures:
            return  # a training does not wait for a server that was down a moment ago
        if interrupted.is_set() and run_mirror is None:
            return  # the first pass takes seconds
        if not _has_points(run):
            continue  # a failed start is no run
        try:
            run_mirror = run_mirror or RunMirror(run, uri)
            run_mirror.send(in_training=not stopping)
            interval, failures = INTERVAL, 0
        except Exception as error:
            failures += 1
            interval = min(2 * interval, MAX_INTERVAL)
            if failures == 1:
                logger.warning(
                    "MLflow: %s; training continues, `slm sync %s` catches up",
                    sentence(error),
                    run.name,
                )


def _has_points(run: RunFolder) -> bool:
    """Whether the run has trained a step, so that there is something to show of it."""
    events = (event for event, _ in Tail(run.path / JOURNAL).events())
    return run.exists and any(event.get("event") in ("step", "evaluate") for event in events)


class RunMirror:
    """One run folder, its MLflow run, and how far its events have been sent."""

    def __init__(self, run: RunFolder, uri: str | None) -> None:
        if not run.exists:
            raise UserError(f"{run.path} is not a run folder: it has no {CONFIG}")
        self.folder = RunFolder(run.path.resolve())
        self.path = self.folder.path
        self.root = self.folder.root.path
        self.settings = self.folder.settings
        self.config = self.settings.config
        self.uri = uri or tracking_uri(self.config, self.root)
        self.client = connect(self.uri)
        self.journal = Tail(self.path / JOURNAL)
        self.machine = Tail(self.path / system.SYSTEM)
        self.run_id = ""
        self.marks: dict[str, int] = {}  # metric → the last step that the server has

    def send(self, *, in_training: bool = False) -> str:
        """One pass: sends everything that the folder holds and the server lacks.

        `in_training`: it is known to be in training, so its lock is left alone.
        """
        with storage.lock(self.path / "mlflow.lock"):
            run = self._run()
            self.run_id = str(run.info.run_id)
            self._send_settings(run)
            self._send_points(self.journal)
            self._send_points(self.machine)
            self._send_results()
            self._update_status(run, in_training)
        return self.run_id

    def _run(self) -> "MlflowRun":
        """The MLflow run that `mlflow.json` names, or that carries our tags, or a new one."""
        from mlflow.exceptions import MlflowException

        note = self.path / "mlflow.json"
        noted = json.loads(note.read_bytes()) if note.exists() else {}
        if "run_id" in noted:  # of whichever server, and wherever the data folder was then
            try:
                run = self.client.get_run(noted["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        experiment = experiment_id(self.client, self.config, self.root)
        tags = {
            "slm.run": self.path.name,
            "slm.folder": storage.sha256_bytes(os.fsencode(self.path))[:32],
        }
        # In its data folder's own store a run is known by its name, wherever both were moved.
        known = ["slm.run"] if self.uri == store_uri(self.root) else list(tags)
        same_tags = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in known)
        runs = self.client.search_runs([experiment], filter_string=same_tags, max_results=1)
        run = (
            runs[0]
            if runs
            else self.client.create_run(
                experiment,
                start_time=self.journal.first_time(),
                tags={
                    **tags,
                    "slm.run_key": self.settings.key,
                    "slm.recipe": self.config.recipe,
                    "mlflow.source.name": "slm",
                },
                run_name=self.path.name,
            )
        )
        address = recorded_uri(self.uri, self.root)
        storage.write_json(note, {"tracking_uri": address, "run_id": run.info.run_id})
        self.marks = {}
        self.journal, self.machine = Tail(self.journal.path), Tail(self.machine.path)  # from 0 on
        return run

    def _send_settings(self, run: "MlflowRun") -> None:
        from mlflow.entities import Param

        # Planned when the training starts, and decided during it where the clock ends it.
        params = entities.params(self.config, self.folder.plan, self.folder.decision)
        missing = [
            Param(key, entities.public_uri(value)[:6000])
            for key, value in params.items()
            if key not in run.data.params
        ]
        for start in range(0, len(missing), PARAMS):
            self.client.log_batch(run.info.run_id, params=missing[start : start + PARAMS])
        if not run.inputs.dataset_inputs:
            datasets = entities.dataset_inputs(self.folder)
            self.client.log_inputs(run.info.run_id, datasets=datasets)

    # ---- metrics ----

    def _send_points(self, tail: Tail) -> None:
        """Send the points after the last step that the server has of each metric.

        A step that the journal repeats, after a training was killed and resumed, is one point.
        """
        batch: list[Metric] = []
        end = tail.position
        try:
            for event, end in tail.events():  # noqa: B007 - the last end is used below
                for metric in entities.metrics(event):
                    if metric.step > self._mark(metric.key):
                        self.marks[metric.key] = metric.step
                        batch.append(metric)
                if len(batch) > BATCH - 100:
                    self.client.log_batch(self.run_id, metrics=batch)
                    batch = []
            if batch:
                self.client.log_batch(self.run_id, metrics=batch)
        except BaseException:
            self.marks = {}  # what arrived is unknown: ask again next time
            raise
        tail.advance(end)

    def _mark(self, key: str) -> int:
        if key not in self.marks:
            history = self.client.get_metric_history(self.run_id, key)
            self.marks[key] = max((metric.step for metric in history), default=-1)
        return self.marks[key]

    # ---- results, when the training is over ----

    def _send_results(self) -> None:
        run = self.folder.record
        if run is None:
            return
        info = self.client.get_run(self.run_id)
        evaluation = self.folder.evaluation
        report = self.folder.report
        sent = info.data.tags
        if sent.get("slm.weights_sha256") != run.weights_sha256:
            self._send_checkpoints(info, run)
            self.client.log_artifact(self.run_id, str(self.path / CONFIG))
            self._tag(entities.run_tags(run))
        if evaluation and sent.get("slm.evaluation") != storage.content_hash(evaluation):
            self._send_evaluation(evaluation)
            note = {"mlflow.note.content": entities.description(run, evaluation)}
            self._tag({**note, "slm.evaluation": storage.content_hash(evaluation)})
        benchmarks = self.folder.all_benchmarks
        digest = storage.sha256_json([storage.content_hash(each) for each in benchmarks])
        if benchmarks and sent.get("slm.benchmarks") != digest:
            self._send_benchmarks(benchmarks)
            self._tag({"slm.benchmarks": digest})
        if report and sent.get("slm.report") != storage.content_hash(report):
            self.client.log_artifacts(self.run_id, str(report.path), "report")
            self._tag({"slm.report": storage.content_hash(report)})

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        safe = [RunTag(key, entities.public_uri(value)[:5000]) for key, value in tags.items()]
        self.client.log_batch(self.run_id, tags=safe)

    def _send_checkpoints(self, info: "MlflowRun", run: Run) -> None:
        """The best and the last checkpoint as LoggedModels: READY is set last.

        Their bytes stay in the run folder; what is registered is uploaded by `register`.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        logged = self.client.search_logged_models(
            [info.info.experiment_id], filter_string=f"source_run_id = '{self.run_id}'"
        )
        known = {model.name: model for model in logged}
        outputs = {model.model_id for model in info.outputs.model_outputs} if info.outputs else ()
        sources = shards.parts if (shards := self.folder.shards) else ()
        for name in sorted({run.best, run.last}):
            checkpoint = self.folder.checkpoint(name)
            if checkpoint is None:
                continue
            model = known.get(name) or self.client.create_logged_model(
                info.info.experiment_id,
                name=name,
                source_run_id=self.run_id,
                tags=entities.checkpoint_tags(checkpoint, run),
            )
            if model.status == "READY":
                continue
            measured = [
                Metric(m.key, m.value, m.timestamp, m.step, model.model_id, *self._val_dataset())
                for key in ("val_loss", "val_bpb", *map(source_bpb, sources))
                for m in self.client.get_metric_history(self.run_id, key)
                if m.step == checkpoint.step
            ]
            self.client.log_batch(self.run_id, metrics=measured)
            if model.model_id not in outputs:
                output = LoggedModelOutput(model.model_id, checkpoint.step)
                self.client.log_outputs(self.run_id, [output])
            self.client.finalize_logged_model(model.model_id, "READY")

    def _val_dataset(self) -> tuple[str | None, str | None]:
        """Name and digest of the val split, where it is an input of the MLflow run."""
        for dataset_input in self.client.get_run(self.run_id).inputs.dataset_inputs:
            if any(tag.value == "validation" for tag in dataset_input.tags):
                return dataset_input.dataset.name, dataset_input.dataset.digest
        return None, None

    def _send_evaluation(self, evaluation: Evaluation) -> None:
        from mlflow.entities import Metric

        # MLflow shows the point with the highest step, and of several the latest. With step 0 for
        # all that is the newest evaluation, of whichever checkpoint. A repeat is one row.
        moment = round(_finished(evaluation) * 1000)
        measured = entities.evaluation_metrics(evaluation)
        points = [Metric(key, value, moment, 0) for key, value in measured.items()]
        self.client.log_batch(self.run_id, metrics=points)
        self.client.log_artifact(
            self.run_id, str(evaluation.path / "evaluation.json"), "evaluation"
        )

    def _send_benchmarks(self, benchmarks: Sequence[Benchmarks]) -> None:
        """Every task's figures; of one that several results have, those of the first."""
        from mlflow.entities import Metric

        moment = round(max(_finished(each) for each in benchmarks) * 1000)
        points = [
            Metric(key, value, moment, 0)
            for score in task_scores(benchmarks)
            for key, value in entities.benchmark_metrics(score).items()
        ]
        self.client.log_batch(self.run_id, metrics=points)
        for each in benchmarks:
            self.client.log_artifact(self.run_id, str(each.path / storage.RECORD), each.path.name)

    def _update_status(self, run: "MlflowRun", in_training: bool) -> None:
        """FINISHED, RUNNING or KILLED, as the folder is."""
        if self.folder.is_finished:
            status = "FINISHED"
        else:
            status = "RUNNING" if in_training or self.folder.is_training else "KILLED"
        if status == run.info.status:
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status, self.journal.last_time)


def _finished(result: Record) -> float:
    """When a result was finished, in unix seconds."""
    return (result.path / storage.RECORD).stat().st_mtime
