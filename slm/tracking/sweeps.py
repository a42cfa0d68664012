"""Mirrors a sweep into MLflow: a parent run, and the runs of its trials nested below it.

The sweep's folder is the truth and MLflow shows it, as with runs (`slm.tracking.mirror`): `sync`
can be killed at any call and repeated, and the parent is known by the sweep's key, so that there is
one of it. A run has one parent in MLflow. One that another sweep has already stays there, and this
sweep has a copy of it: a small run with its settings and its result, which names it. A trial that
has no run, since it was refused, is such a small run too.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, SlmError
from slm.run_folder import DataRoot
from slm.tracking import entities, pages
from slm.tracking.mirror import (
    INTERRUPTED_WAIT,
    INTERVAL,
    LAST_PASS_WAIT,
    MAX_INTERVAL,
    PARAMS,
)
from slm.tracking.mirror import sync as sync_run
from slm.tracking.server import (
    connect,
    experiment_id,
    explained,
    recorded_uri,
    sentence,
    store_uri,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

logger = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
KEY_TAG, SWEEP_TAG, TRIAL_TAG = "slm.sweep_key", "slm.sweep", "slm.trial"
COPY_TAG = "slm.copy_of"  # of a run that another sweep has: its id in MLflow
NOTE = "mlflow.json"
PAGE_SIZE = 1000


@dataclass(frozen=True)
class TrackedRun:
    """A trial by one seed."""

    name: str | None  # its run's folder; None: it was refused before there was one
    seed: int
    val_bpb: float | None  # over all held-out documents; None: it failed
    reason: str | None = None  # why it failed


@dataclass(frozen=True)
class TrackedTrial:
    """A trial that has ended."""

    number: int
    overrides: Mapping[str, Any]
    finished: float  # unix seconds
    seconds: float
    val_bpb: float | None  # mean over its seeds; None: it failed
    runs: Sequence[TrackedRun]


@dataclass(frozen=True)
class TrackedSweep:
    """What MLflow shows of a sweep."""

    path: Path  # its folder
    key: str
    config: PipelineConfig  # of the recipe, with what is fixed
    definition: Mapping[str, str]  # what the key is made from; it never changes
    extent: Mapping[str, str]  # trials, budget: a sweep may be continued with others
    space: Sequence[str]  # the dotted keys that vary
    trials: Sequence[TrackedTrial]
    started: float  # unix seconds
    state: str  # RUNNING, FINISHED or KILLED
    best: int | None = None  # number of the best trial
    outcome: str = ""  # one sentence about the winner
    links: Mapping[str, str] = field(default_factory=dict)  # text → address

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> DataRoot:
        return DataRoot(self.path.parents[1])


@explained()
def sync(sweep: TrackedSweep, *, uri: str | None = None) -> str:
    """Bring a sweep's parent run, and the runs below it, up to date; returns the parent's id.

    `uri`: the server; None: that of the sweep's config.

    Raises SlmError where the server fails.
    """
    return SweepMirror(uri).send(sweep)


def page(folder: Path, config: PipelineConfig) -> str | None:
    """The address of a sweep's trials in parallel coordinates.

    None for a store, which has no page, and where the server has no such sweep or is down.

    Args:
        folder: the sweep's.
        config: as of `TrackedSweep`.
    """
    note, uri = folder / NOTE, tracking_uri(config, folder.parents[1])
    if not (uri.startswith("http") and note.is_file()):
        return None
    with suppress(SlmError), explained():
        run = connect(uri).get_run(json.loads(note.read_bytes())["run_id"])
        key = run.data.tags[KEY_TAG]
        server = entities.public_uri(uri)
        return pages.sweep(server, run.info.experiment_id, key)
    return None


@contextmanager
def mirror(
    read: Callable[[], TrackedSweep | None], uri: str | None = None
) -> Iterator[threading.Event]:
    """Keep a sweep's parent run up to date in the background while the block runs.

    Args:
        read: returns the sweep as it is now; None before it has begun.

    Yields an event to set whenever a trial has ended. What cannot be sent is sent by the next pass,
    or by a later `sync`: the sweep never waits for MLflow, and never fails by it.
    """
    changed, stop = threading.Event(), threading.Event()
    changed.set()  # the parent is there before its first trial
    thread = threading.Thread(target=_follow, args=(read, uri, changed, stop), daemon=True)
    thread.start()
    wait = INTERRUPTED_WAIT
    try:
        yield changed
        wait = LAST_PASS_WAIT
    finally:
        stop.set()
        changed.set()
        thread.join(wait)


def _follow(
    read: Callable[[], TrackedSweep | None],
    uri: str | None,
    changed: threading.Event,
    stop: threading.Event,
) -> None:
    sweep_mirror, failures = SweepMirror(uri), 0
    begun = stopping = False
    while not stopping:
        # After a pass that failed another one, also where no trial ends.
        changed.wait(MAX_INTERVAL if failures else INTERVAL if not begun else None)
        changed.clear()
        stopping = stop.is_set()
        try:
            sweep = read()
            if sweep is None:
                continue
            begun = True
            with explained():
                sweep_mirror.send(sweep)
            failures = 0
        except Exception as error:
            failures += 1
            if failures == 1:
                logger.warning(
                    "MLflow: %s; the sweep continues, and what is missing follows", sentence(error)
                )


class SweepMirror:
    """A sweep's parent run, and which of its trials are below it."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri

    def send(self, sweep: TrackedSweep) -> str:
        """One pass: sends what the sweep's folder holds and the server lacks."""
        with storage.lock(storage.make_folder(sweep.path) / "mlflow.lock"):
            self.sweep = sweep
            self.address = self.uri or tracking_uri(sweep.config, sweep.root.path)
            self.client = connect(self.address)
            parent = self._parent()
            self.parent = str(parent.info.run_id)
            self._describe(parent)
            self._nest()
            self._measure()
            self._update_status(parent)
        return self.parent

    # ---- the parent ----

    def _parent(self) -> "MlflowRun":
        """The parent that the note names, or that has the sweep's key, or a new one."""
        from mlflow.exceptions import MlflowException

        sweep, note = self.sweep, self.sweep.path / NOTE
        noted = json.loads(note.read_bytes()) if note.exists() else {}
        if "run_id" in noted:
            try:
                run = self.client.get_run(noted["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        self.experiment = experiment_id(self.client, sweep.config, sweep.root.path)
        tags = {KEY_TAG: sweep.key, "slm.folder": storage.sha256_json(str(sweep.path.resolve()))}
        # In its data folder's own store the key is enough, wherever both were moved.
        known = [KEY_TAG] if self.address == store_uri(sweep.root.path) else list(tags)
        same = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in known)
        same += " and tags.`slm.kind` = 'sweep'"
        runs = self.client.search_runs([self.experiment], filter_string=same, max_results=1)
        run = (
            runs[0]
            if runs
            else self.client.create_run(
                self.experiment,
                start_time=_milliseconds(sweep.started),
                tags={
                    **tags,
                    "slm.kind": "sweep",
                    SWEEP_TAG: sweep.name,
                    "slm.recipe": sweep.config.recipe,
                    "mlflow.source.name": "slm",
                },
                run_name=sweep.name,
            )
        )
        address = recorded_uri(self.address, sweep.root.path)
        storage.write_json(note, {"tracking_uri": address, "run_id": run.info.run_id})
        return run

    def _describe(self, parent: "MlflowRun") -> None:
        """Its definition as params, its extent as tags, its result as the text of its page."""
        from mlflow.entities import Param

        sweep = self.sweep
        self.experiment = str(parent.info.experiment_id)
        missing = [
            Param(key, entities.public_uri(value)[:6000])
            for key, value in sweep.definition.items()
            if key not in parent.data.params
        ]
        for start in range(0, len(missing), PARAMS):
            self.client.log_batch(self.parent, params=missing[start : start + PARAMS])
        tags = {f"slm.{name}": value for name, value in sweep.extent.items()}
        if sweep.best is not None:
            tags["slm.best_trial"] = str(sweep.best)
        self._add_view()
        tags["mlflow.note.content"] = self._note()
        self._tag(parent, tags)

    def _note(self) -> str:
        sweep = self.sweep
        failed = sum(trial.val_bpb is None for trial in sweep.trials)
        counts = f"{len(sweep.trials):,} trials have ended" + (
            f", {failed:,} of them failed." if failed else "."
        )
        best = f"{sweep.outcome[:1].upper()}{sweep.outcome[1:].rstrip('.')}."
        lines = [best] if sweep.outcome else []
        links = dict(sweep.links)
        if self.address.startswith("http"):
            server = entities.public_uri(self.address)
            page = pages.sweep(server, self.experiment, sweep.key)
            links = {"The trials in parallel coordinates": page, **links}
        lines.append(" · ".join(f"[{text}]({address})" for text, address in links.items()))
        lines.append(f"{counts} `slm compare {sweep.name}` compares them.")
        return "\n\n".join(filter(None, lines))

    def _add_view(self) -> None:
        """A saved view of the experiment in which the settings that vary are coordinates."""
        sweep = self.sweep
        tag, value = pages.sweep_view(sweep.name, sweep.key, self.parent, sweep.space)
        experiment = self.client.get_experiment(self.experiment)
        if experiment.tags.get(tag) != value:
            self.client.set_experiment_tag(self.experiment, tag, value)

    def _tag(self, run: "MlflowRun", tags: Mapping[str, str]) -> None:
        """Set those tags of a run that it has not, or has otherwise."""
        from mlflow.entities import RunTag

        new = {key: entities.public_uri(value)[:5000] for key, value in tags.items()}
        changed = [RunTag(k, v) for k, v in new.items() if run.data.tags.get(k) != v]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)

    def _measure(self) -> None:
        """The result of each trial, the best so far, and in the end the winner's."""
        from mlflow.entities import Metric

        points: list[Metric] = []
        best = float("inf")
        for trial in sorted(self.sweep.trials, key=lambda trial: trial.number):
            moment = _milliseconds(trial.finished)
            points.append(Metric("trial_seconds", trial.seconds, moment, trial.number))
            if trial.val_bpb is None:
                continue
            best = min(best, trial.val_bpb)
            points.append(Metric("trial_val_bpb", trial.val_bpb, moment, trial.number))
            points.append(Metric("best_val_bpb", best, moment, trial.number))
            if trial.number == self.sweep.best and self.sweep.state == "FINISHED":
                points.append(Metric("full_val_bpb", trial.val_bpb, moment, 0))
        for start in range(0, len(points), PAGE_SIZE):  # what the server has is one row
            self.client.log_batch(self.parent, metrics=points[start : start + PAGE_SIZE])

    def _update_status(self, parent: "MlflowRun") -> None:
        state = self.sweep.state
        if state == parent.info.status:
            return
        if state == "RUNNING":
            self.client.update_run(self.parent, status=state)
        else:
            ends = [trial.finished for trial in self.sweep.trials]
            moment = _milliseconds(max(ends, default=self.sweep.started))
            self.client.set_terminated(self.parent, state, moment)

    # ---- its trials ----

    def _nest(self) -> None:
        """Put the run of each trial that has ended below the parent."""
        nested = {_place(run) for run in self._below()}
        for trial in self.sweep.trials:
            for run in trial.runs:
                if (str(trial.number), str(run.seed)) not in nested:
                    self._add(trial, run)

    def _below(self) -> "Iterator[MlflowRun]":
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                filter_string=f"tags.`{PARENT}` = '{self.parent}'",
                max_results=PAGE_SIZE,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _add(self, trial: TrackedTrial, run: TrackedRun) -> None:
        folder = self.sweep.root.named_run(run.name) if run.name else None
        own = None
        if folder and folder.exists:
            with suppress(CorruptionError):  # one that is damaged stops no others
                own = self.client.get_run(sync_run(folder, tracking_uri=self.address))
        if own is None or self._has_other_place(own, trial, run):
            self._add_small(trial, run, own)
            return
        # The parent is the mark of a run that is nested: it is set last.
        self._tag(own, self._tags(trial, run))
        self._tag(own, {PARENT: self.parent})

    def _tags(self, trial: TrackedTrial, run: TrackedRun) -> dict[str, str]:
        tags = {SWEEP_TAG: self.sweep.name, TRIAL_TAG: str(trial.number), "slm.seed": str(run.seed)}
        return {**tags, "slm.failed": run.reason} if run.reason else tags

    def _has_other_place(self, run: "MlflowRun", trial: TrackedTrial, asked: TrackedRun) -> bool:
        """Whether an earlier trial has a run, of this sweep or of one that is still in MLflow."""
        from mlflow.exceptions import MlflowException

        parent = run.data.tags.get(PARENT)
        if parent == self.parent:
            return _place(run) != (str(trial.number), str(asked.seed))
        if parent is None:
            return False
        with suppress(MlflowException):
            return bool(self.client.get_run(parent).info.lifecycle_stage == "active")
        return False

    def _add_small(self, trial: TrackedTrial, run: TrackedRun, own: "MlflowRun | None") -> None:
        """A run of the trial's settings and result alone; `own`: the run that it is a copy of."""
        from mlflow.entities import Metric, Param, RunTag

        moment = _milliseconds(trial.finished)
        tags = {PARENT: self.parent, "mlflow.source.name": "slm", **self._tags(trial, run)}
        text = f"Trial {trial.number} was refused: {run.reason}"
        if own is not None:
            tags[COPY_TAG] = own.info.run_id
            text = f"A copy: another trial has the run of trial {trial.number}, `{run.name}`, too."
        elif run.name:
            text = f"The run of trial {trial.number}, `{run.name}`, is gone or damaged."
        name = run.name or f"{self.sweep.name}-trial-{trial.number}"
        child = self._small_of(trial, run) or self.client.create_run(
            self.experiment,
            start_time=_milliseconds(trial.finished - trial.seconds),
            tags={key: value for key, value in tags.items() if key != PARENT},
            run_name=name,
        )
        values = {**trial.overrides, "train.seed": run.seed}
        params = [Param(key, entities.param_text(value)[:6000]) for key, value in values.items()]
        metrics = [] if run.val_bpb is None else [Metric("full_val_bpb", run.val_bpb, moment, 0)]
        self.client.log_batch(
            child.info.run_id,
            params=params,
            metrics=metrics,
            tags=[RunTag("mlflow.note.content", entities.public_uri(text)[:5000])],
        )
        status = "FAILED" if run.val_bpb is None else "FINISHED"
        self.client.set_terminated(child.info.run_id, status, moment)
        self._tag(child, {PARENT: self.parent})

    def _small_of(self, trial: TrackedTrial, run: TrackedRun) -> "MlflowRun | None":
        """The small run that a killed pass left before it was nested."""
        tags = {**self._tags(trial, run)}
        tags.pop("slm.failed", None)
        same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs([self.experiment], filter_string=same, max_results=10)
        return next((each for each in runs if "slm.run" not in each.data.tags), None)


def _place(run: "MlflowRun") -> tuple[str, str]:
    """Trial and seed of a nested run."""
    return run.data.tags.get(TRIAL_TAG, ""), run.data.tags.get("slm.seed", "")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
