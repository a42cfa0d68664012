"""`slm launch`: a recipe as a job of a cluster's scheduler."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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

Nodes = Annotated[int, typer.Option(min=1, help="Nodes, which train together.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores per node.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write it to this file instead of stdout."),
]
Until = Annotated[
    Literal["encode", "train", "register"] | None,
    typer.Option(help="The last stage; by default register, of several trials train."),
]


@launch.command(cls=Command)
def slurm(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    set_each: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B",
            help="A job array, one task per value of a setting: train.seed=1,2,3. Of several such "
            "options, per combination.",
        ),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Tasks of the array that run at the same time.")
    ] = None,
    until: Until = None,
    nodes: Nodes = 1,
    gpus_per_node: Annotated[
        str | None, typer.Option(metavar="[TYPE:]N", help="GPUs per node, such as 8 or a100:8.")
    ] = None,
    cpus: Cpus = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory per node, such as 32G.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help="Time limit, such as 4:00:00 or 2-00. Before it the training saves, and the job "
            "is queued again and resumes.",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Account.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="Quality of service.")] = None,
    directives: Annotated[
        list[str] | None,
        typer.Option(
            "--directive", metavar="OPTION", help="A further option of sbatch: constraint=a100."
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="File of the output, such as logs/%x-%j.log."),
    ] = None,
    save_seconds: Annotated[
        int, typer.Option(min=1, help="Seconds before the time limit at which training saves.")
    ] = 120,
    venv: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Virtual environment on the nodes, to activate."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="SLM_DATA of the job, on a disk that all nodes share."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="COMMAND", help="A shell command that comes first: 'module load x'."),
    ] = None,
    output: Output = None,
    submit: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
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
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="Image with slm, such as registry.org/slm:1.")
    ],
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    until: Until = None,
    nodes: Nodes = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="NVIDIA GPUs of each pod.")
    ] = None,
    cpus: Cpus = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each pod, such as 32Gi.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace.")] = None,
    claim: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="PersistentVolumeClaim with the data folder; of several nodes ReadWriteMany.",
        ),
    ] = "slm-data",
    service_account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Service account of the pods.")
    ] = None,
    save_seconds: Annotated[
        int, typer.Option(min=1, help="Seconds that an evicted pod has to save.")
    ] = 120,
    output: Output = None,
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
