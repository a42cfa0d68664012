"""The pipeline without Prefect: up to any stage, each stage given what those before it made."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import stages

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.orchestration.outline import Until, run, run_pipeline

Config = Callable[..., PipelineConfig]
CALLS = ["download", "encode", "train", "evaluate", "benchmark", "write_report", "register"]


# Of a vocabulary of one's own: tests/test_own_vocabulary.py; of a mixture: test_mixture_results.py.
STAGES = [name for name in get_args(Until) if name not in ("tokenizer", "mix")]


@pytest.mark.parametrize(("count", "until"), list(enumerate(STAGES, 1)))
def test_it_runs_up_to_a_stage(
    count: int,
    until: Until,
    tiny_config: Config,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = stages.install(monkeypatch, data_root)
    made = run_pipeline(tiny_config(**{"benchmark.tasks": ["stories"]}), until)
    assert called == CALLS[:count]
    assert list(made["seconds"]) == STAGES[:count]
    assert made["reused"] == (["encode"] if count > 1 else [])
    assert ("val_bpb" in made, "champion" in made) == (count > 3, count > 7)


def test_without_tasks_there_is_no_stage_for_them(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    run_pipeline(tiny_config(), "report")
    assert called == [name for name in CALLS if name not in ("benchmark", "register")]
    with pytest.raises(UserError, match="no task is given"):
        run_pipeline(tiny_config(), "benchmark")


def test_all_of_it_gives_what_the_command_prints(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.install(monkeypatch, data_root)
    made = run_pipeline(tiny_config())
    folder = data_root / "runs" / stages.EVALUATION.run
    assert made["checkpoint"] == str(folder / "checkpoints" / "step_000002")
    assert made["report"] == str(folder / "report" / "index.html")
    assert (made["version"], made["champion"]) == ("models:/slm/3", True)


def test_a_recipe_by_its_name(
    project: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    assert run("tiny", {"train.max_steps": 3}, until="encode")["recipe"] == "tiny"
    assert called == CALLS[:2]


def test_what_cannot_be_trained_is_refused_before_the_download(
    tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = stages.install(monkeypatch, data_root)
    config = tiny_config(**{"train.threads": 100_000})
    with pytest.raises(UserError, match=r"train\.threads=100000"):
        run_pipeline(config)
    assert not called
    run_pipeline(config, "encode")  # which another machine may do
    assert called == CALLS[:2]


def test_a_stage_that_does_not_exist(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="did you mean 'encode'"):
        run_pipeline(tiny_config(), "encod")  # type: ignore[arg-type]
