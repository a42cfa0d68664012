"""The clock of a training whose limit is in seconds and whose schedule is `wsd`.

Such a schedule is constant until its cooldown, so that its end need not be known before: the clock
decides it once, when the seconds that are left are those of the cooldown at the recent speed. A
machine that becomes faster or slower before that ends as much within the limit as any other.

The seconds are those of the journal: steps that a killed process made count once, though they are
repeated, and the time between two processes not at all.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from slm.config import TrainConfig
from slm.records import Decision, JournalEntry, Plan
from slm.storage import fault_point
from slm.training.journal import Journal
from slm.training.session import Session, share_decision

RECENT_SHARE = 0.05  # of the limit: the steps of the last so many seconds give the recent speed
MIN_RECENT_STEPS = 10


class Countdown:
    """The seconds of a training so far, and how long its steps take.

    Args:
        plan: with the measurements of a probe, whose own seconds count.
        clock: seconds from any moment on.
    """

    def __init__(self, plan: Plan, config: TrainConfig, clock: Callable[[], float]) -> None:
        assert config.max_seconds is not None
        self._limit, self._cooldown = config.max_seconds, config.cooldown
        self._clock = clock
        self._started = clock()  # when `seconds` were reached, in this process
        self._noticed = self._started  # when `now` was last read
        self.seconds = plan.probe["probe_seconds"]
        self._scoring = plan.probe["periodic_seconds"] * config.evaluate_every
        self._every = config.evaluate_every
        self._recent = deque([(plan.probe["step_seconds"], self.seconds)])  # steps, and their ends

    def now(self) -> float:
        """The seconds of the training up to this moment."""
        self._noticed = self._clock()
        return self.seconds + self._noticed - self._started

    def add(self, entry: JournalEntry) -> None:
        """Take in a line of a step or an evaluation: the next in the journal's order.

        Its seconds count, also where they are those of an earlier process for the same step.
        """
        taken = entry["seconds"] - self.seconds
        self.seconds, self._started = entry["seconds"], self._noticed
        if entry["event"] == "evaluate":
            self._scoring = taken
            return
        self._recent.append((taken, self.seconds))
        since = self.seconds - RECENT_SHARE * self._limit
        while len(self._recent) > MIN_RECENT_STEPS and self._recent[0][1] < since:
            self._recent.popleft()

    @property
    def step_seconds(self) -> float:
        """The mean of the recent steps; the slowest, which may be a single stall, is left out."""
        steps = [taken for taken, _ in self._recent]
        if len(steps) == 1:
            return steps[0]
        return (sum(steps) - max(steps)) / (len(steps) - 1)

    def decide(self, step: int) -> Decision | None:
        """The decision, if the cooldown is to begin after `step` steps.

        Of T steps it takes the last `cooldown · T`. At 0.5 s a step, 60 s that are left are 120
        steps; with a cooldown of 0.2 it begins once 480 steps or more are made. One evaluation
        more than those of the remaining steps is the final one.
        """
        each = self.step_seconds + self._scoring / self._every
        left = max(1, int((self._limit - self.seconds - self._scoring) / each))
        if left > max(1, self._cooldown * (step + left)):
            return None
        return Decision(
            cooldown_start=step,
            max_steps=step + left,
            seconds=self.seconds,
            step_seconds=self.step_seconds,
        )


def start_countdown(session: Session, clock: Callable[[], float]) -> Countdown | None:
    """The seconds up to the session's step, from the journal; None where no clock decides.

    Nor does it in a run that was made from another one, whose end is known.
    """
    if not session.plan.cooldown_by_clock or session.job.config.train.max_seconds is None:
        return None
    countdown = Countdown(session.plan, session.job.config.train, clock)
    for entry in session.job.run.journal:
        if entry["event"] in ("step", "evaluate") and entry["step"] <= session.step:
            countdown.add(entry)
    return countdown


def note(journal: Journal, countdown: Countdown | None, event: str, fields: dict[str, Any]) -> None:
    """Write an event, with the seconds of the training where they decide its end."""
    if countdown is None:
        journal.write(event, **fields)
    else:
        countdown.add(journal.write(event, **fields, seconds=countdown.now()))


def decide_cooldown(session: Session, countdown: Countdown, journal: Journal, asking: bool) -> None:
    """Begin the cooldown if it is time to: rank 0 decides, durably, before its first step.

    `asking`: whether the processes exchange anything before this step.
    """
    if asking and session.decision is None:
        decision = countdown.decide(session.step) if session.job.rank == 0 else None
        if decision:
            fault_point("train.decide")
            session.job.run.write_decision(decision)
        session.decision = share_decision(decision)
    decision = session.decision
    if decision and decision.cooldown_start == session.step:
        journal.write("decision", step=session.step, max_steps=decision.max_steps)
