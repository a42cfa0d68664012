"""What `slm check` forecasts and what then happens: seconds and memory of three recipes.

Each recipe trains on generated stories for some steps, evaluation and checkpoints included. The
real time is the wall clock of the training process from its first step to its end; the real memory
is that process's peak. The forecast is made right before, from its usual probe.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import limits

import slm.source.download
import slm.training.launch
from slm.config import PipelineConfig
from slm.recipes import load_recipe
from slm.run_folder import RunFolder
from slm.tokens.encode import encode
from slm.training.forecast import forecast

STORIES = {"data.source": "stories", "data.path": "", "data.documents": 4000}
RECIPES: dict[str, dict[str, Any]] = {
    "quickstart": {"train.max_steps": 250},
    "tinystories-sample": {"train.max_steps": 150},
    "tinystories-gpt2": {
        "data.revision": None,
        "train.max_steps": 24,
        "train.tokens_per_step": 4096,
        "train.evaluate_documents": 64,
        "train.evaluate_every": 12,
    },
}


def run() -> dict[str, Any]:
    """`{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`; ratio: real over forecast."""
    rows = []
    with TemporaryDirectory() as temporary:
        for name, overrides in RECIPES.items():
            print(name, file=sys.stderr)
            config = load_recipe(name, {**STORIES, **overrides})
            real, expected = compare(config, Path(temporary))
            for metric, unit in (("seconds", "s"), ("memory_bytes", "bytes")):
                ratio = real[metric] / expected[metric]
                rows.append(limits.row(name, metric, real[metric], unit, ratio))
    return {"machine": limits.machine(), "rows": rows}


def compare(config: PipelineConfig, root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and memory as they were, and as they were forecast."""
    shards = encode(config, slm.source.download.download(config, root=root), root=root)
    cost = forecast(config, shards)
    trained = slm.training.launch.train(config, shards, root=root)
    events = {event["event"]: event for event in RunFolder(trained.path).journal}
    real = {
        "seconds": events["end"]["time"] - events["start"]["time"],
        "memory_bytes": events["step"]["memory_bytes"],
    }
    return real, {"seconds": cost.seconds, "memory_bytes": cost.memory_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = run()
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
