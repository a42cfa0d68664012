"""The plan of a sweep: which trials it would run or reuse, and what that would cost."""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.planning.cost import with_cost
from slm.planning.lines import Lines
from slm.planning.plan import plan_scored
from slm.planning.results import Results
from slm.planning.stage import OWN, Stage
from slm.records import Frozen
from slm.run_folder import DataRoot
from slm.storage import hashing_once
from slm.sweeps.definition import Budget, Sweep, parse_budget
from slm.sweeps.folder import SweepFolder
from slm.sweeps.proposals import STARTUP_TRIALS, Proposal, propose
from slm.sweeps.records import Trial, TrialResult

# From what is done to what takes the most: a trial of several seeds has the last of theirs.
ACTIONS = ("recorded", "reused", "to pull", "resumed", "to run", "refused")
Action = Literal["recorded", "reused", "to pull", "resumed", "to run", "refused"]
SHARED = ("init_from", "download", "tokenizer", "encode")  # stages that trials have in common
ANY_SCORE = 1.0  # of a trial whose result is not known yet


class TrialPlan(Frozen):
    """What a sweep would do at one trial, over all its seeds."""

    number: int
    batch: int
    rung: int = 0
    values: dict[str, Any] | None  # of the space; None: proposed from results that are not known
    action: Action
    runs: tuple[str, ...] = ()  # folders that are reused or resumed
    reason: str = ""  # why it is refused
    seconds: float | None = None  # that are left, evaluation included; None: unknown
    seconds_from: str = ""
    training_seconds: float | None = None  # of all its training: what a budget counts
    tokens: int | None = None  # of all its training
    disk_bytes: int = 0  # that its results would take
    begins: bool = True  # whether its batch begins before the budget is spent


