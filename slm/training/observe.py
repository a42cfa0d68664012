"""Trainings seen from outside, whichever process of this data folder they are in.

Everything is read from the folders of the runs: settings, plan, decision, journal, log, and the
lock that a training process holds. Nothing is written.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

from pydantic import Field

from slm.errors import CorruptionError, Interrupted
from slm.figures import duration
from slm.progress import clock
from slm.records import LATEST, Frozen, JournalEntry, bpb_by_source
from slm.run_folder import CONFIG, JOURNAL, KINDS, LOG, DataRoot, RunFolder
from slm.storage import LEFTOVER, is_held, lock_of
from slm.training.log import ENDED, ERROR, logged
from slm.training.status import Status, estimated_end, figures, last_step
from slm.training.tail import Tail
from slm.training.trainers import trainers_of

POLL_SECONDS = 0.5
RESCAN_SECONDS = 2.0  # between two looks for runs that have begun
START_SECONDS = 30.0  # from a run's folder, or the end of its data, to its training process
QUIET_SECONDS = 3.0  # without an entry: then it matters which process would write one
STALL_SECONDS = 60.0  # … and without one for this long, and for longer than before, it is stalled
STALL_GAPS = 5  # times the longest of the recent gaps between two entries
RECENT_STEPS = 200  # that the time left is estimated from
MAX_POINTS = 60  # of a curve

State = Literal[
    "downloading", "making a vocabulary", "encoding", "not begun", "starting", "probing",
    "training", "repeating", "scoring", "stalled", "finished", "stopped", "failed",
]  # fmt: skip
ENDED_STATES = ("not begun", "finished", "stopped", "failed")


class RunState(Frozen):
    """A training at one moment.

    Its `state`: of the data that it needs, `downloading`, `making a vocabulary`, `encoding`; in a
    process that has made no step yet, `starting`, or `probing` where seconds limit it; `training`;
    `repeating` the steps after the checkpoint that it resumed from; `scoring` the final weights;
    `stalled`, without an entry for long. Where no process trains it: `not begun`, `finished`,
    `stopped`, `failed`.
    """

    run: str  # its name; while data are made, theirs
    state: State
    step: int = 0
    max_steps: int | None = None  # None while the clock has not decided it
    expected_steps: int | None = None  # … and what the plan expects then
    tokens: int = 0  # trained on so far
    train_loss: float | None = None  # nats per token, smoothed
    val_bpb: float | None = None  # the last one, on the slice of val; once finished, on all of it
    best_bpb: float | None = None  # on the slice
    best_step: int | None = None
    tok_per_sec: float | None = None  # smoothed
    memory_bytes: int | None = None
    seconds_left: float | None = None  # estimated; None where nothing is known
    since: float | None = None  # unix seconds: of its last entry, or of the beginning of its data
    repeats_until: int | None = None  # the last step that is known from before, while repeating
    message: str = ""  # why it ended
    losses: tuple[float, ...] = ()  # of train, over equal parts of the steps so far
    scores: tuple[float, ...] = ()  # val_bpb, likewise
    # Of a mixture the last val_bpb of each source, on the slice, and those so far, as `scores`.
    source_bpb: dict[str, float] = Field(default_factory=dict)
    source_scores: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    entries: tuple[dict[str, Any], ...] = ()  # of its journal, that the state before had not

    @property
    def has_ended(self) -> bool:
        """Whether no process trains it."""
        return self.state in ENDED_STATES

    @property
    def sentence(self) -> str:
        """What it is doing, or how it ended, in words."""
        since = _since(self.since)
        reached = last_step(self.step, self.max_steps, self.expected_steps)
        resume = f"`slm train {self.run}` resumes it"
        bpb = f"val_bpb {self.val_bpb:.3f}" if self.val_bpb is not None else "no held-out loss"
        best = ""
        if self.best_bpb is not None:
            best = f", the best on the slice {self.best_bpb:.3f} at step {self.best_step:,}"
        return {
            "downloading": f"downloads, since {since}; no run is in training yet",
            "making a vocabulary": f"makes a vocabulary, since {since}; no training has begun",
            "encoding": f"encodes, since {since}; no training has begun",
            "not begun": f"no process trains it: `slm train {self.run}` begins",
            "starting": "its process starts",
            "probing": "measures its speed, for the steps of its limit in seconds",
            "training": self.line,
            "repeating": f"repeats steps {self.step + 1:,} to {self.repeats_until or 0:,}, which "
            "its journal has, after the checkpoint that it resumed from",
            "scoring": f"{reached}: scores the final weights on all of val",
            "stalled": f"{reached}: no entry since {since}",
            "finished": f"finished at step {self.step:,}: {bpb}{best}",
            "stopped": f"stopped at {reached}: {resume}",
            "failed": f"failed at {reached}: {self.message}",
        }[self.state]

    @property
    def line(self) -> str:
        """`step 120 of 500  loss 2.312  val_bpb 0.913  6,400 tokens/s  1.2 GB  0:42 left`.

        Of a mixture with `(code 0.812, wiki 0.955)`, the val_bpb of its sources.
        """
        reached = last_step(self.step, self.max_steps, self.expected_steps)
        shown = figures(reached, self.train_loss, self.val_bpb, self.tok_per_sec, self.memory_bytes)
        if self.source_bpb:
            parts = (f"{name} {value:.3f}" for name, value in self.source_bpb.items())
            shown += f"  ({', '.join(parts)})"
        return shown + (f"  {clock(self.seconds_left)} left" if self.seconds_left else "")


def _since(moment: float | None) -> str:
    """16:02:11, 3 min 20 s ago."""
    if moment is None:
        return "an unknown time"
    at = time.strftime("%H:%M:%S", time.localtime(moment))
    return f"{at} ({duration(max(0.0, time.time() - moment))})"


class Observer:
    """Follows the journal of a run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._journal = Tail(run.path / JOURNAL)
        self._last_time = 0.0  # of the newest entry
        self._forget()

    def _forget(self) -> None:
        self._status = Status()
        self._begun: JournalEntry | None = None  # the newest start or resume
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._by_source: dict[str, list[float]] = {}  # of a mixture
        self._best: tuple[float, int] | None = None
        self._newest_step = self._tokens = 0
        self._seconds: float | None = None  # of the training, where the clock ends it
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)  # times and steps
        self._times: deque[float] = deque(maxlen=RECENT_STEPS)  # of entries of the newest process

    def look(self) -> RunState:
        """Read what is new, and return the state now.

        A journal that was rewritten, since other losses replace steps of it, is read anew; the
        entries that it shares with the one before are not new.
        """
        entries, rewritten = self._journal.read()
        new = entries
        if rewritten:
            new = [entry for entry in entries if entry["time"] > self._last_time]
            self._forget()
        for entry in entries:
            self._add(cast(JournalEntry, entry))
            self._last_time = entry["time"]
        now = time.time()
        state, message = self._state(now)
        repeating = state == "repeating"
        step = cast(JournalEntry, self._begun).get("step", 0) if repeating else self._newest_step
        status, plan = self._status, self.run.plan
        max_steps = plan.end(self.run.decision) if plan else None
        score = status.val_bpb
        if state == "finished":
            with suppress(CorruptionError):
                record = self.run.record
                score = record.val_bpb if record else score
        return RunState(
            run=self.run.name,
            state=state,
            step=step,
            max_steps=max_steps,
            expected_steps=estimated_end(self.run, step) if max_steps is None else None,
            tokens=self._tokens,
            train_loss=status.loss.value if self._losses else None,
            val_bpb=score,
            best_bpb=self._best[0] if self._best else None,
            best_step=self._best[1] if self._best else None,
            tok_per_sec=status.tok_per_sec.value if self._losses else None,
            memory_bytes=status.memory_bytes or None,
            seconds_left=self._seconds_left(state, step, max_steps, now),
            since=self._last_time or None,
            repeats_until=self._newest_step if repeating else None,
            message=message,
            losses=curve(self._losses),
            scores=curve(self._scores),
            source_bpb={name: values[-1] for name, values in self._by_source.items()},
            source_scores={name: curve(values) for name, values in self._by_source.items()},
            entries=tuple(new),
        )

    def _add(self, entry: JournalEntry) -> None:
        self._status.add(entry)
        self._seconds = entry.get("seconds", self._seconds)
        if entry["event"] in ("start", "resume"):
            self._begun = entry
            self._recent.clear()
            self._times.clear()
        elif entry["event"] == "step":
            self._losses.append(entry["train_loss"])
            self._newest_step = max(self._newest_step, entry["step"])
            self._tokens = entry.get("tokens", self._tokens)
            self._recent.append((entry["time"], entry["step"]))
        elif entry["event"] == "evaluate":
            self._scores.append(entry["val_bpb"])
            for name, value in bpb_by_source(entry).items():
                self._by_source.setdefault(name, []).append(value)
            if self._best is None or entry["val_bpb"] < self._best[0]:
                self._best = entry["val_bpb"], entry["step"]
        self._times.append(entry["time"])

    # ---- its state --------------------------------------------------------------------------

    def _state(self, now: float) -> tuple[State, str]:
        """Its state, and where it ended the reason."""
        run = self.run
        if run.is_finished:
            return "finished", ""
        quiet = now - self._last_time > QUIET_SECONDS
        trainers = trainers_of(run) if quiet else []
        if not trainers and not run.is_training:
            return ("finished", "") if run.is_finished else self._end(now)
        born = min((process.create_time() for process in trainers), default=0.0)
        begun = self._begun["time"] if self._begun else None
        if begun is None or begun < born or (quiet and last_words(run, begun)):
            limited = run.plan is None and run.config.train.max_seconds is not None
            return ("probing" if limited else "starting"), ""
        return self._state_in_training(now), ""

    def _state_in_training(self, now: float) -> State:
        begun = cast(JournalEntry, self._begun)
        step = max(begun.get("step", 0), self._newest_step if self._recent else 0)
        quiet = now - self._last_time
        gaps = [b - a for a, b in pairwise(self._times)]
        patience = max(STALL_SECONDS, STALL_GAPS * max(gaps, default=0.0))
        if not self._recent and self._newest_step > step:
            pace = self._step_seconds() or 0.0
            patience += 2 * pace * (self._newest_step - step)
            return "stalled" if quiet > patience else "repeating"
        if quiet > patience and self._recent:
            return "stalled"
        if not self._recent:
            return "starting"
        max_steps = self.run.max_steps
        return "scoring" if max_steps is not None and step >= max_steps else "training"

    def _end(self, now: float) -> tuple[State, str]:
        """The state of a run that no process trains, and the reason."""
        run, begun = self.run, self._begun
        if begun is None and now - _changed(run.path / CONFIG) < START_SECONDS:
            return "starting", ""
        if begun is None and run.shards is None and _building(run.root, run.settings.shards_key):
            return "encoding", ""
        ended = last_words(run, after=begun["time"] if begun else 0.0)
        if ended is None:
            if begun is None:
                return "not begun", ""
            return "failed", (
                "its process ended without a reason, as one that is killed; "
                f"`slm train {run.name}` resumes from its last checkpoint"
            )
        code, message = ended
        return ("stopped" if code == Interrupted.exit_code else "failed"), message

    # ---- its time ---------------------------------------------------------------------------

    def _seconds_left(
        self, state: State, step: int, max_steps: int | None, now: float
    ) -> float | None:
        if state not in ("training", "repeating"):
            return None
        age = now - self._last_time
        limit = self.run.config.train.max_seconds
        if max_steps is None:  # the clock decides the end: it is the limit's
            known = limit is not None and self._seconds is not None
            return (
                max(0.0, cast(float, limit) - cast(float, self._seconds) - age) if known else None
            )
        pace = self._step_seconds()
        return None if pace is None else max(0.0, (max_steps - step) * pace - age)

    def _step_seconds(self) -> float | None:
        """Seconds per step, evaluations and checkpoints between them included."""
        if len(self._recent) > 1:
            (begin, first), (end, last) = self._recent[0], self._recent[-1]
            return (end - begin) / max(1, last - first)
        if not self._losses or not self._status.tok_per_sec.value:
            return None
        return self.run.config.train.tokens_per_step / self._status.tok_per_sec.value


