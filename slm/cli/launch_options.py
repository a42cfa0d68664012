"""The options of `slm launch`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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

# ---- of Slurm ---------------------------------------------------------------------------------

SetEach = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B",
        help="A job array, one task per value of a setting: train.seed=1,2,3. Of several such "
        "options, per combination.",
    ),
]
AtOnce = Annotated[
    int | None, typer.Option(min=1, help="Tasks of the array that run at the same time.")
]
NodeGpus = Annotated[
    str | None, typer.Option(metavar="[TYPE:]N", help="GPUs per node, such as 8 or a100:8.")
]
NodeMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory per node, such as 32G.")
]
Time = Annotated[
    str | None,
    typer.Option(
        metavar="LIMIT",
        help="Time limit, such as 4:00:00 or 2-00. Before it the training saves, and the job "
        "is queued again and resumes.",
    ),
]
Partition = Annotated[str | None, typer.Option(metavar="NAME", help="Partition.")]
Account = Annotated[str | None, typer.Option(metavar="NAME", help="Account.")]
Qos = Annotated[str | None, typer.Option(metavar="NAME", help="Quality of service.")]
Directives = Annotated[
    list[str] | None,
    typer.Option(
        "--directive", metavar="OPTION", help="A further option of sbatch: constraint=a100."
    ),
]
Log = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="File of the output, such as logs/%x-%j.log."),
]
SaveBefore = Annotated[
    int, typer.Option(min=1, help="Seconds before the time limit at which training saves.")
]
Venv = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Virtual environment on the nodes, to activate."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="SLM_DATA of the job, on a disk that all nodes share."),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(metavar="COMMAND", help="A shell command that comes first: 'module load x'."),
]
Submit = Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")]

# ---- of Kubernetes ----------------------------------------------------------------------------

Image = Annotated[
    str, typer.Option(metavar="IMAGE", help="Image with slm, such as registry.org/slm:1.")
]
PodGpus = Annotated[int | None, typer.Option(min=1, help="NVIDIA GPUs of each pod.")]
PodMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of each pod, such as 32Gi.")
]
Namespace = Annotated[str | None, typer.Option(metavar="NAME", help="Namespace.")]
Claim = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="PersistentVolumeClaim with the data folder; of several nodes ReadWriteMany.",
    ),
]
ServiceAccount = Annotated[
    str | None, typer.Option(metavar="NAME", help="Service account of the pods.")
]
SaveEvicted = Annotated[int, typer.Option(min=1, help="Seconds that an evicted pod has to save.")]
