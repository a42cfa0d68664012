"""Kills and resumes: slm next to Hugging Face's Trainer and a notebook's loop, on one small GPT-2.

Each trains the same shape on the same tokens for the same number of steps, three times: whole;
killed (SIGKILL) after a step and resumed by its own means; killed in the middle of a save and
resumed. What is compared: the bits of the weights, the losses and rows after the resume, the steps
repeated, the seconds, the held-out score, a sample. The trainings are in `_peers.py`.

`make compare-peers` writes the table to docs/compare-peers.md. No network; some minutes on two
cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("slm", "transformers", "notebook")
TITLES = {
    "slm": "slm", "transformers": "Hugging Face `Trainer`", "notebook": "a notebook's loop",
}  # fmt: skip

Steps = Sequence[Mapping[str, Any]]  # what a training noted: {event, step, loss, rows, time}


@dataclass(frozen=True)
class Schedule:
    """How long all train, and when they are killed."""

    steps: int = 90
    every: int = 30  # steps between two checkpoints
    kill_at: int = 50
    kill_in_save: int = 60
    threads: int = 2
    documents: int = 3000


@dataclass(frozen=True)
class Training:
    """What the processes of one training left."""

    restarted: float  # unix seconds: when it was started again; 0 where it was not
    before: Steps  # noted by the process that was killed; empty where none was
    after: Steps  # all that is noted at the end
    weights: str
    val_bpb: float
    sample: str
    error: str = ""  # of a restart that failed; it was repaired by hand


@dataclass(frozen=True)
class Resume:
    """A training that was killed and resumed, next to the one that never was."""

    resumed_from: int  # step; 0: from the start
    again: int  # steps made a second time
    same_weights: bool
    same_losses: int  # steps after the resume whose loss is the same to the last bit
    compared: int  # … of so many
    largest_difference: float  # between the losses of one step
    twice: int | None  # steps on rows that its weights had been trained on; None: not known
    missed: int | None  # steps whose rows it was never trained on
    val_bpb: float
    seconds_lost: float | None  # from its second start until it was where it had been killed
    error: str


@dataclass(frozen=True)
class Comparison:
    """A peer's three trainings."""

    name: str
    val_bpb: float
    sample: str
    killed: Resume
    in_save: Resume


# ---- what is compared ---------------------------------------------------------------------------


def resumed_from(before: Steps, after: Steps) -> int:
    """The step that the last process began at: as it noted, or the one before its first."""
    begun = [line["step"] for line in after if line["event"] != "step"]
    return int(begun[-1] if begun else after[len(before)]["step"] - 1)


def made_by(training: Training) -> dict[int, Mapping[str, Any]]:
    """The steps that the final weights were trained by: of those repeated, the last one."""
    return {line["step"]: line for line in training.after if line["event"] == "step"}


def resume_of(whole: Training, killed: Training, killed_at: int) -> Resume:
    """Compare a training that was killed after a step with the whole one."""
    begin = resumed_from(killed.before, killed.after)
    expected, made = made_by(whole), made_by(killed)
    later = [step for step in expected if step > begin]
    differences = [abs(made[step]["loss"] - expected[step]["loss"]) for step in later]
    same_losses = sum(difference == 0 for difference in differences)
    twice: int | None = None
    missed: int | None = None
    if all("rows" in line for line in [*expected.values(), *made.values()]):
        seen = [line["rows"] for _, line in sorted(made.items())]
        twice = len(seen) - len(set(seen))
        missed = len({line["rows"] for line in expected.values()} - set(seen))
    elif same_losses == len(later):  # equal losses at every step: of equal rows
        twice = missed = 0
    back = made[killed_at]["time"] - killed.restarted  # negative: noted before the kill alone
    return Resume(
        resumed_from=begin,
        again=killed_at - begin,
        same_weights=killed.weights == whole.weights,
        same_losses=same_losses,
        compared=len(later),
        largest_difference=max(differences),
        twice=twice,
        missed=missed,
        val_bpb=killed.val_bpb,
        seconds_lost=back if back > 0 else None,
        error=killed.error,
    )


def compare(
    name: str, whole: Training, killed: Training, in_save: Training, schedule: Schedule
) -> Comparison:
    return Comparison(
        name=name,
        val_bpb=whole.val_bpb,
        sample=whole.sample,
        killed=resume_of(whole, killed, schedule.kill_at),
        in_save=resume_of(whole, in_save, schedule.kill_in_save),
    )


# ---- the trainings ------------------------------------------------------------------------------


