"""The commands that look back: their JSON, their exit codes, and what they show a person."""

import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import empty_store
from scored import add_scores, task_of
from tiny_run import CLEAN, code, copy_run, flip_byte, shards_of

from slm import storage
from slm.cli import main
from slm.evaluation.evaluate import evaluate
from slm.figures import size
from slm.history.compare import PairComparison
from slm.registry import register as registering
from slm.run_folder import RunFolder
from slm.tracking.server import connect, default_uri

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def run(data_root: Path) -> Path:
    run = copy_run(data_root)
    empty_store(data_root)
    return run


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Invoke:
    """Runs `slm …`; returns the exit code and both streams."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def last_json(out: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(out.splitlines()[-1])
    return parsed


def register(run: Path) -> None:
    config, record = RunFolder(run).config, RunFolder(run).verified_record
    assert record is not None
    root = run.parents[1]
    registering.register(
        config,
        record,
        evaluate(config, record, shards_of(record)),
        None,
        shards_of(record),
        root=root,
    )


def test_lineage_and_models(invoke: Invoke, run: Path) -> None:
    assert "no versions yet" in invoke("models")[1]
    register(run)
    exit_code, out, _ = invoke("lineage", "models:/slm@challenger", "--json")
    result = last_json(out)
    assert exit_code == 0
    assert (result["name"], result["broken"]) == ("models:/slm/1", [])
    assert [link["name"] for link in result["links"]][-2:] == ["evaluation", "version"]
    assert set(result["links"][0]) == {
        "name", "value", "digest", "state", "notes", "files", "made_from"
    }  # fmt: skip
    shutil.rmtree(run.parents[1] / "sources")
    shown = invoke("lineage", run.name)[1]
    assert "tokenizer" in shown
    assert "source gone" in shown.splitlines()[-1]
    assert [v["run"] for v in last_json(invoke("models", "--json")[1])["versions"]] == [run.name]
    assert "models:/slm/1  challenger" in invoke("models")[1]


def test_scores_on_benchmarks_are_shown_next_to_the_evaluation(invoke: Invoke, run: Path) -> None:
    record = RunFolder(run).record
    assert record is not None
    add_scores(record, task_of(4), [True, True, True, False])
    out = invoke("lineage", run.name)[1]
    roots = [line.split()[0] for line in out.splitlines() if line[0] not in " │├└"]
    assert roots[:2] == ["evaluation", "benchmarks"]
    assert out.count("dataset ") == 1


def test_the_exit_code_of_reproduce_is_its_verdict(invoke: Invoke, run: Path) -> None:
    exit_code, out, err = invoke("reproduce", run.name, "--json")
    result = last_json(out)
    assert exit_code == 0
    assert out.count("\n") == 1
    assert (result["verdict"], result["level"]) == ("bit-identical", "C")
    assert result["first_difference"] is None
    assert set(result["compared"][0]) == {"name", "recorded", "rebuilt"}
    flip_byte(next(run.parents[1].glob("sources/*/train_00000.parquet")))
    exit_code, out, _ = invoke("reproduce", run.name)
    assert exit_code == 4
    assert "cannot be reproduced: source changed" in out
    assert last_json(invoke("reproduce", run.name, "--json")[1])["verdict"] == "cannot"
    exit_code, out, err = invoke("reproduce", "tiny-nowhere")
    assert exit_code == 2
    assert "unknown run" in err


def test_a_false_figure_is_shown_next_to_the_rebuilt_one(invoke: Invoke, run: Path) -> None:
    evaluation = RunFolder(run).evaluation
    assert evaluation is not None
    storage.write_record(evaluation.path, evaluation.model_copy(update={"val_bpb": 0.01}))
    exit_code, out, _ = invoke("reproduce", run.name)
    assert exit_code == 1
    assert "diverged at evaluation.val_bpb: recorded 0.01" in out
    assert f"evaluation.val_bpb  0.01      {evaluation.val_bpb}" in out
    exit_code, out, err = invoke("evaluate", run.name)
    assert exit_code == 1
    assert err.count("contradicts its own scores") == 1


def test_a_false_tag_of_a_version_is_named(invoke: Invoke, run: Path) -> None:
    register(run)
    connect(default_uri(run.parents[1])).set_model_version_tag("slm", "1", "slm.val_bpb", "0.01")
    exit_code, out, _ = invoke("reproduce", "models:/slm/1", "--json")
    result = last_json(out)
    assert exit_code == 1
    assert [r["name"] for r in result["compared"] if r["recorded"] != r["rebuilt"]] == [
        "tag.val_bpb"
    ]
    assert result["first_difference"]["what"] == "tag.val_bpb"


def test_runs_and_compare(invoke: Invoke, run: Path) -> None:
    assert [r["run"] for r in last_json(invoke("runs", "--json")[1])["runs"]] == [run.name]
    assert f"{run.name}  finished" in invoke("runs")[1]
    result = last_json(invoke("compare", run.name, run.name, "--json")[1])
    assert result["interval"]["difference"] == 0
    shown = invoke("compare", run.name, run.name)[1]
    assert "the same settings" in shown
    assert "no difference is shown" in shown


def test_a_data_folder_that_is_a_file_is_refused(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "file"))
    exit_code, _, err = invoke("runs")
    assert exit_code == 2
    assert f"the data folder {tmp_path / 'file'} is a file: point SLM_DATA at a folder" in err


def test_verify_takes_the_names_of_sources_and_of_unfinished_runs(
    invoke: Invoke, run: Path
) -> None:
    source = next((run.parents[1] / "sources").glob("tiny-*"))
    assert last_json(invoke("verify", source.name, "--json")[1]) == {"files": 1, "records": 1}
    (run / "record.json").unlink()
    left = run / "checkpoints" / "step_000002.corrupt-1"
    shutil.copytree(run / "checkpoints" / "step_000004", left)
    (left / "model.safetensors").write_bytes(b"damaged")
    result = last_json(invoke("verify", run.name, "--json")[1])
    assert (result["verdict"], result["stop"]) == ("identical", 4)
    exit_code, _, err = invoke("verify", run.name, "--steps", "3:9")
    assert exit_code == 2
    assert f"--steps 3:9: {run.name} has the steps 1 to 4 so far" in err
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "metrics.jsonl").unlink()
    exit_code, _, err = invoke("verify", run.name)
    assert exit_code == 2
    assert "has trained no step yet" in err


def test_a_command_hashes_each_file_once(
    invoke: Invoke, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open the run, to score its checkpoint and to find the evaluation that is there."""
    hashed, file_digest = Counter[str](), hashlib.file_digest

    def count(file: Any, *arguments: Any) -> Any:
        hashed[file.name] += 1
        return file_digest(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", count)
    assert invoke("evaluate", str(run), "--json")[0] == 0
    record = RunFolder(run).record
    assert record is not None
    assert hashed.keys() >= {str(run / name) for name in record.files}
    assert set(hashed.values()) == {1}


def test_gc_asks_before_it_deletes(
    invoke: Invoke, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run / "checkpoints" / "step_000009.tmp"
    left.mkdir()
    exit_code, out, _ = invoke("gc", "--dry-run")
    assert exit_code == 0
    assert "step_000009.tmp" in out
    assert "unfinished leftover" in out
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert invoke("gc")[0] == 0
    assert left.is_dir()
    exit_code, _, err = invoke("gc", "--json")
    assert exit_code == 2
    assert "--dry-run or --yes" in err
    result = last_json(invoke("gc", "--json", "--dry-run")[1])
    assert [item["path"] for item in result["going"]] == [str(left)]
    assert not result["removed"]
    assert last_json(invoke("gc", "--yes", "--json")[1])["removed"]
    assert not left.exists()
    assert (run / "record.json").is_file()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7e12, "7.0 TB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(int(count)) == text


# ---- references -------------------------------------------------------------------------------


def test_every_command_of_a_run_takes_every_form(
    invoke: Invoke, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(run)
    digits = run.name.removeprefix("tiny-")[:5]
    for reference in (
        run.name,
        digits,
        f"tiny-{digits}",
        "latest",
        "slm@challenger",
        "models:/slm",
    ):
        code, out, err = invoke("lineage", reference, "--json")
        assert code == 0, err
        assert last_json(out)["name"] in (run.name, "models:/slm/1")
        code, out, _ = invoke("compare", reference, run.name, "--json")
        assert (code, last_json(out)["a"]) == (0, run.name)
        assert invoke("verify", reference, "--json")[0] == 0
        code, out, err = invoke("sample", reference, "--max-new-tokens", "1", "--json")
        assert (code, len(last_json(out)["samples"])) == (0, 1)
    which = "models:/slm is taken as models:/slm/1, its newest version: none is champion"
    assert set(caplog.messages) == {which}


def test_a_command_without_a_model_is_of_the_only_one(invoke: Invoke, run: Path) -> None:
    code, _, err = invoke("promote")
    assert (code, "no model is registered yet" in err) == (2, True)
    register(run)
    code, out, _ = invoke("promote", "--force", "a test", "--json")
    decision = last_json(out)
    assert (code, decision["model"], decision["version"]) == (0, "slm", "1")
    code, _, err = invoke("rollback")
    assert (code, "models:/slm/1 has no predecessor" in err) == (2, True)


# ---- a file of one's own ----------------------------------------------------------------------


def test_a_run_is_evaluated_on_a_column_of_a_file(
    invoke: Invoke, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.csv"
    file.write_text("id,body\n1,A fox ran home.\n2,An owl slept.\n")
    code, out, _ = invoke("evaluate", run.name, "--data", str(file), "--column", "body", "--json")
    assert (code, last_json(out)["documents"], last_json(out)["bytes"]) == (0, 2, 28)
    # The format of the run's own files is not that of this one, nor is their template.
    settings = RunFolder(run).settings
    data = settings.config.data.model_copy(update={"format": "parquet", "template": "{a}-{b}"})
    config = settings.config.model_copy(update={"data": data})
    RunFolder(run).write_settings(replace(settings, config=config))
    again = invoke("evaluate", "latest", "--data", str(file), "--column", "body", "--json")
    assert last_json(again[1]) == last_json(out)
    for arguments, message in (
        (("--data", str(file), "--column", "bdy"), "unknown column 'bdy': did you mean 'body'?"),
        (("--data", str(file)), "--column NAME"),
        (("--column", "body"), "give --data FILE too"),
        (("--data", "nowhere.csv"), "--data nowhere.csv is not a file: give one of .parquet"),
    ):
        code, _, err = invoke("evaluate", run.name, *arguments)
        assert (code, message in err) == (2, True), err
        assert len(err.splitlines()) == 1


def test_many_runs_are_ranked_in_a_table_and_written_as_a_page(
    invoke: Invoke, run: Path, data_root: Path
) -> None:
    better = copy_run(data_root, learning_rate=3e-3)
    unfinished = run.with_name("tiny-0123456789ab")
    shutil.copytree(run, unfinished)
    (unfinished / "record.json").unlink()
    page = data_root / "page.html"
    code, out, err = invoke("compare", "tiny-*", "--html", str(page))
    assert code == 0, err
    assert [line.split()[-1] for line in out.splitlines() if re.match(r" +\d ", line)] == [
        better.name,
        run.name,
    ]
    assert f"slm train {unfinished.name} resumes it" in out
    assert page.read_text().startswith("<!doctype html>")
    result = last_json(invoke("compare", "tiny-*", "--json")[1])
    assert set(result) == {"runs", "settings", "rankings", "notes", "html"}
    assert result["settings"] == {"train.learning_rate": [6e-4, 3e-3]}
    (ranking,) = result["rankings"]
    assert [group["runs"] for group in ranking["groups"]] == [[better.name], [run.name]]
    both = last_json(invoke("compare", better.name, run.name, "--json")[1])
    assert set(both) == set(PairComparison.model_fields) - {"sources"}  # of a mixture alone
    code, _, err = invoke("compare", "tiny-*x", "--json")
    assert code == 2
    assert err.startswith("error: no run has a name like 'tiny-*x'")