class SweepPlan(Frozen):
    """What a sweep would do. Nothing was done for it."""

    sweep: str  # name of its folder
    recipe: str
    exists: bool  # whether it was begun
    assumed: bool  # that inputs which only running it would read are those of the folder
    sampler: str
    seeds: int
    budget: str | None
    shared: tuple[Stage, ...]  # of the data, each once
    trials: tuple[TrialPlan, ...]
    ends: Literal["trials", "budget", "space"]
    seconds: float  # that are left, of what is known
    tokens: int  # that are left to train on, of what is known
    disk_bytes: int
    unknown: tuple[str, ...]  # whose time is not known
    verified: bool

    @property
    def beginning(self) -> tuple[TrialPlan, ...]:
        """The trials that begin before the budget is spent."""
        return tuple(trial for trial in self.trials if trial.begins)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by what would be done with them, of those that begin."""
        actions = [trial.action for trial in self.beginning]
        return {action: actions.count(action) for action in ACTIONS if action in actions}


@hashing_once()
def plan_of_sweep(sweep: Sweep, *, root: Path | None = None, verify: bool = False) -> SweepPlan:
    """The plan of a sweep.

    What a later batch of `tpe` or of halving trains depends on results; such trials are counted at
    the mean cost of those that are known.

    Args:
        root: the data folder; None: as of `DataRoot`.
        verify: as of `plan_config`.

    Raises UserError for what running it would refuse before its first trial.
    """
    data = DataRoot(root)
    folder, assumed = _folder(sweep, data)
    recorded = {trial.number: trial for trial in folder.trials} if folder.exists else {}
    results, shared = Results(data), _Shared()
    trials = []
    for proposal, is_known in proposals(sweep, list(recorded.values())):
        if trial := recorded.get(proposal.number):
            trials.append(_recorded(trial))
        elif is_known:
            trials.append(_planned(sweep, proposal, results, shared, verify))
        else:
            trials.append(_later(proposal))
    budget = parse_budget(sweep.budget) if sweep.budget else None
    trials = list(_within(_estimated(sweep, trials), budget))
    begun = [trial for trial in trials if trial.begins]
    pending = [trial for trial in begun if trial.seconds is None]
    return SweepPlan(
        sweep=folder.name,
        recipe=sweep.recipe,
        exists=folder.exists,
        assumed=assumed,
        sampler=sweep.sampler,
        seeds=sweep.seeds,
        budget=sweep.budget,
        shared=tuple(shared.stages.values()),
        trials=tuple(trials),
        ends=_end(sweep, trials),
        seconds=shared.seconds + math.fsum(trial.seconds or 0.0 for trial in begun),
        tokens=sum(t.tokens or 0 for t in begun if t.action in ("to run", "resumed")),
        disk_bytes=shared.disk_bytes + sum(trial.disk_bytes for trial in begun),
        unknown=(*shared.unknown, *(f"trial {trial.number}" for trial in pending)),
        verified=verify,
    )


def _folder(sweep: Sweep, data: DataRoot) -> tuple[SweepFolder, bool]:
    """Where a sweep is, and whether that supposes that its inputs are the same as then."""
    folder = SweepFolder.of(sweep, data)
    if folder.exists:
        return folder, False
    unread = sweep.model_copy(update={"inputs": ""}).key
    for path in data.sweeps():
        with suppress(SlmError):
            other = SweepFolder(path)
            if other.sweep.model_copy(update={"inputs": ""}).key == unread:
                return other, True
    return folder, False


# ---- what will be tried -----------------------------------------------------------------------


def proposals(sweep: Sweep, recorded: Sequence[Trial]) -> Iterator[tuple[Proposal, bool]]:
    """Every trial of a sweep in order, and whether what it tries is known.

    It is, unless it depends on results that are still to come: those of `tpe` after its first
    trials, and of halving who is trained again. In place of these come trials of no account.
    """
    by_number = {trial.number: trial for trial in recorded}
    batches: list[list[TrialResult]] = []
    are_real = True  # whether all results so far are
    adaptive = sweep.sampler == "tpe" or sweep.halving is not None
    if not adaptive:  # all of them are known at once
        whole = sweep.model_copy(update={"batch": max(1, sweep.trials)})
        for proposal in propose(whole, []):
            batch = proposal.number // sweep.batch
            yield proposal.model_copy(update={"batch": batch}), True
        return
    while batch_now := propose(_known_sampler(sweep, are_real), batches):
        done = [by_number.get(proposal.number) for proposal in batch_now]
        first = sum(result.rung == 0 for batch in batches for result in batch)
        for proposal, trial in zip(batch_now, done, strict=True):
            is_new = proposal.rung == 0
            from_start = is_new and (sweep.sampler != "tpe" or first < STARTUP_TRIALS)
            first += is_new
            yield proposal, trial is not None or are_real or from_start
        pairs = zip(batch_now, done, strict=True)
        batches.append([trial.result if trial else _stand_in(p) for p, trial in pairs])
        are_real = are_real and all(done)


def _known_sampler(sweep: Sweep, are_real: bool) -> Sweep:
    """The sweep; in place of `tpe`, which would ask results that are not there, one like it."""
    if are_real or sweep.sampler != "tpe":
        return sweep
    return sweep.model_copy(update={"sampler": "random"})


def _stand_in(proposal: Proposal) -> TrialResult:
    return TrialResult(
        number=proposal.number, values=proposal.values, rung=proposal.rung, val_bpb=ANY_SCORE
    )


# ---- one trial --------------------------------------------------------------------------------


class _Shared:
    """The stages before training, each once."""

    def __init__(self) -> None:
        self.stages: dict[tuple[Any, ...], Stage] = {}

    def add(self, stage: Stage, lines: Lines) -> None:
        """Add a stage, unless it is there: by its key, or by the settings that it depends on."""
        names = [*OWN["download"](lines.config), *OWN["encode"](lines.config)]
        own: Any = stage.key or repr([lines.flat[name] for name in names])
        if (stage.stage, own) not in self.stages:
            self.stages[stage.stage, own] = with_cost(stage, lines)

    @property
    def pending(self) -> list[Stage]:
        return [stage for stage in self.stages.values() if stage.action != "reused"]

    @property
    def seconds(self) -> float:
        return math.fsum(stage.seconds or 0.0 for stage in self.pending)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes or 0 for stage in self.pending)

    @property
    def unknown(self) -> list[str]:
        """The stages whose time is not known."""
        return list(dict.fromkeys(s.stage for s in self.pending if s.seconds is None))


def _recorded(trial: Trial) -> TrialPlan:
    return TrialPlan(
        number=trial.number,
        batch=trial.batch,
        rung=trial.rung,
        values=trial.values,
        action="recorded",
        runs=tuple(seed.run for seed in trial.seeds if seed.run),
        reason=trial.reason,
        seconds=0.0,
        training_seconds=trial.seconds,
        tokens=trial.tokens,
    )


def _later(proposal: Proposal) -> TrialPlan:
    return TrialPlan(
        number=proposal.number,
        batch=proposal.batch,
        rung=proposal.rung,
        values=None,
        action="to run",
    )


def _planned(
    sweep: Sweep, proposal: Proposal, results: Results, shared: _Shared, verify: bool
) -> TrialPlan:
    """The plan of a trial whose settings are known."""
    facts: dict[str, Any] = {
        "number": proposal.number,
        "batch": proposal.batch,
        "rung": proposal.rung,
        "values": proposal.values,
    }
    try:
        config = sweep.config(proposal.overrides)
        seeds = [
            _planned_seed(_with_seed(config, i), results, shared, verify)
            for i in range(sweep.seeds)
        ]
    except UserError as error:
        return TrialPlan(**facts, action="refused", reason=str(error), seconds=0.0)
    return TrialPlan(
        **facts,
        action=max((seed.action for seed in seeds), key=ACTIONS.index),
        runs=tuple(run for seed in seeds for run in seed.runs),
        reason=next((seed.reason for seed in seeds if seed.reason), ""),
        seconds=_sum(seed.seconds for seed in seeds),
        seconds_from=next((seed.seconds_from for seed in seeds if seed.seconds_from), ""),
        training_seconds=_sum(seed.training_seconds for seed in seeds),
        tokens=_whole(_sum(seed.tokens for seed in seeds)),
        disk_bytes=sum(seed.disk_bytes for seed in seeds),
    )


def _with_seed(config: PipelineConfig, index: int) -> PipelineConfig:
    train = config.train.model_copy(update={"seed": config.train.seed + index})
    return config.model_copy(update={"train": train})


def _planned_seed(
    config: PipelineConfig, results: Results, shared: _Shared, verify: bool
) -> TrialPlan:
    """The plan of one training and its evaluation."""
    lines, run, evaluation = plan_scored(config, results, verify=verify, explain=False)
    for stage in lines.stages:
        if stage.stage in SHARED:
            shared.add(stage, lines)
    stages = {s.stage: s for s in lines.stages if s.stage not in SHARED}
    train, score = (with_cost(stages[name], lines) for name in ("train", "evaluate"))
    facts: dict[str, Any] = {"number": 0, "batch": 0, "values": None}
    if train.action == "refused":
        return TrialPlan(**facts, action="refused", reason="; ".join(train.reasons), seconds=0.0)
    if run is not None:
        scored = score.seconds if evaluation is None else 0.0
        return TrialPlan(
            **facts,
            action="reused" if evaluation else "resumed",
            runs=(run.name,),
            seconds=scored,
            seconds_from=score.seconds_from,
            training_seconds=run.seconds,
            tokens=run.tokens,
            disk_bytes=score.disk_bytes or 0 if evaluation is None else 0,
        )
    share = 1.0
    if train.step and train.max_steps and train.step < train.max_steps:
        share = train.max_steps / (train.max_steps - train.step)
    seconds = train.seconds
    return TrialPlan(
        **facts,
        action=train.action,
        runs=(Path(train.result).name,) if train.result and train.action == "resumed" else (),
        seconds=None if seconds is None else seconds + (score.seconds or 0.0),
        seconds_from=train.seconds_from,
        training_seconds=None if seconds is None else seconds * share,
        tokens=None if train.tokens is None else round(train.tokens * share),
        disk_bytes=(train.disk_bytes or 0) + (score.disk_bytes or 0),
    )


def _sum(values: Iterator[float | None]) -> float | None:
    """The sum; None where any is not known."""
    every = list(values)
    return None if None in every else math.fsum(value or 0.0 for value in every)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


# ---- all trials -------------------------------------------------------------------------------


def _estimated(sweep: Sweep, trials: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The trials, those of settings that are not known yet at the mean cost of the others.

    A rung of halving takes `factor` times what the one below it takes.
    """
    factor = sweep.halving.factor if sweep.halving else 1
    known = [t for t in trials if t.values is not None and t.action != "refused"]

    def mean(name: str) -> float | None:
        """Of a trial on rung 0."""
        values = [(getattr(t, name), t.rung) for t in known]
        scaled = [value / factor**rung for value, rung in values if value is not None]
        return statistics.fmean(scaled) if scaled else None

    seconds, tokens = mean("training_seconds"), mean("tokens")
    disk = [t.disk_bytes for t in known if t.disk_bytes]
    return [
        trial
        if trial.values is not None
        else trial.model_copy(
            update={
                "seconds": None if seconds is None else seconds * factor**trial.rung,
                "seconds_from": "estimated: the mean of the trials that are known",
                "training_seconds": None if seconds is None else seconds * factor**trial.rung,
                "tokens": None if tokens is None else round(tokens * factor**trial.rung),
                "disk_bytes": round(statistics.fmean(disk)) if disk else 0,
            }
        )
        for trial in trials
    ]


def _within(trials: Sequence[TrialPlan], budget: Budget | None) -> Iterator[TrialPlan]:
    """The trials, marked whether their batch begins before the budget is spent.

    What is not known yet spends nothing.
    """
    spent, batch, ended = 0.0, 0, False
    of_batch = 0.0
    for trial in trials:
        if trial.batch != batch:
            batch, spent, of_batch = trial.batch, spent + of_batch, 0.0
            ended = ended or (budget is not None and spent >= budget.amount)
        kind = budget.kind if budget else ""
        costs = {"trials": 1.0, "seconds": trial.training_seconds, "tokens": trial.tokens}
        of_batch += costs.get(kind) or 0.0
        yield trial.model_copy(update={"begins": not ended or trial.action == "recorded"})


def _end(sweep: Sweep, trials: Sequence[TrialPlan]) -> Literal["trials", "budget", "space"]:
    if not all(trial.begins for trial in trials):
        return "budget"
    return "trials" if len(trials) >= sweep.trials else "space"
