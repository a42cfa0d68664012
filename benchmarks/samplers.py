"""The sampler `tpe` next to the quasi-random one: the best of as many trials, by seeds.

    python benchmarks/samplers.py --data FOLDER --out FOLDER --seeds 1 2 3 4 5 6

Each seed is one sweep by each sampler over four settings of `tinystories-sample`. Trainings are of
`--steps` steps on one thread of a CPU, so the result depends on no clock. The first ten trials of
both are the same and trained once. What counts is the best trial's bits per byte on all held-out
documents: the difference of the two samplers, by pairs of one seed. Stopped, it can be continued.
"""

import argparse
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

from scipy.stats import t as student

import slm
from slm.machine import available_cores

SPACE = {
    "train.learning_rate": "log:1e-3:5e-2",
    "train.muon_learning_rate": "log:5e-3:1e-1",
    "model.dropout": "0:0.2",
    "model.n_layer": "2,4,6",
}
SAMPLERS = ("random", "tpe")


def best_so_far(seed: int, data: Path, out: Path, trials: int, batch: int, steps: int) -> None:
    """Both sweeps of a seed; prints the lowest bits per byte after each trial of each."""
    os.environ["SLM_DATA"] = str(out / f"seed-{seed}")  # sweeps that run at once share no folder
    overrides = {
        "data.path": str(data),
        "train.device": "cpu",
        "train.threads": 1,
        "train.max_steps": steps,
        "train.evaluate_every": steps,  # scoring during a training costs as much as these steps
    }
    curves = {}
    for sampler in SAMPLERS:
        result = slm.sweep(
            "tinystories-sample",
            SPACE,
            name=f"samplers-{sampler}",
            overrides=overrides,
            sampler=sampler,
            trials=trials,
            batch=batch,
            seed=seed,
        )
        scores = [trial.val_bpb or float("inf") for trial in result.trials]
        curves[sampler] = list(accumulate(scores, min))
    (out / f"seed-{seed}.json").write_text(json.dumps(curves))
    print(json.dumps({"seed": seed, **{name: curve[-1] for name, curve in curves.items()}}))


def show(files: list[Path]) -> None:
    """The mean difference after 10, 15, 20 … trials, with Student's interval over the seeds."""
    curves = [json.loads(file.read_text()) for file in files]
    trials = len(curves[0]["tpe"])
    for after in [*range(10, trials, 5), trials]:
        gains = [curve["random"][after - 1] - curve["tpe"][after - 1] for curve in curves]
        line = f"after {after} trials: gain {statistics.mean(gains):+.4f} bits per byte"
        if len(gains) > 1:
            deviation = statistics.stdev(gains) / len(gains) ** 0.5
            line += f" ± {student.ppf(0.975, len(gains) - 1) * deviation:.4f} (95 %)"
        print(f"{line}, better with {sum(gain > 0 for gain in gains)} of {len(gains)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of TinyStories' parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    at_once = min(available_cores(), len(given.seeds))
    sweeps = partial(
        best_so_far,
        data=given.data,
        out=given.out.resolve(),
        trials=given.trials,
        batch=given.batch,
        steps=given.steps,
    )
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        list(pool.map(sweeps, given.seeds))
    show([given.out / f"seed-{seed}.json" for seed in given.seeds])


if __name__ == "__main__":
    main()
