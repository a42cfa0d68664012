"""`slm launch`: a recipe as a job of a cluster's scheduler."""

from pathlib import Path

import typer

from slm.cli import launch_options as options
from slm.cli.help import Command, Group
from slm.cli.options import (
    AsJson,
    Name,
    RecipeOrDefault,
    Settings,
    overrides,
    show,
    show_line,
    suggest,
)
from slm.errors import UserError

launch = typer.Typer(
    name="launch",
    cls=Group,
    help="Run a recipe on a cluster: a script for Slurm, a manifest for Kubernetes.\n\n"
    "Example: slm launch slurm quickstart --time 4:00:00",
    rich_markup_mode="rich",
    no_args_is_help=True,
)


@launch.command(cls=Command)
def slurm(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    set_each: options.SetEach = None,
    at_once: options.AtOnce = None,
    until: options.Until = None,
    nodes: options.Nodes = 1,
    gpus_per_node: options.NodeGpus = None,
    cpus: options.Cpus = None,
    memory: options.NodeMemory = None,
    time: options.Time = None,
    partition: options.Partition = None,
    account: options.Account = None,
    qos: options.Qos = None,
    directives: options.Directives = None,
    log: options.Log = None,
    save_seconds: options.SaveBefore = 120,
    venv: options.Venv = None,
    data: options.Data = None,
    setup: options.Setup = None,
    output: options.Output = None,
    submit: options.Submit = False,
    as_json: AsJson = False,
) -> None:
    """Write a script for Slurm's sbatch, requeued before the time limit and after a preemption.

    Examples: slm launch slurm quickstart --time 4:00:00 --output job.sh ·
    slm launch slurm quickstart --set-each train.seed=1,2,3 --submit
    """
    from slm.cluster import slurm as scheduler
    from slm.cluster.trials import grid, parse_each

    trials = grid(parse_each(set_each)) if set_each else []
    script = scheduler.launch_slurm(
        recipe, overrides(settings, name), trials=trials, until=until, nodes=nodes,
        gpus_per_node=gpus_per_node, cpus=cpus, memory=memory, time=time, partition=partition,
        account=account, qos=qos, directives=directives or (), log=log, save_seconds=save_seconds,
        at_once=at_once, venv=venv, data=data, setup=setup or (),
    )  # fmt: skip
    written = write(output, script)
    job = scheduler.submit(script) if submit else None
    result = {"script": script, "file": written, "trials": trials, "job": job}
    if as_json:
        show(result, as_json)
        return
    if not (written or job):
        print(script, end="")
    if written:
        show_line(f"written   {written}")
    if job:
        show_line(f"job       {job}")
    suggest(as_json, "squeue --me" if job else f"sbatch {written or 'FILE'}")


@launch.command(cls=Command)
def kubernetes(
    image: options.Image,
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    until: options.Until = None,
    nodes: options.Nodes = 1,
    gpus_per_node: options.PodGpus = None,
    cpus: options.Cpus = None,
    memory: options.PodMemory = None,
    namespace: options.Namespace = None,
    claim: options.Claim = "slm-data",
    service_account: options.ServiceAccount = None,
    save_seconds: options.SaveEvicted = 120,
    output: options.Output = None,
    as_json: AsJson = False,
) -> None:
    """Write a manifest of a Kubernetes Job, whose evicted pods resume.

    Example: slm launch kubernetes --image registry.example.org/slm:1
    """
    from slm.cluster.kubernetes import launch_kubernetes

    manifest = launch_kubernetes(
        recipe, overrides(settings, name), image=image, until=until, nodes=nodes,
        gpus_per_node=gpus_per_node, cpus=cpus, memory=memory, namespace=namespace, claim=claim,
        service_account=service_account, save_seconds=save_seconds,
    )  # fmt: skip
    written = write(output, manifest)
    if as_json:
        show({"manifest": manifest, "file": written}, as_json)
        return
    if written:
        show_line(f"written   {written}")
    else:
        print(manifest, end="")
    suggest(as_json, f"kubectl apply -f {written or 'FILE'}")


def write(path: Path | None, text: str) -> str | None:
    """Write a new file; returns its path. Raises UserError where it exists already."""
    if path is None:
        return None
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} exists: give another --output, or delete it") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path.parent} is no folder: give another --output") from error
    return str(path)
