"""What MLflow shows of a sweep, from its folder."""

from collections.abc import Mapping

from slm.figures import counted
from slm.run_folder import SWEEP
from slm.storage import to_json
from slm.sweeps.definition import Sweep
from slm.sweeps.folder import TRIALS, SweepFolder
from slm.sweeps.records import SweepResult, Trial
from slm.tracking.sweeps import TrackedRun, TrackedSweep, TrackedTrial


def tracked(folder: SweepFolder, links: Mapping[str, str] | None = None) -> TrackedSweep:
    """A sweep as it is now.

    Args:
        links: text → address, for its page.
    """
    sweep, trials, result = folder.sweep, folder.trials, folder.result
    state = "KILLED"
    if result or folder.is_running:
        state = "FINISHED" if result else "RUNNING"
    best = result.best if result else best_so_far(trials)
    return TrackedSweep(
        path=folder.path,
        key=sweep.key,
        config=sweep.config(),
        definition=_definition(sweep),
        extent={"trials": str(sweep.trials), "budget": sweep.budget or "none"},
        space=list(sweep.space),
        trials=[_trial(folder, trial) for trial in trials],
        started=(folder.path / SWEEP).stat().st_mtime,
        state=state,
        best=best,
        outcome=outcome(trials, best, result),
        links=links or {},
    )


def best_so_far(trials: list[Trial]) -> int | None:
    """The number of the best trial of the longest limit; None where none has finished."""
    scored = [(-t.rung, t.val_bpb, t.number) for t in trials if t.val_bpb is not None]
    return min(scored)[2] if scored else None


def outcome(trials: list[Trial], best: int | None, result: SweepResult | None) -> str:
    """One sentence about the best trial."""
    winner = next((trial for trial in trials if trial.number == best), None)
    if winner is None or winner.val_bpb is None:
        return "No trial has finished." if trials else ""
    when = f"of {counted(len(trials), 'trial')}" if result else "so far"
    return (
        f"Trial {winner.number} is the best {when}: {winner.val_bpb:.4f} bits per byte with "
        f"{settings(winner.values)}."
    )


def settings(values: Mapping[str, object]) -> str:
    """`train.learning_rate=0.003, model.n_layer=4`."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _definition(sweep: Sweep) -> dict[str, str]:
    values = {
        "sweep.recipe": sweep.recipe,
        "sweep.sampler": sweep.sampler,
        "sweep.batch": str(sweep.batch),
        "sweep.seeds": str(sweep.seeds),
        "sweep.seed": str(sweep.seed),
        **{f"sweep.space.{key}": each.text for key, each in sweep.space.items()},
        **{f"sweep.set.{key}": to_json(value) for key, value in sweep.overrides.items()},
    }
    return {**values, "sweep.halving": sweep.halving.text} if sweep.halving else values


def _trial(folder: SweepFolder, trial: Trial) -> TrackedTrial:
    record = folder.path / TRIALS / f"{trial.number:04d}.json"
    return TrackedTrial(
        number=trial.number,
        overrides=trial.overrides,
        finished=record.stat().st_mtime,
        seconds=trial.seconds,
        val_bpb=trial.val_bpb,
        runs=[
            TrackedRun(seed.run or None, seed.seed, seed.val_bpb, seed.reason or None)
            for seed in trial.seeds
        ],
    )
