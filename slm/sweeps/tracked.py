"""What MLflow shows of a sweep, from its folder."""

from collections.abc import Mapping

from slm.run_folder import SWEEP
from slm.storage import to_json
from slm.sweeps.definition import Sweep
from slm.sweeps.folder import TRIALS, SweepFolder
from slm.sweeps.records import Trial, ranking
from slm.sweeps.winner import choose
from slm.tracking.sweeps import TrackedRun, TrackedSweep, TrackedTrial


def tracked(folder: SweepFolder, links: Mapping[str, str] | None = None) -> TrackedSweep | None:
    """A sweep as it is now; None before it has begun.

    Args:
        links: text → address, for its page.
    """
    if not folder.exists:
        return None
    sweep, trials, result = folder.sweep, folder.trials, folder.result
    state = "KILLED"
    if result or folder.is_running:
        state = "FINISHED" if result else "RUNNING"
    ranked = ranking(trials)
    return TrackedSweep(
        path=folder.path,
        key=folder.key,
        config=sweep.config(),
        definition=_definition(sweep),
        extent={"trials": str(sweep.trials), "budget": sweep.budget or "none"},
        space=list(sweep.space),
        trials=[_trial(folder, trial) for trial in trials],
        started=(folder.path / SWEEP).stat().st_mtime,
        state=state,
        best=ranked[0].number if ranked else None,
        outcome=outcome(folder),
        links=links or {},
    )


def outcome(folder: SweepFolder) -> str:
    """One sentence about the best trial; before the sweep is complete, about the best so far."""
    if folder.result:
        return choose(folder).sentence
    ranked = ranking(folder.trials)
    if not ranked:
        return "no trial has finished yet"
    best = ranked[0]
    return f"trial {best.number}: {best.val_bpb:.4f} bits per byte, the best so far"


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
