"""A recipe as a script for Slurm's sbatch, which resumes after preemptions and time limits.

The same bits come out however often the job is requeued, as of any training that is interrupted.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.cluster.given import COMMANDS, Until, check_until, matching, positive
from slm.cluster.trials import Overrides, check_trials, settings_of
from slm.errors import SlmError, UserError, excerpt
from slm.recipes import default_recipe, load_recipe

SAVE_SECONDS = 120
MIN_WORKING_SECONDS = 60  # of a job before it is asked to save; Slurm may send a signal so early

# Slurm's forms of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours, …
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)|(?P<min>\d+))"
)
_GPUS = re.compile(r"(?:[\w.-]+:)?[1-9]\d*")
_MEMORY = re.compile(r"\d+[KMGT]?")
_NAME = re.compile(r"[\w.,@+:-]+")  # of partitions, accounts, levels of service
_DIRECTIVE = re.compile(r"[a-z][a-z-]*(?:=\S.*)?")
_OWN = {"job-name", "output", "open-mode", "requeue", "no-requeue", "signal", "array"}


def launch_slurm(
    recipe: str | None = None,
    overrides: Overrides | None = None,
    *,
    trials: Sequence[Overrides] = (),
    until: Until | None = None,
    nodes: int = 1,
    gpus_per_node: int | str | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    time: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    directives: Sequence[str] = (),
    log: str | None = None,
    save_seconds: int = SAVE_SECONDS,
    at_once: int | None = None,
    venv: Path | str | None = None,
    data: Path | str | None = None,
    setup: Sequence[str] = (),
) -> str:
    """The text of an sbatch script that runs a recipe.

    >>> print(slm.launch_slurm("quickstart", {"train.max_steps": 100}, time="4:00:00"))

    Args:
        recipe: None: the only one of `pipelines.yaml`, else quickstart.
        trials: overrides of each task of a job array, such as `[{"train.seed": 1}, …]`; () is one
            job.
        until: the last stage; None: register, and of an array train.
        nodes: of more than one, all train together.
        gpus_per_node: their number, or `TYPE:NUMBER`.
        cpus: per node.
        memory: per node, such as `32G`.
        time: the limit, in one of Slurm's forms. Before it the training saves and is queued again.
        directives: further options of sbatch, such as `constraint=a100`.
        log: file of the output, by sbatch's pattern.
        save_seconds: how long before the time limit the training is asked to save.
        at_once: how many tasks of the array run at the same time; None: all.
        venv: a virtual environment on the nodes, which is activated.
        data: the data folder, on a disk that all nodes share; None: as slm finds it.
        setup: shell commands that come first, such as `module load cuda`.

    Raises UserError for what is no valid recipe, override or resource.
    """
    recipe, overrides = recipe or default_recipe(), dict(overrides or {})
    config = load_recipe(recipe, overrides)
    check_trials(recipe, overrides, trials)
    until = until or ("train" if trials else "register")
    check_until(until)
    if nodes > 1 and until == "encode":
        raise UserError(f"nodes={nodes}: encoding takes one node; give until=train for the rest")
    if at_once and not trials:
        raise UserError(f"at_once={at_once} limits an array: give the trials of one")
    _check_time(time, save_seconds)
    resources = {
        "array": _array(len(trials), at_once),
        "time": time,
        "partition": matching("partition", partition, _NAME, "a name, or several: a,b"),
        "account": matching("account", account, _NAME, "a name"),
        "qos": matching("qos", qos, _NAME, "a name"),
        "nodes": positive("nodes", nodes),
        "ntasks-per-node": 1,
        "gpus-per-node": matching("gpus_per_node", gpus_per_node, _GPUS, "8, or TYPE:8"),
        "cpus-per-task": positive("cpus", cpus),
        "mem": matching("memory", memory, _MEMORY, "a size such as 32G"),
    }
    return _render(
        recipe=recipe,
        name=config.folder_name,
        settings=overrides,
        trials=trials,
        command=COMMANDS[until],
        nodes=nodes,
        directives=[
            *(f"{name}={value}" for name, value in resources.items() if value is not None),
            *map(_directive, directives),
        ],
        log=_path("log", log or f"{config.folder_name}-{'%A_%a' if trials else '%j'}.log"),
        save_seconds=save_seconds,
        srun_cpus=cpus if nodes > 1 else None,
        venv=_path("venv", venv),
        data=_path("data", data),
        setup=[_line("setup", command) for command in setup],
    )


def submit(script: str) -> str:
    """Hand a script to sbatch; returns the job's id.

    Raises UserError where there is no sbatch, SlmError where it refuses the script.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on PATH: submit on a machine of the cluster, or leave out --submit and "
            "copy the script there"
        )
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SlmError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]  # ID;CLUSTER


# ---- what is given ----------------------------------------------------------------------------


def limit_seconds(time: str) -> int:
    """The seconds of a time limit, as sbatch reads it: `30`, `1:30:00`, `2-12`.

    Raises UserError.
    """
    if not (match := _TIME.fullmatch(time)):
        raise UserError(
            f"time={excerpt(repr(time))} is no time limit of Slurm: give MINUTES, HH:MM:SS or "
            "DAYS-HH:MM:SS, such as 4:00:00"
        )
    part = {name: int(digits or 0) for name, digits in match.groupdict().items()}
    hours, minutes = part["hours"] + part["h"], part["minutes"] + part["m"] + part["min"]
    return ((part["days"] * 24 + hours) * 60 + minutes) * 60 + part["seconds"] + part["s"]


def _check_time(time: str | None, save_seconds: int) -> None:
    positive("save_seconds", save_seconds)
    least = save_seconds + MIN_WORKING_SECONDS
    if time is not None and limit_seconds(time) < least:
        raise UserError(
            f"time={time} leaves nothing to train in: the job is asked to save {save_seconds} s "
            f"before its end, up to {MIN_WORKING_SECONDS} s early; give more than {least} s, or a "
            "smaller save_seconds"
        )


def _array(count: int, at_once: int | None) -> str | None:
    if not count:
        return None
    return f"0-{count - 1}" + (f"%{positive('at_once', at_once)}" if at_once is not None else "")


def _directive(text: str) -> str:
    text = _line("directive", text.removeprefix("#SBATCH ").removeprefix("--"))
    if not _DIRECTIVE.fullmatch(text):
        raise UserError(
            f"directive {excerpt(repr(text))}: give a long option of sbatch and its value, such "
            "as constraint=a100"
        )
    if (name := text.partition("=")[0]) in _OWN:
        raise UserError(f"directive {name}: the script has its own, which resuming depends on")
    return text


def _path(name: str, path: Path | str | None) -> str | None:
    """A path or a pattern of one, which may be in double quotes after #SBATCH."""
    if path is None:
        return None
    text = _line(name, str(path))
    if not text or '"' in text or "\\" in text:
        raise UserError(f"{name}={excerpt(repr(text))}: give a path without quotes and backslashes")
    return text


def _line(name: str, text: str) -> str:
    if not text.isprintable():
        raise UserError(f"{name} {excerpt(repr(text))}: give one line of printable characters")
    return text


# ---- the script -------------------------------------------------------------------------------


def _render(**facts: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # a shell script: what is filled in is quoted by the filters
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": shlex.quote, "settings": _set_options}
    text = environment.get_template("slurm.sh.j2").render(facts)
    return re.sub(r"\n{3,}", "\n\n", text)


def _set_options(overrides: Mapping[str, Any]) -> str:
    """Overrides as options of slm: `--set train.seed=1`, quoted for a shell."""
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings_of(overrides))
