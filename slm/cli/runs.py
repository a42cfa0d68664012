"""What the commands that take a RUN do with it: find it, score it, report and register it.

RUN is a run's folder, its name under `data/runs`, or `models:/NAME@ALIAS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import slm.evaluation.evaluate
import slm.registry.register
import slm.training.launch
from slm.config import DataConfig
from slm.errors import UserError
from slm.model.sample import generate
from slm.model.saved import load_model
from slm.orchestration.display import Display
from slm.orchestration.stages import reported
from slm.records import Evaluation, Report, Run, Version
from slm.registry.versions import resolve
from slm.run_folder import DataRoot, RunFolder, run_of_checkpoint


def open_run(text: str) -> tuple[RunFolder, Run]:
    """A finished run and its record. Raises UserError for any other."""
    run = run_folder(text)
    record = run.verified_record
    if record is None:
        raise UserError(
            f"the run {run.name!r} is not finished: `slm train {run.config.recipe}` with the same "
            "settings resumes it"
        )
    return run, record


def run_folder(text: str) -> RunFolder:
    """The run of a folder, a name or a model version."""
    if not text.startswith("models:"):
        return DataRoot().run(text)
    run = run_of_checkpoint(resolve(text))
    if run is None:
        raise UserError(f"the run of {text} is not on this machine: only its files are")
    return run


def checkpoint_folder(text: str) -> Path:
    """The folder to sample from: the best checkpoint of a run, a model's, or one given itself."""
    path = Path(text)
    return path.resolve() if (path / "model.safetensors").is_file() else resolve(text)


def evaluate(text: str, display: Display) -> tuple[RunFolder, Run, Evaluation]:
    """A run with its evaluation, made where it is not there."""
    folder, run = open_run(text)
    shards = folder.shards
    if shards is None:
        if (evaluation := folder.evaluation) is None:
            raise UserError(
                f"the shards of {run.name} are gone, and it was not evaluated: `slm encode "
                f"{folder.config.recipe}` with the same settings makes them"
            )
        return folder, run, evaluation
    evaluation = display.stage(
        "evaluate",
        lambda p: slm.evaluation.evaluate.evaluate(folder.config, run, shards, progress=p),
    )
    return folder, run, evaluation


def evaluate_file(text: str, file: Path, display: Display) -> dict[str, Any]:
    """The scores of a run or model on the documents of any file."""
    folder = checkpoint_folder(text)
    run = run_of_checkpoint(folder)
    data = run.config.data if run else DataConfig()
    with display.progress("evaluate") as progress:
        return slm.evaluation.evaluate.evaluate_file(folder, file, data, progress)


def write_report(text: str, display: Display) -> Report:
    """The report of a run, and its evaluation where that is not there."""
    folder, run, evaluation = evaluate(text, display)
    return _reported(folder, run, evaluation, display)


def register(text: str, display: Display) -> Version:
    """The model version of a run, with its evaluation and report where they are not there."""
    folder, run, evaluation = evaluate(text, display)
    report = _reported(folder, run, evaluation, display)
    config, shards = folder.config, folder.shards
    return display.stage(
        "register",
        lambda _: slm.registry.register.register(config, run, evaluation, report, shards),
    )


def _reported(folder: RunFolder, run: Run, evaluation: Evaluation, display: Display) -> Report:
    config, shards = folder.config, folder.shards
    return display.stage("report", lambda p: reported(config, run, evaluation, shards, p))


def write_samples(
    text: str, prompts: list[str], *, stream: TextIO | None, **settings: Any
) -> list[dict[str, Any]]:
    """What a run or model writes after each prompt, as JSON values.

    Args:
        stream: where the texts go as they grow, one after the other.
        settings: of `slm.model.sample.generate`.
    """
    folder = checkpoint_folder(text)
    model, tokenizer = load_model(folder, slm.evaluation.evaluate.device_of(folder))
    samples = []
    for prompt in prompts:
        samples += generate(model, tokenizer, [prompt], on_text=_writer(stream, prompt), **settings)
        if stream:
            stream.write("\n\n" if prompt is not prompts[-1] else "\n")
    fields = ("prompt", "completion", "tokens", "seconds")
    return [{name: getattr(sample, name) for name in fields} for sample in samples]


def _writer(stream: TextIO | None, prompt: str) -> Callable[[int, str], None] | None:
    """Writes the prompt before the first characters that follow it."""
    if stream is None:
        return None
    before = [prompt]

    def write(_: int, characters: str) -> None:
        stream.write((before.pop() if before else "") + characters)
        stream.flush()

    return write
