import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.orchestration import sweep_outline
from slm.orchestration.display import Display, current, showing
from slm.progress import Progress
from slm.records import Evaluation, Run
from slm.storage import hashing_once
from tests.stages import SHARDS
from tests.sweeps.sweeping import RATES, Trainer

pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Trials that are scored, not trained, on shards that need not be made."""
    trainer = Trainer()
    monkeypatch.setattr(sweep_outline, "train_and_evaluate", trainer)
    monkeypatch.setattr(sweep_outline, "prepare", lambda sweep: SHARDS)
    return trainer


def call(*words: str) -> Any:
    space = [word for key, text in RATES.items() for word in ("--space", f"{key}={text}")]
    return CliRunner().invoke(app, ["sweep", "tiny", *space, *words], catch_exceptions=False)


def test_the_command_runs_a_sweep_and_shows_the_best(trainer: Trainer, data_root: Path) -> None:
    shown = call("--trials", "8", "--batch", "4", "--workers", "2")
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert sum(line.startswith("trial ") and line[6].isdigit() for line in lines) == 8
    assert any("failed" in line and "train_loss is nan" in line for line in lines)
    [folder] = (data_root / "sweeps").iterdir()
    assert folder.name in shown.output
    result = json.loads(call("--trials", "8", "--batch", "4", "--json").output.splitlines()[-1])
    assert result["best"]["number"] == min(
        (t for t in result["trials"] if t["val_bpb"]), key=lambda t: t["val_bpb"]
    )["number"]  # fmt: skip
    assert {"overrides", "run", "val_bpb", "weights_sha256", "seconds"} <= result["trials"][
        0
    ].keys()
    assert "distinguishable" in result
    assert set(trainer.trained.values()) == {1}


@pytest.mark.parametrize(("workers", "seeds"), [(1, 1), (1, 2), (3, 2)])
def test_progress_counts_the_shares_of_the_trainings_that_run(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, workers: int, seeds: int
) -> None:
    """Where half of the first of 4 trainings is done, an eighth of the sweep is."""
    shown: list[float] = []

    def training(config: PipelineConfig) -> tuple[Run, Evaluation]:
        with current().progress("train") as progress:
            for step in range(1, 5):
                progress("step", step, 4)
        with current().progress("evaluate") as progress:
            progress("documents", 1, 2)
        return trainer(config)

    class Recording(Display):
        @contextmanager
        def progress(self, name: str) -> Iterator[Progress]:
            yield lambda what, done, total: shown.append(done / (total or 1))

    monkeypatch.setattr(sweep_outline, "train_and_evaluate", training)
    with showing(Recording(print)):
        slm.sweep(
            "tiny", {"train.learning_rate": "log:1e-3:1e-2"}, trials=4, seeds=seeds, workers=workers
        )
    assert shown[-1] == 1
    assert max(shown) == 1
    if workers == 1:
        assert shown == sorted(shown)
        trainings = 4 * seeds
        assert shown[:4] == [step / 4 / trainings for step in range(1, 5)]
        assert shown[4] == shown[3]  # the evaluation of the same trial


def test_from_python_it_is_the_same(trainer: Trainer, project: Path) -> None:
    file = project / "pipelines.yaml"
    file.write_text(
        file.read_text() + "sweeps: {rates: {recipe: tiny, trials: 3, space: {model.n_layer: "
        "[1, 2, 3]}, overrides: {train.learning_rate: 0.004}, sampler: grid}}\n"
    )
    named = slm.sweep("rates")
    given = slm.sweep(
        "tiny", {"model.n_layer": "1,2,3"}, sampler="grid",
        overrides={"train.learning_rate": 0.004}, workers=3,
    )  # fmt: skip
    assert named.trials == given.trials
    assert named.winner is not None
    assert named.winner.values == {"model.n_layer": 1}
    shown = CliRunner().invoke(app, ["sweep", "rates", "--json"], catch_exceptions=False)
    assert json.loads(shown.output.splitlines()[-1])["best"]["number"] == named.best
    assert len(trainer.trained) == 3


def test_a_limit_in_seconds_is_named_before_it_starts(trainer: Trainer) -> None:
    shown = call("--trials", "2", "--set", "train.max_seconds=5")
    assert "warning: train.max_seconds: how far a trial gets" in shown.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny"], "tiny is a recipe: a sweep needs a space too"),
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "--space", "train.lr=1,2"], "train.learning_rate"),
        (["tiny", "--space", "model.n_layer=1,2", "--sampler", "bayes"], "sampler"),
        (["tiny", "--space", "model.n_layer=0,2"], "model.n_layer=0"),
        (["tiny", "--space", "model.n_layer=1,2", "--budget", "later"], "budget='later'"),
    ],
)
def test_bad_input_is_one_message_before_anything_runs(
    words: list[str], message: str, data_root: Path
) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["sweep", *words], catch_exceptions=False)
    assert not (data_root / "sweeps").exists()


def test_what_the_recipe_itself_lacks_stops_the_sweep(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that is no fault of a trial's settings is not recorded as a failed trial."""

    def refuse(config: Any) -> None:
        raise UserError("data.path=notes does not exist")

    trainer.hurdle = refuse
    result = slm.sweep("tiny", {"train.learning_rate": "2e-3,4e-3"})
    assert {trial.state for trial in result.trials} == {"failed"}
    monkeypatch.setattr(sweep_outline, "prepare", refuse)
    with hashing_once(), pytest.raises(UserError, match="does not exist"):
        slm.sweep("tiny", {"train.learning_rate": "1e-3,5e-3"})


def test_data_that_hold_out_other_documents_are_refused() -> None:
    other = SHARDS.model_copy(
        update={"splits": {"val": SHARDS.splits["val"].model_copy(update={"bytes": 11})}}
    )
    sweep_outline.check_held_out(SHARDS, SHARDS)
    with pytest.raises(UserError, match="scores on them cannot be compared"):
        sweep_outline.check_held_out(other, SHARDS)