def measure(name: str, folder: Path, schedule: Schedule, shards: Path) -> Comparison:
    """Train one of the three whole, killed, and killed in a save."""
    from _peers import Job

    job = Job(folder / "whole", shards, schedule.steps, schedule.every)
    whole = run_training(name, job, schedule)
    killed = replace(job, folder=folder / "killed", kill_at=schedule.kill_at)
    in_save = replace(job, folder=folder / "in_save", kill_in_save=schedule.kill_in_save)
    return compare(
        name,
        whole,
        run_training(name, killed, schedule),
        run_training(name, in_save, schedule),
        schedule,
    )


def run_training(name: str, job: Any, schedule: Schedule) -> Training:
    """Start a training; where it is killed, start it again, and once more if that fails."""
    from _peers import PEERS

    peer, before, error, restarted = PEERS[name], [], "", 0.0
    if job.kill_at or job.kill_in_save:
        code, _, message = start(name, job, schedule)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"{name} was to be killed and ended with {code}: {message}")
        before, restarted = peer.steps(job.folder), time.time()
        job = replace(job, kill_at=None, kill_in_save=None)
    code, result, message = start(name, job, schedule)
    if code and peer.repair and before:
        error = message.replace(f"{job.folder}/", "").split(". ")[0]
        peer.repair(job.folder)
        code, result, message = start(name, job, schedule)
    if code:
        raise RuntimeError(f"{name} ended with {code}: {message}")
    return Training(restarted, before, peer.steps(job.folder), error=error, **result)


