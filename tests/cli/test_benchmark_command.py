"""`slm benchmark`: what it prints, its JSON, and its refusals."""

import json
from pathlib import Path

import pytest
from tiny_run import copy_run
from typer.testing import CliRunner

from slm.cli.main import app
from slm.errors import UserError
from slm.run_folder import RunFolder

PAIRS = [{"good": f"The cat {i} sat.", "bad": f"The cat {i} sit."} for i in range(4)]


@pytest.fixture
def run(data_root: Path) -> RunFolder:
    return RunFolder(copy_run(data_root))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(path)


def call(*arguments: str) -> str:
    return CliRunner().invoke(app, ["benchmark", *arguments], catch_exceptions=False).stdout


def test_a_table_and_the_same_as_json(run: RunFolder, pairs: str) -> None:
    printed = call(run.name, "--tasks", pairs)
    assert "pairs" in printed
    assert "not distinguishable from chance" in printed
    result = json.loads(call(run.name, "--tasks", pairs, "--json"))
    [task] = result["tasks"]
    assert (result["run"], result["reused"]) == (run.name, True)
    assert (task["name"], task["items"], task["chance"]) == ("pairs", len(PAIRS), 0.5)
    assert (Path(result["benchmarks"]) / "items.parquet").is_file()


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("blimb", "did you mean 'blimp'"),
        ("", "no task is given"),
        ("pairs=nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("x=hf:a/b@main", "is not a commit"),
    ],
)
def test_tasks_that_cannot_be_read_are_one_message(run: RunFolder, tasks: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        call(run.name, "--tasks", tasks)
    assert refused.value.exit_code == 2
    assert run.all_benchmarks == []
