"""`slm ladder`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pipelines import PIPELINES
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.errors import UserError
from slm.run_folder import DataRoot

SIZES = "0.03M,0.1M"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pipelines.yaml").write_text(PIPELINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny",), "tiny is a recipe: give --budgets"),
        (("tini", "--budgets", "1k,2k"), "recipe"),
        (("tiny", "--budgets", "1k,2k", "--draw", "a.png"), "--draw a.png"),
        (("tiny", "--budgets", "1k,2k", "--draw", "no/a.svg"), "there is no folder no"),
        (("tiny", "--budgets", "1k,2k", "--sizes", SIZES, "--for", "soon"), "--for 'soon'"),
        (("tiny", "--budgets", "1k", "--sizes", SIZES), "--budgets 1,000 tokens"),
        (("tiny", "--budgets", "1k,2k", "--sizes", "tall,wide"), "size=tall"),
        (("tiny", "--budgets", "1k,2k", "--set", "size=1M"), "--set size"),
    ],
)
def test_bad_input_is_one_message_before_anything_runs(
    project: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["ladder", *arguments], catch_exceptions=False)
    assert not (project / "data").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ladder_trains_fits_and_answers_and_then_reuses_everything(project: Path) -> None:
    arguments = ["tiny", "--budgets", "2k,4k", "--sizes", SIZES, "--seeds", "1", "--for", "1s,1e12"]

    def run(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["ladder", *arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    drawing = project / "ladder.svg"
    first = run("--json", "--draw", str(drawing))
    assert len(first["rungs"]) == 4
    assert {rung["size"] for rung in first["rungs"]} == set(SIZES.split(","))
    assert [answer["best"]["budget"]["kind"] for answer in first["answers"]] == ["seconds", "flops"]
    assert first["fit"]["assumed"].keys() >= {"alpha", "beta"}
    assert Path(first["page"]).is_file()
    assert drawing.read_text().startswith("<svg")

    runs = {run.name: run.path.stat().st_mtime_ns for run in DataRoot().runs()}
    again = run("--json")
    assert again == first
    assert {run.name: run.path.stat().st_mtime_ns for run in DataRoot().runs()} == runs

    [folder] = first["sweeps"]
    assert slm.ladder(Path(folder).name, spend="1s").fit.law.model_dump() == first["fit"]["law"]
