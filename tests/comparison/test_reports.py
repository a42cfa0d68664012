"""The page that lists all reports: what it lists, what it groups, what it marks."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from many_runs import START, add_report, held_out_sizes, make_run

import slm
from slm import storage
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.recipes import load_recipe
from slm.records import Version
from slm.run_folder import RunFolder

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
HOSTILE = "</td><script>alert(1)</script>"


def config(**changed: Any) -> PipelineConfig:
    """Of `quickstart`; `changed`: settings by dotted keys with `__` for the dot."""
    overrides = {name.replace("__", "."): value for name, value in changed.items()}
    return load_recipe("quickstart", {"train.max_steps": 60, **overrides}, path=PIPELINES)


def reported(root: Path, seed: int, bpb: float = 0.8, hours: float = 0, **made: Any) -> RunFolder:
    """A run with a report, whose training started that many hours after the first one's."""
    run = make_run(root, config(train__seed=seed), bpb, **made)
    journal = run.path / "metrics.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    lines = (json.dumps(entry | {"time": entry["time"] + 3600 * hours}) for entry in entries)
    journal.write_text("".join(f"{line}\n" for line in lines))
    add_report(run)
    return run


def note(run: RunFolder, version: str, server: str = "sqlite:///mlflow/mlflow.db") -> None:
    noted = Version(
        key="a" * 64, model="slm", version=version, aliases=["challenger"], run_id="r",
        tracking_uri=server,
    )  # fmt: skip
    storage.write_json(run.path / "registered.json", noted.model_dump(mode="json"))


def make_store(root: Path, versions: str, aliases: dict[str, str]) -> None:
    """The tables of MLflow that are read: its versions, and their aliases."""
    (root / "mlflow").mkdir()
    with closing(sqlite3.connect(root / "mlflow" / "mlflow.db")) as store, store:
        store.execute("CREATE TABLE model_versions (name, version, current_stage)")
        store.execute("CREATE TABLE registered_model_aliases (name, alias, version)")
        store.executemany("INSERT INTO model_versions VALUES ('slm', ?, 'None')", versions)
        rows = list(aliases.items())
        store.executemany("INSERT INTO registered_model_aliases VALUES ('slm', ?, ?)", rows)


def test_the_newest_is_first_and_what_is_not_comparable_is_apart(tmp_path: Path) -> None:
    old = reported(tmp_path, 1, 0.80)
    new = reported(tmp_path, 2, 0.90, hours=2)
    apart = reported(tmp_path, 3, 0.50, hours=1, sizes=held_out_sizes(30))
    other_text = reported(tmp_path, 4, 0.40, hours=-1, fingerprint=1.7)
    index = slm.report_index(tmp_path)
    names = [[each.run for each in group.reports] for group in index.groups]
    assert names == [[new.name, old.name], [apart.name], [other_text.name]]
    first = index.groups[0]
    assert first.best
    assert first.best.run == old.name
    assert index.groups[1].best is None
    assert first.reports[0].started == START + 2 * 3600
    assert first.reports[0].val_bpb == pytest.approx(0.9, abs=0.01)
    assert first.reports[0].data == "stories"
    page = index.html.read_text("utf-8")
    assert "4 reports; the newest is" in page
    places = [page.index(f">{name}</a>") for group in names for name in group]
    assert places == sorted(places)


def test_every_link_of_the_page_leads_to_a_report(tmp_path: Path) -> None:
    root = tmp_path / "data #1"
    reported(root, 1)
    index = slm.report_index(root)
    assert index.html == root / "reports.html"
    assert (root / index.groups[0].reports[0].report).read_text() == "<p>report</p>"
    moved = root.rename(tmp_path / "moved")
    assert f'href="{index.groups[0].reports[0].report}"' in (moved / "reports.html").read_text()


def test_runs_without_a_report_are_named_with_the_remedy(tmp_path: Path) -> None:
    stopped = make_run(tmp_path, config(train__seed=1), 0.8, state="stopped")
    bare = make_run(tmp_path, config(train__seed=2), 0.8)
    gone = reported(tmp_path, 3)
    (gone.path / "report" / "index.html").unlink()
    damaged = reported(tmp_path, 4)
    (damaged.path / "record.json").write_text("{")
    index = slm.report_index(tmp_path)
    assert index.groups == []
    reasons = {each.run: each.why for each in index.without_report}
    assert reasons[stopped.name] == f"stopped: slm train {stopped.name}"
    assert reasons[bare.name] == reasons[gone.name].replace(gone.name, bare.name)
    assert reasons[gone.name] == f"not written: slm report {gone.name}"
    assert "cannot be read" in reasons[damaged.name]
    page = index.html.read_text("utf-8")
    assert "No report yet" in page
    assert all(name in page for name in reasons)


def test_an_empty_data_folder_has_an_empty_page(tmp_path: Path) -> None:
    index = slm.report_index(tmp_path / "none")
    assert (index.groups, index.without_report) == ([], [])
    assert "No report yet" in index.html.read_text("utf-8")


def test_marks_are_those_of_the_store_and_not_those_of_the_note(tmp_path: Path) -> None:
    """A note remembers the aliases of the registration; since then another one was promoted."""
    runs = [reported(tmp_path, seed) for seed in range(1, 5)]
    for number, run in enumerate(runs, 1):
        note(run, str(number))
    note(runs[3], "7", "https://mlflow.example")
    make_store(tmp_path, "12", {"champion": "1"})
    (group,) = slm.report_index(tmp_path).groups
    marks = {
        each.run: [(version.uri, version.aliases) for version in each.registered]
        for each in group.reports
    }
    assert marks == {
        runs[0].name: [("models:/slm/1", ["champion"])],
        runs[1].name: [("models:/slm/2", [])],
        runs[2].name: [],  # deleted
        runs[3].name: [("models:/slm/7", None)],
    }
    page = (tmp_path / "reports.html").read_text("utf-8")
    assert page.count(">champion</mark>") == 1
    assert ">challenger</mark>" not in page


def test_text_from_outside_is_text_on_the_page(tmp_path: Path) -> None:
    run = reported(tmp_path, 1)
    add_report(run, HOSTILE)
    page = slm.report_index(tmp_path).html.read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_command_writes_it_and_prints_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    run = reported(tmp_path, 1)
    reported(tmp_path, 2, sizes=held_out_sizes(30))
    app(["report", "--index", "--json"], standalone_mode=False)
    fields = json.loads(capsys.readouterr().out)
    assert fields["html"] == str(tmp_path / "reports.html")
    assert {g["documents"] for g in fields["groups"]} == {40, 30}
    app(["report", "--index", "--open"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert run.name in shown
    assert "40 held-out documents" in shown
    assert "reports.html" in shown
    assert opened == [(tmp_path / "reports.html").as_uri()]
    for arguments in (["report"], ["report", run.name, "--index"]):
        with pytest.raises(slm.UserError, match="--index"):
            app(arguments, standalone_mode=False)