def start(name: str, job: Any, schedule: Schedule) -> tuple[int, dict[str, Any], str]:
    """A process of a training: its exit code, its result, the last line of an error."""
    print(f"{name}: {job.folder.name}", file=sys.stderr)
    paths = {"folder": str(job.folder), "shards": str(job.shards)}
    arguments = [json.dumps({**asdict(job), **paths}), json.dumps(asdict(schedule))]
    kept = {key: value for key, value in os.environ.items() if key not in ("SLM_DATA", "SLM_FAULT")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--part", name, *arguments],
        env={**kept, **offline, "OMP_NUM_THREADS": str(schedule.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    lines = done.stderr.strip().splitlines()
    return done.returncode, result, lines[-1] if lines else ""


def part(name: str, job: Mapping[str, Any], schedule: Schedule) -> None:
    """Train in this process, and print the result."""
    import torch
    from _peers import Job, config_of, train

    torch.set_num_threads(schedule.threads)
    paths = {key: Path(job[key]) for key in ("folder", "shards")}
    config = config_of(schedule.steps, schedule.every, schedule.threads, schedule.documents)
    print(json.dumps(train(name, Job(**{**job, **paths}), config)))


def run(schedule: Schedule, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """`{"machine", "limit", "versions", "schedule", "seconds", "peers": {name: Comparison}}`."""
    import limits
    from _peers import config_of

    import slm

    began = time.monotonic()
    limit = limits.measure()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = config_of(schedule.steps, schedule.every, schedule.threads, schedule.documents)
        shards = slm.encode(config, slm.download(config, root=root), root=root)
        peers = {n: measure(n, root / n, schedule, shards.path) for n in names}
    return {
        "machine": limits.machine(),
        "limit": limit._asdict(),
        "versions": versions(),
        "schedule": asdict(schedule),
        "seconds": time.monotonic() - began,
        "peers": {name: asdict(peer) for name, peer in peers.items()},
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import slm

    peers = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"slm": slm.__version__, **peers}


# ---- the page -----------------------------------------------------------------------------------


def table(peers: Mapping[str, Mapping[str, Any]], schedule: Mapping[str, Any]) -> list[str]:
    """The lines of the table, in Markdown."""
    killed = [peer["killed"] for peer in peers.values()]
    in_save = [peer["in_save"] for peer in peers.values()]
    rows = [
        (f"**Killed after step {schedule['kill_at']}, of {schedule['steps']}**", [""] * len(peers)),
        ("resumes from step", [f"{r['resumed_from']}" for r in killed]),
        ("weights of the training that was never killed, bit for bit", [_same(r) for r in killed]),
        ("steps after the resume with the same loss", [_losses(r) for r in killed]),
        ("largest difference of a loss", [f"{r['largest_difference']:.2g}" for r in killed]),
        ("steps on rows it had been trained on already", [_count(r["twice"]) for r in killed]),
        ("steps whose rows it never saw", [_count(r["missed"]) for r in killed]),
        ("held-out bits per byte: never killed → killed", [_scores(p) for p in peers.values()]),
        ("steps repeated", [f"{r['again']}" for r in killed]),
        (
            "seconds from the second start until it was there again",
            [f"{r['seconds_lost']:.1f}" for r in killed],
        ),
        (f"**Killed while saving step {schedule['kill_in_save']}**", [""] * len(peers)),
        ("resumes by itself", ["no" if r["error"] else "yes" for r in in_save]),
        ("from step", [_begin(r) for r in in_save]),
        ("weights of the training that was never killed, bit for bit", [_same(r) for r in in_save]),
        ("steps repeated", [f"{r['again']}" for r in in_save]),
    ]
    lines = [f"| | {' | '.join(TITLES[name] for name in peers)} |", "|---" * (len(peers) + 1) + "|"]
    return lines + [f"| {title} | {' | '.join(cells)} |" for title, cells in rows]


def _same(resume: Mapping[str, Any]) -> str:
    return "**yes**" if resume["same_weights"] else "no"


def _losses(resume: Mapping[str, Any]) -> str:
    return f"{resume['same_losses']} of {resume['compared']}"


def _count(value: int | None) -> str:
    return "not known" if value is None else str(value)


def _scores(peer: Mapping[str, Any]) -> str:
    return f"{peer['val_bpb']:.4f} → {peer['killed']['val_bpb']:.4f}"


def _begin(resume: Mapping[str, Any]) -> str:
    by_hand = ", once the checkpoint is deleted by hand" if resume["error"] else ""
    return f"{resume['resumed_from']}{by_hand}"


TITLE = "# Killed and resumed, next to peers"
INTRODUCTION = """\
`make compare-peers` repeats this page, offline. A GPT-2 of {n_layer} blocks and width {n_embd} is
trained three times by each: once whole, once killed (SIGKILL) after a step, once killed while it
saves a checkpoint; then each resumes by its own means. All have the same tokens, batch, number of
steps, learning rates, float32, dropout and threads; each has its own initial weights and order.
"""

CONFIGURED = """\
- **slm** is `slm.train` with `train.precision=fp32`; the second call resumes. Its row order is a
  function of seed and step, so equal losses at every step show equal rows.
- **`Trainer`** has `full_determinism=True`, a seed, no dataloader workers, and
  `trainer.train(resume_from_checkpoint=True)`, as its documentation recommends. Its checkpoint has
  optimizer, schedule, random states and step.
- **The notebook's loop** draws rows by `torch.randint`, saves model, optimizer and step by
  `torch.save` into one file, and after a restart runs from the top and loads that file. Schedule
  and random states are not in it.
- Killed while saving: slm and `Trainer` after the weights and before the optimizer state, the
  notebook with half of its file written. Seconds are of one run each, and vary with the machine.
- Speed and time to quality of the same three, measured in turns: `slm bench train` and
  `python benchmarks/quality.py`.
"""


def page(result: Mapping[str, Any]) -> str:
    """The page of docs/compare-peers.md."""
    import limits
    from _peers import PROMPT, SHAPE

    peers, machine, limit = result["peers"], result["machine"], result["limit"]
    named = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    best = max(limit["float32"], limit["bf16"]) / 1e9
    lines = [
        TITLE,
        "",
        " ".join(INTRODUCTION.split()).format(n_layer=SHAPE.n_layer, n_embd=SHAPE.n_embd),
        "",
        *table(peers, result["schedule"]),
        "",
        f"*{limits.describe(machine)}; {result['schedule']['threads']} threads each; best product "
        f"of two large matrices {limit['float32'] / 1e9:,.0f} GFLOP/s in float32, {best:,.0f} in "
        f"the fastest precision; {named}; {result['seconds']:.0f} s in all.*",
        "",
        "## How each was run",
        "",
        *(" ".join(each.split()) for each in _bullets(CONFIGURED)),
        "",
    ]
    failed = {n: p["in_save"]["error"] for n, p in peers.items() if p["in_save"]["error"]}
    for name, error in failed.items():
        lines += [f"{TITLES[name]}, started on what the kill in the save left: `{error}`", ""]
    lines += ["## What each writes after so short a training", ""]
    lines += [f"- {TITLES[n]}: {PROMPT}{' '.join(p['sample'].split())}" for n, p in peers.items()]
    return "\n".join(lines) + "\n"


def _bullets(text: str) -> list[str]:
    return [f"- {each}" for each in text.removeprefix("- ").split("\n- ")]


def main() -> None:
    default = Schedule()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--every", type=int, default=default.every, help="steps per checkpoint")
    parser.add_argument("--kill-at", type=int, default=default.kill_at)
    parser.add_argument("--kill-in-save", type=int, default=default.kill_in_save)
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--documents", type=int, default=default.documents)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these alone")
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, job, schedule = options.part
        part(name, json.loads(job), Schedule(**json.loads(schedule)))
        return
    fields = {name: getattr(options, name) for name in asdict(default)}
    result = run(Schedule(**fields), options.only)
    if options.page:
        options.page.write_text(page(result), encoding="utf-8")
    print(json.dumps(result) if options.json else page(result))


if __name__ == "__main__":
    main()
