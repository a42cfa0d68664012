"""Sweeps without training: a trial's score is a function of its settings."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm import keys
from slm.config import PipelineConfig
from slm.errors import Untrainable
from slm.records import Evaluation, Run
from slm.storage import sha256_json
from slm.sweeps.definition import Sweep, define_sweep

RATES = {"train.learning_rate": "log:1e-3:1e-2", "model.n_layer": "1,2,3"}


def tiny_sweep(space: dict[str, Any] | None = None, **fields: Any) -> Sweep:
    """A sweep of the recipe `tiny` of the test's project."""
    return define_sweep("tiny", space or RATES, **{"trials": 6, "batch": 2, **fields})


def score(config: PipelineConfig) -> float:
    """Bits per byte with one best place, and a little that is of the seed."""
    rate = math.log(config.train.learning_rate / 4e-3)
    return 2 + rate**2 + 0.1 * config.model.n_layer + 0.001 * (config.train.seed % 7)


class Trainer:
    """Counts what it trains, and keeps it as a data folder does: the second time it is reused.

    Args:
        max_rate: the learning rate beyond which a training diverges.
        hurdle: called before each training; whatever it raises, nothing is trained.
        delay: seconds of a training, by its number.
    """

    def __init__(
        self,
        max_rate: float = 6e-3,
        hurdle: Callable[[PipelineConfig], None] = lambda config: None,
        delay: Callable[[int], float] = lambda number: 0,
    ) -> None:
        self.trained: Counter[str] = Counter()
        self.max_rate = max_rate
        self.hurdle = hurdle
        self.delay = delay
        self.lock = threading.Lock()

    def __call__(self, config: PipelineConfig) -> tuple[Run, Evaluation]:
        if config.train.learning_rate > self.max_rate:
            raise Untrainable(f"step 2: train_loss is nan at {config.train.learning_rate}")
        key = sha256_json(keys.stage_fields("train", config))
        if not (reused := key in self.trained):
            self.hurdle(config)
        with self.lock:
            if not reused:
                self.trained[key] += 1
            number = self.trained.total()
        time.sleep(self.delay(number))
        steps = config.train.max_steps or 1
        run = Run(
            key=key, path=Path(f"runs/tiny-{key[:12]}"), reused=reused, shards_key="1" * 64,
            best="step_000004", last="step_000004", step=steps, tokens=steps * 128,
            train_loss=1.0, val_loss=1.0, val_bpb=score(config), tok_per_sec=1000.0, seconds=10.0,
            parameters=10, weights_sha256=key, level="C",
        )  # fmt: skip
        evaluation = Evaluation(
            key=key, run=run.name, checkpoint=run.best, weights_sha256=key, documents=11,
            tokens=100, bytes=400, val_loss=1.0, val_bpb=score(config),
        )  # fmt: skip
        return run, evaluation