def last_words(run: RunFolder, after: float) -> tuple[int, str] | None:
    """The exit code and the reason that the last training process left in its log.

    None where it left none, or where it is of a process from before `after`, in unix seconds.
    """
    logs = sorted(run.path.glob(f"{Path(LOG).stem}*.log"), key=_changed)
    if not logs or _changed(logs[-1]) < after - 1:
        return None
    lines = [line for line in logged(logs[-1], 0) if line]
    if lines and (ended := ENDED.fullmatch(lines[-1])):
        return int(ended[1]), ended[2]
    if lines and ERROR.search(lines[-1]):
        return 1, lines[-1]
    return None


def curve(values: Sequence[float], points: int = MAX_POINTS) -> tuple[float, ...]:
    """The means of equal parts of a series: of 120 values, 60 means of two each."""
    count = min(len(values), points)
    bounds = [len(values) * part // max(1, count) for part in range(count + 1)]
    return tuple(fmean(values[a:b]) for a, b in pairwise(bounds))


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


# ---- of a data folder -------------------------------------------------------------------------


def observe(
    run: RunFolder | None, root: DataRoot, seconds: float = POLL_SECONDS, *, wait: bool = False
) -> Iterator[list[RunState]]:
    """At each `next`, after `seconds`, the states of a run until it ends.

    None: of all that are in training, those that begin meanwhile too, until none is; where data
    are being made, of these, until a training begins. Where nothing is done, of the newest run;
    with `wait` none, until something is.
    """
    if run is not None:
        yield from _observe({run.path: Observer(run)}, None, seconds)
        return
    last_made = float("-inf")
    while not (running := in_training(root)):
        if made := being_made(root):
            last_made = time.monotonic()
            yield made
        elif not wait and time.monotonic() - last_made > START_SECONDS:
            newest = root.run(LATEST)
            yield from _observe({newest.path: Observer(newest)}, None, seconds)
            return
        time.sleep(seconds)
    yield from _observe({each.path: Observer(each) for each in running}, root, seconds)


def _observe(
    observers: dict[Path, Observer], root: DataRoot | None, seconds: float
) -> Iterator[list[RunState]]:
    """The states until all have ended. `root`: where others may begin."""
    ended: dict[Path, RunState] = {}
    scanned = time.monotonic()
    while True:
        if root and time.monotonic() - scanned > RESCAN_SECONDS:
            scanned = time.monotonic()
            for each in in_training(root):
                if each.path not in observers or each.path in ended:
                    observers[each.path] = observers.get(each.path, Observer(each))
                    ended.pop(each.path, None)
        states = []
        for path, observer in observers.items():
            state = ended.get(path) or observer.look()
            if state.has_ended:
                ended[path] = state.model_copy(update={"entries": ()})
            states.append(state)
        yield states
        if len(ended) == len(observers):
            return
        time.sleep(seconds)


def in_training(root: DataRoot) -> list[RunFolder]:
    """The runs that a process trains now, or is about to."""
    return [run for run in root.runs() if run.is_training or _is_beginning(run)]


def _is_beginning(run: RunFolder) -> bool:
    fresh = time.time() - _changed(run.path / CONFIG) < START_SECONDS
    return fresh and not run.is_finished and not (run.path / JOURNAL).exists()


def being_made(root: DataRoot) -> list[RunState]:
    """The sources, vocabularies and shards that a process makes now."""
    states = []
    words = dict(zip(KINDS, ("downloading", "making a vocabulary", "encoding"), strict=True))
    for kind, word in words.items():
        for staging in sorted((root.path / kind).glob("[!.]*.tmp")):
            folder = staging.with_suffix("")
            if LEFTOVER.fullmatch(folder.name) is None and is_held(lock_of(folder)):
                began = _changed(staging)
                states.append(RunState(run=folder.name, state=cast(State, word), since=began))
    return states


def _building(root: DataRoot, key: str) -> bool:
    return any(state.run.endswith(key[:12]) for state in being_made(root))
