"""What a name means: runs and models by folder, name or record."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import start_run
from tiny_run import copy_run

import slm
from slm.errors import UserError
from slm.model import saved
from slm.registry.exporting import export
from slm.registry.opening import finished_run, load_model, model_folder, open_run


def test_a_run_is_opened_by_its_name_its_folder_and_its_record(tmp_path: Path) -> None:
    run = open_run(copy_run(tmp_path))
    assert run.record is not None
    assert run == open_run(run.name, tmp_path) == open_run(run.record)
    assert run.evaluation is not None
    assert run.best is not None
    assert run.evaluation.checkpoint == run.best.name


def test_a_model_is_loaded_from_a_run_its_name_its_record_and_a_checkpoint(tmp_path: Path) -> None:
    run = open_run(copy_run(tmp_path))
    assert run.record is not None
    best = run.record.checkpoint("best")
    for model in (run, run.name, run.record, best):
        assert model_folder(model, tmp_path) == best
    [sample] = slm.sample(load_model(run), "Once", max_new_tokens=3, temperature=0)
    assert (sample.prompt, sample.tokens) == ("Once", 3)


def test_a_device_that_is_not_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = open_run(copy_run(tmp_path))
    for device in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(UserError, match=f"device='{device}'"):
            load_model(run, device=device)


def test_a_run_that_is_not_finished_names_the_command_that_resumes_it(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    assert open_run(run).record is None
    with pytest.raises(
        UserError, match=r"`slm train tiny-\w+` resumes it, and `slm finish tiny-\w+`"
    ):
        finished_run(str(run))


class Thing:
    """Neither a run nor a model."""


@pytest.mark.parametrize("wrong", [None, 5, Thing(), ["run"], {"run": "a"}])
def test_what_is_neither_a_run_nor_a_model_is_bad_input(tmp_path: Path, wrong: Any) -> None:
    for take in (open_run, load_model, model_folder, finished_run):
        with pytest.raises(UserError, match="neither a run nor a model: give a run or its name"):
            take(wrong)


def test_a_text_that_is_no_name_is_bad_input() -> None:
    for text in ("Once upon a time " * 20, "a/" + "x" * 300):
        with pytest.raises(UserError, match="too long for the name of a file: give a run"):
            load_model(text)


def test_a_folder_of_something_else_is_no_damage(tmp_path: Path) -> None:
    run = open_run(copy_run(tmp_path))
    export(model_folder(run), tmp_path / "exported")
    with pytest.raises(UserError, match="exported holds a model for transformers"):
        load_model(tmp_path / "exported")
    for folder, message in (
        (run.path, "holds a run, not a model"),
        (tmp_path / "exported", "holds a model for transformers"),
        (tmp_path, "holds no model: give a run"),
        (tmp_path / "nowhere", "holds no model"),
    ):
        with pytest.raises(UserError, match=message):
            saved.load_model(folder)


def test_records_of_a_run_are_taken_for_it(tmp_path: Path) -> None:
    run = open_run(copy_run(tmp_path))
    assert run.best is not None
    assert open_run(run) == open_run(run.best) == run
    assert model_folder(run.best) == run.best.path
