"""The commands that end a training early and keep what it has: stop, finish."""

from slm.cli.options import AsJson, RunName, display_for, show, show_line, suggest
from slm.cli.stages import train_result
from slm.orchestration import stages
from slm.registry.opening import open_run


def stop(run: RunName, as_json: AsJson = False) -> None:
    """Stop a training or a sweep, whoever started it: it saves after its step, and ends.

    Example: slm stop quickstart-3693316e0b15
    """
    import slm.sweeps.stop

    stopped = slm.sweeps.stop.stop(run)
    if as_json:
        show(stopped.model_dump(), as_json)
        return
    show_line(stopped.sentence)
    if isinstance(stopped, slm.sweeps.stop.StoppedSweep):
        return
    if not stopped.finished:
        show_line(f"resume    slm train {stopped.run}")
        if stopped.step is not None:
            show_line(f"or keep   slm finish {stopped.run}")


def finish(run: RunName, as_json: AsJson = False) -> None:
    """Make of a run that ended early a finished one, which can be evaluated and registered.

    It is a run of its own, of the newest checkpoint; the other one stays, and can be resumed.

    Example: slm finish quickstart-3693316e0b15
    """
    folder = open_run(run)
    stages.check_tracking(folder.config)
    with display_for(as_json) as display:
        stages.need_shards(folder)
        record = stages.finish(folder)
        if record.path == folder.path:
            display.write(f"{folder.name} is finished already")
    result = train_result(record)
    show({**result, "made_from": folder.name} if record.path != folder.path else result, as_json)
    suggest(as_json, f"slm evaluate {record.name}", f"slm register {record.name}")
