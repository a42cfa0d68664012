"""Stages with what goes beside them: MLflow while it trains, the champion beside what is judged."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import slm.registry.gate
import slm.report.write
import slm.tracking.mirror
import slm.tracking.server
import slm.training.launch
from slm.config import PipelineConfig, data_root
from slm.orchestration.display import Display
from slm.records import Evaluation, JournalEntry, Parent, Progress, Report, Run, Shards, Version
from slm.registry.versions import CHAMPION, GateDecision, champion_run
from slm.run_folder import RunFolder

logger = logging.getLogger("slm.training")  # below `slm`, so that its lines reach the Prefect page


def train_mirrored(
    config: PipelineConfig,
    shards: Shards,
    progress: Progress,
    *,
    parent: Parent | None = None,
    turn: AbstractContextManager[None] | None = None,
) -> Run:
    """Trains, with MLflow kept up to date meanwhile. A finished run starts neither.

    Args:
        parent: the model that the training goes on from; None: it starts from the seed.
        turn: entered while it trains; waits where others train.
    """

    def around(run: RunFolder) -> AbstractContextManager[None]:
        return _both(turn or nullcontext(), slm.tracking.mirror.mirror(run))

    return slm.training.launch.train(
        config, shards, parent=parent, progress=progress, on_event=_log_event, around=around
    )


@contextmanager
def _both(
    first: AbstractContextManager[None], second: AbstractContextManager[None]
) -> Iterator[None]:
    with first, second:
        yield


def _log_event(event: JournalEntry) -> None:
    """Logs what a training does beside its steps, for the Prefect page."""
    facts = {name: value for name, value in event.items() if name not in ("event", "time")}
    if event["event"] != "step":
        words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        logger.info("training: %s, %s", event["event"], ", ".join(words))


def reported(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
    progress: Progress,
) -> Report:
    """The report, which compares the run with the champion where there is another one."""
    return slm.report.write.write_report(
        config, run, evaluation, shards, champion=lambda: champion_run(config), progress=progress
    )


def judge(config: PipelineConfig, version: Version, display: Display) -> GateDecision | None:
    """What the gate finds of a version; None where it is the champion. Nothing moves."""
    if CHAMPION in version.aliases:
        return None
    uri = slm.tracking.server.tracking_uri(config, data_root())
    with display.progress("judge") as progress:
        return slm.registry.gate.assess(
            version.uri, uri=uri, thresholds=config.registry, progress=progress
        )


def promote(
    config: PipelineConfig, version: Version, display: Display, verdict: GateDecision | None = None
) -> GateDecision | None:
    """Makes a version champion where the gate, or the given verdict, says so.

    None where it is the champion already, which is known without asking the gate.
    """
    name = version.uri
    if CHAMPION in version.aliases:
        display.write(f"promote   reused  {name} is the champion")
        return None
    started = time.monotonic()
    uri = slm.tracking.server.tracking_uri(config, data_root())
    with display.progress("promote") as progress:
        if verdict:
            verdict = slm.registry.gate.carry_out(verdict, uri=uri)
        else:
            verdict = slm.registry.gate.promote(
                name, uri=uri, thresholds=config.registry, progress=progress
            )
    seconds = display.seconds["promote"] = round(time.monotonic() - started, 3)
    display.write(f"promote   {verdict.decision} {name}: {verdict.reason}   {seconds:.1f} s")
    return verdict
