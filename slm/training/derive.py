"""Runs made from other runs: one that ended early made a finished one, one trained for longer.

Neither touches the run that it is made from: the new one has a folder and a key of its own, and a
copy of all that it needs. Since a training is a function of its config, its plan and the step, the
new run is nothing but a training by another plan whose first steps are known already. Resumed,
verified or reproduced, it needs no other run: without its copied checkpoint it starts at the seed
and reaches the same bits.

    steps     0 ─────────── S ──────────── M
    run       warmup, constant, cooldown ──┘          a plan of M steps
    finished  ──────────────┘                         the same plan, ended at S
    longer    warmup, constant ──────────── cooldown  a plan of M + N steps (wsd alone)
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm import keys
from slm.config import LIMITS, PipelineConfig
from slm.errors import CorruptionError, InUse, UserError
from slm.progress import Progress, automatic
from slm.records import Checkpoint, Decision, Derivation, JournalEntry, Plan, Run
from slm.run_folder import (
    CHECKPOINTS,
    JOURNAL,
    LOCK,
    LOCK_PATIENCE_SECONDS,
    RunFolder,
    Settings,
    checkpoint_name,
)
from slm.storage import commit, hashing_once, lock, make_folder, to_json, write_file
from slm.tokens.mixture.order import order_of
from slm.training.checkpoint import STATE, checkpoint_to_resume
from slm.training.identity import run_inputs, run_keys
from slm.training.launch import as_folder, finished_record, resume, shards_gone
from slm.training.optim import cooldown_start, cooldown_steps, warmup_steps
from slm.training.plan import decision_sha256, plan_sha256
from slm.training.prepare import keep_parent


@dataclass(frozen=True)
class _Blueprint:
    """What a run that is made from another one is to be."""

    derived: Derivation
    config: PipelineConfig
    plan: Plan
    decision: Decision | None


@hashing_once()
def finish(
    run: str | Path | RunFolder | Run,
    *,
    root: Path | None = None,
    progress: Progress = automatic,
    on_event: Callable[[JournalEntry], None] = lambda event: None,
    around: Callable[[RunFolder], AbstractContextManager[Any]] = lambda run: nullcontext(),
) -> Run:
    """Make of a run that ended early a finished one, from its newest valid checkpoint.

    >>> slm.finish("quickstart-3693316e0b15").val_bpb

    The new run can be evaluated, reported and registered; the other one stays as it is, and can be
    resumed. A finished run is returned itself, `reused`.

    Args:
        run: its folder or name.

    Raises:
        UserError: no checkpoint of it was saved yet, or its shards are gone.
        InUse: it is in training.
    """
    folder = as_folder(run, root)
    if record := finished_record(folder):
        return record.model_copy(update={"reused": True})
    made = _derive(folder, _end_now)
    return resume(made, progress=progress, on_event=on_event, around=around)


@hashing_once()
def train_longer(
    run: str | Path | RunFolder | Run,
    steps: int,
    *,
    root: Path | None = None,
    progress: Progress = automatic,
    on_event: Callable[[JournalEntry], None] = lambda event: None,
    around: Callable[[RunFolder], AbstractContextManager[Any]] = lambda run: nullcontext(),
) -> Run:
    """Train a run for more steps than it was planned for, from its last checkpoint before the
    cooldown: a new run, with the bits of a training that was planned for all of them.

    >>> slm.train_longer("mine-0f3b61c2a9d4", 500).step

    Args:
        run: its folder or name; finished or not.
        steps: beyond the end of its plan.

    Raises:
        UserError: its schedule is not `wsd`; or no checkpoint before its cooldown is left.
        InUse: it is in training.
    """
    folder = as_folder(run, root)
    if steps < 1:
        raise UserError(f"{steps} steps longer: give at least 1")
    check_schedule(folder, steps)
    made = _known_longer(folder, steps) or _derive(folder, lambda run: _lengthen(run, steps))
    return resume(made, progress=progress, on_event=on_event, around=around)


def check_schedule(run: RunFolder, steps: int) -> None:
    """Raises UserError for a schedule of which no training is the beginning of a longer one."""
    config, last = run.config, run.max_steps
    if config.train.schedule == "wsd":
        return
    limit = f"train.max_steps={last + steps}" if last else "a larger limit"
    raise UserError(
        f"{run.name} was trained with train.schedule={config.train.schedule}, whose learning rate "
        "falls from the warmup to the last step: a longer training has other rates at every step, "
        f"so that none of this one is part of it. Train another run: `slm train {config.recipe}` "
        f"with the same settings and {limit}; or with train.schedule=wsd, which can be prolonged"
    )


def _known_longer(run: RunFolder, steps: int) -> RunFolder | None:
    """The run that was made as many steps longer before, whichever checkpoint it began with."""
    key = run.settings.key
    for other in run.root.runs():
        try:
            derived = other.settings.derived
        except CorruptionError:
            continue
        if derived and (derived.key, derived.longer) == (key, steps):
            return other
    return None


# ---- what it is to be -------------------------------------------------------------------------


def _end_now(run: RunFolder) -> tuple[_Blueprint, Checkpoint]:
    plan, decision, config = _plan(run), run.decision, run.config
    last = max((e["step"] for e in run.journal if e["event"] == "step"), default=0)
    checkpoint = checkpoint_to_resume(run.path / CHECKPOINTS, last)
    if checkpoint is None:
        raise UserError(
            f"{run.name} has no checkpoint yet, so there is no model to finish: "
            f"`slm train {run.name}` trains it"
        )
    step = checkpoint.step
    if decision and step <= decision.cooldown_start:
        decision = None
    plan = plan.model_copy(update={"ended_at": step})
    return _Blueprint(_made_from(run, checkpoint, 0), _of(config, step), plan, decision), checkpoint


def _lengthen(run: RunFolder, steps: int) -> tuple[_Blueprint, Checkpoint]:
    plan, decision, config = _plan(run), run.decision, run.config
    last, start = plan.end(decision), cooldown_start(plan, decision, config.train)
    if plan.ended_at is not None:
        origin = run.settings.derived
        name = origin.run if origin else "the run that it was made from"
        raise UserError(
            f"{run.name} was ended at step {plan.ended_at} of its schedule: prolong {name} instead"
        )
    if last is None or start is None:
        raise UserError(
            f"{run.name} is limited by train.max_seconds, and its last step is not decided yet: "
            f"`slm train {run.name}` first"
        )
    checkpoint = checkpoint_to_resume(run.path / CHECKPOINTS, start)
    if checkpoint is None:
        raise UserError(
            f"no checkpoint of {run.name} from before its cooldown, which begins after step "
            f"{start}, is left to continue from: `slm train {config.recipe}` with the same "
            f"settings and train.max_steps={last + steps} trains from the seed"
        )
    total = last + steps
    check_same_order(run, plan, total, checkpoint.step)
    cooldown = cooldown_steps(total, config.train)
    if decision:  # whose cooldown may be shorter than its share of the steps
        update = {"cooldown_start": max(start, total - cooldown), "max_steps": total}
        decision = decision.model_copy(update=update)
    else:
        warmup = warmup_steps(plan, config.train)
        plan = plan.model_copy(update={"max_steps": total, "warmup_steps": warmup})
    return (
        _Blueprint(_made_from(run, checkpoint, steps), _of(config, total), plan, decision),
        checkpoint,
    )


def check_same_order(run: RunFolder, plan: Plan, steps: int, step: int) -> None:
    """Raises UserError where a training of so many steps has other rows up to a step.

    Phases end at fractions of the steps: those of a longer training end later.
    """
    config, shards = run.config, run.shards
    if shards is None:  # it is reported where the folder is made
        return
    orders = (
        order_of(config, shards, plan.model_copy(update={"max_steps": total}))
        for total in (plan.max_steps, steps)
    )
    before, after = (order and order.until(step * plan.rows) for order in orders)
    if before != after:
        raise UserError(
            f"{run.name} has data.phases that end at fractions of its {plan.max_steps} steps, and "
            f"in a training of {steps} the rows before step {step} are others: a longer one is no "
            f"continuation of it; `slm train {config.recipe}` with the same settings and "
            f"train.max_steps={steps} trains from the seed"
        )


def _plan(run: RunFolder) -> Plan:
    if plan := run.plan:
        return plan
    raise UserError(f"{run.name} has trained no step yet: `slm train {run.name}` trains it")


def _of(config: PipelineConfig, steps: int) -> PipelineConfig:
    """The config with a limit of so many steps."""
    limits: dict[str, Any] = {**dict.fromkeys((*LIMITS, "max_passes")), "max_steps": steps}
    return config.model_copy(update={"train": config.train.model_copy(update=limits)})


def _made_from(run: RunFolder, checkpoint: Checkpoint, longer: int) -> Derivation:
    return Derivation(
        run=run.name,
        key=run.settings.key,
        step=checkpoint.step,
        longer=longer,
        weights_sha256=checkpoint.weights_sha256,
    )


# ---- its folder -------------------------------------------------------------------------------


def _derive(
    run: RunFolder, blueprint: Callable[[RunFolder], tuple[_Blueprint, Checkpoint]]
) -> RunFolder:
    """The folder of a run made from another one, made where there is none yet.

    Its `config.json` is written last: a folder without one is begun anew.
    """
    with _untrained(run):
        plan, checkpoint = blueprint(run)
        settings, shards, parent = run.settings, run.shards, run.parent
        if shards is None:
            raise UserError(shards_gone(run))
        inputs = run_inputs(shards, settings.parent_key, plan.derived)
        key = run_keys(plan.config, inputs)[0]
        made = RunFolder(run.root.folder("runs", plan.config.recipe, key))
        make_folder(made.path / CHECKPOINTS)
        with lock(made.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS):
            if made.exists:
                return made
            if parent:
                keep_parent(parent, made)
            for each in _with_its_best(run, checkpoint):
                _copy_checkpoint(each, made, key, plan)
            lines = (to_json(entry) + "\n" for entry in _journal(run, plan))
            write_file(made.path / JOURNAL, "".join(lines))
            made.write_plan(plan.plan)
            if plan.decision:
                made.write_decision(plan.decision)
            made.write_settings(
                Settings(key, plan.config, settings.shards_key, settings.parent_key, plan.derived)
            )
    return made


@contextmanager
def _untrained(run: RunFolder) -> Iterator[None]:
    """Keep a run from being trained, and its checkpoints from being pruned. Raises InUse."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(run.path / LOCK, wait=False, patience=LOCK_PATIENCE_SECONDS))
        except InUse as error:
            raise InUse(f"{run.name} is in training: `slm stop {run.name}` first") from error
        yield


