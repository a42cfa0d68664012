"""A data folder of format 1, as an earlier version left it: its results are read and reused.

`data/data-format-1.tar.xz` has a finished run, registered and champion, and one that was killed
after step 15 of 20, its newest checkpoint of step 10. Both were trained by commit c0f406e, with one
thread in float32. Paths in it begin with `/slm-data`.
"""

import hashlib
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from slm import storage
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import NewerFormat
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import ARITHMETIC, lineage, machine_differences
from slm.planning.plan import plan_config
from slm.records import Run, Shards, Source
from slm.registry.register import register
from slm.report.write import write_report
from slm.reproduction.reproduce import reproduce
from slm.run_folder import DataRoot, RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training.launch import train

ARCHIVE = Path(__file__).parent / "data" / "data-format-1.tar.xz"
FINISHED, STOPPED = "quickstart-d2f41224215b", "quickstart-0af8273eb1af"
PATHS_BEGIN_WITH = "/slm-data"

# Of the final weights of the stopped run, had it not been stopped, on an Intel with AVX-512.
WEIGHTS = "c77969f1ec1affc087060cafcf6f902170b4b5feb8f9817a5820cf9174c51f17"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    """The old data folder, in a project whose recipe is that of its runs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    data = tmp_path / "data"
    _move(data)
    config = json.loads((data / "runs" / FINISHED / "config.json").read_bytes())["config"]
    recipe = {name: section for name, section in config.items() if name != "recipe"}
    (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump({"recipes": {"quickstart": recipe}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_DATA", str(data))
    return DataRoot(data)


def _move(data: Path) -> None:
    """Replaces the old paths, which MLflow and our notes of it keep."""
    for path in (*data.glob("runs/*/registered.json"), *data.glob("runs/*/mlflow.json")):
        path.write_text(path.read_text().replace(PATHS_BEGIN_WITH, str(data)))
    with closing(sqlite3.connect(data / "mlflow" / "mlflow.db")) as store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type='table'"):
            for column in store.execute(f'PRAGMA table_info("{table}")').fetchall():
                store.execute(
                    f'UPDATE "{table}" SET "{column[1]}" = replace("{column[1]}", ?, ?) '
                    f"WHERE typeof(\"{column[1]}\") = 'text'",
                    (PATHS_BEGIN_WITH, str(data)),
                )
        store.commit()


def command(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def config_of(root: DataRoot, name: str) -> PipelineConfig:
    return root.run(name).config


def data_of(root: DataRoot, name: str) -> tuple[PipelineConfig, Source, Shards]:
    config = config_of(root, name)
    source = download(config, root=root.path)
    return config, source, encode(config, source, root=root.path)


# ---- reading it -------------------------------------------------------------------------------


def test_commands_that_look_work_on_it(root: DataRoot) -> None:
    runs = {run["run"]: run for run in command("runs")["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        FINISHED: "finished",
        STOPPED: "stopped",
    }
    [version] = command("models")["versions"]
    assert (version["name"], version["aliases"]) == ("models:/slm/1", ["champion"])
    assert version["run"] == FINISHED
    chain = command("lineage", "models:/slm@champion")
    assert set(chain["broken"]) <= {"code", "environment"}  # this is another commit
    [sample] = command("sample", FINISHED, "--prompt", "Once", "--max-new-tokens", "5")["samples"]
    assert sample["tokens"] == 5


def test_every_stage_of_the_finished_run_is_reused(root: DataRoot) -> None:
    config, source, shards = data_of(root, FINISHED)
    run = train(config, shards, root=root.path)
    evaluation = evaluate(config, run, shards)
    report = write_report(config, run, evaluation, shards)
    version = register(config, run, evaluation, report, shards, root=root.path)
    made = (source, shards, run, evaluation, report, version)
    assert {type(record).__name__: record.reused for record in made} == {
        "Source": True,
        "Shards": True,
        "Run": True,
        "Evaluation": True,
        "Report": True,
        "Version": True,
    }
    assert (run.name, version.uri, version.aliases) == (FINISHED, "models:/slm/1", ["champion"])


def test_the_stopped_run_resumes_with_the_same_bits(root: DataRoot) -> None:
    config, _, shards = data_of(root, STOPPED)
    run = train(config, shards, root=root.path)
    assert run.name == STOPPED
    entries = list(RunFolder.of(run).journal)
    assert [e["step"] for e in entries if e["event"] == "resume"] == [10]
    assert [e["step"] for e in entries if e["event"] == "step"] == list(range(1, 21))
    diverged = [e["step"] for e in entries if e["event"] == "diverged"]
    if computes_alike(root.run(FINISHED)):
        assert not diverged
        assert run.weights_sha256 == WEIGHTS
    else:
        assert set(diverged) <= set(range(11, 16))  # those that both machines made


def test_the_finished_run_is_reproduced(root: DataRoot) -> None:
    run = root.run(FINISHED)
    result = reproduce(run)
    alike = computes_alike(run)
    assert (result.expected is None) == alike
    verdicts = ("bit-identical",) if alike else ("bit-identical", "within tolerance")
    assert result.verdict in verdicts, result.sentence
    assert any("c0f406e" in note for note in result.notes)  # the commit that trained it


def computes_alike(run: RunFolder) -> bool:
    """Whether this machine gives the bits of the run: they depend on torch and the kind of CPU."""
    record = run.record
    assert record is not None
    return not machine_differences(record.environment, ARITHMETIC)


def test_a_plan_reuses_and_resumes_what_is_in_it(root: DataRoot) -> None:
    plan = plan_config(config_of(root, FINISHED), root=root.path)
    assert {stage.stage: stage.action for stage in plan.stages} == dict.fromkeys(
        ("download", "encode", "train", "evaluate", "report", "register"), "reused"
    )
    assert plan["train"].result == str(root.path / "runs" / FINISHED)
    assert plan["register"].result == "models:/slm/1"
    stopped = plan_config(config_of(root, STOPPED), root=root.path)["train"]
    assert (stopped.action, stopped.step, stopped.max_steps) == ("resumed", 10, 20)
    config = config_of(root, FINISHED)
    other = config.data.model_copy(update={"documents": 77})
    edited = plan_config(config.model_copy(update={"data": other}), root=root.path)
    assert edited["download"].changed == {"data.documents": (config.data.documents, 77)}


def test_settings_are_migrated_in_memory_and_the_file_stays(root: DataRoot) -> None:
    run = root.run(FINISHED)
    before = (run.path / "config.json").read_bytes()
    assert json.loads(before)["shards"].endswith(run.settings.shards_key[:12])
    assert run.settings.parent_key is None
    assert run.shards is not None
    assert (run.path / "config.json").read_bytes() == before


# ---- a newer format ---------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    """The content of every file that is no lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock") and path.name != "mlflow.db"
    }


@pytest.mark.parametrize("name", ["record.json", "config.json", "plan.json"])
def test_a_newer_format_is_one_message_and_nothing_is_touched(root: DataRoot, name: str) -> None:
    """Never corruption: not quarantined, not deleted, not rewritten."""
    config, _, shards = data_of(root, FINISHED)
    run = root.run(FINISHED)
    path = run.path / name
    fields = json.loads(path.read_bytes())
    fields |= {"format": storage.FORMAT + 1, "new": [1]}
    if fields.pop("sha256", None):
        fields["sha256"] = storage.sha256_json(fields)
    path.write_text(json.dumps(fields))
    before = tree(root.path)
    record = storage.read_record(run.path, Run, verify=False) if name != "record.json" else None
    works = {
        "train": lambda: train(config, shards, root=root.path),
        "lineage": lambda: lineage(run),
        "reproduce": lambda: reproduce(run),
    }
    for work in works.values():
        with pytest.raises(NewerFormat) as raised:
            work()
        assert raised.value.exit_code == 2
        message = str(raised.value)
        assert str(path) in message
        assert f"format {storage.FORMAT + 1}" in message
        assert f"up to {storage.FORMAT}" in message
    assert tree(root.path) == before
    assert record is None or record.key
    states = {facts["run"]: facts["state"] for facts in command("runs")["runs"]}
    assert states[FINISHED] == ("newer" if name == "record.json" else "finished")