def _with_its_best(run: RunFolder, checkpoint: Checkpoint) -> list[Checkpoint]:
    """A checkpoint, and the best one up to its step, if that is another."""
    step = json.loads((checkpoint.path / STATE).read_bytes())["best_step"]
    if step in (0, checkpoint.step):
        return [checkpoint]
    best = run.checkpoint(checkpoint_name(step), verify=True)
    assert best is not None, "checkpoint_to_resume has verified it"
    return [best, checkpoint]


def _copy_checkpoint(checkpoint: Checkpoint, made: RunFolder, key: str, plan: _Blueprint) -> None:
    """Copy a checkpoint's files, with a record that names the new run's settings and plan."""
    folder = made.path / CHECKPOINTS / checkpoint.name
    staging = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for name in checkpoint.files:
        shutil.copy(checkpoint.path / name, staging / name)
    update = {
        "key": key,
        "config_sha256": keys.config_sha256(plan.config),
        "plan_sha256": plan_sha256(plan.plan),
        "decision_sha256": decision_sha256(plan.decision, checkpoint.step),
    }
    copied = commit(staging, folder, checkpoint.model_copy(update=update))
    if copied.files != checkpoint.files:
        raise CorruptionError(f"{checkpoint.path} changed while it was copied: try again")


def _journal(run: RunFolder, plan: _Blueprint) -> Iterator[dict[str, Any]]:
    """The lines of a run up to the step, as the new run would have written them."""
    for entry in run.journal:
        event, step = entry["event"], entry.get("step") or 0
        if step > plan.derived.step or event in ("end", "diverged", "decision"):
            continue
        fields = dict(entry)
        if "max_steps" in fields:
            fields["max_steps"] = plan.plan.max_steps
        yield fields
