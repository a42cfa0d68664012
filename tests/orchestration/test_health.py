"""`slm doctor`: a sound place, and each broken thing with its remedy."""

import json
import socket
from pathlib import Path

import pytest
from servers import free_port

import slm
from slm.orchestration import health
from slm.orchestration.health import Finding, Health, doctor
from slm.storage import FORMAT


def findings(report: Health) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


@pytest.fixture(autouse=True)
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, str]]:
    """Ports of this test's own, so that nothing depends on what runs on this machine."""
    own = {name: (free_port(), f"--{name.lower()}-port") for name in health.PORTS}
    monkeypatch.setattr(health, "PORTS", own)
    return own


def test_in_a_sound_place_nothing_is_broken_and_nothing_is_made(
    project: Path, data_root: Path
) -> None:
    report = slm.doctor()
    by_name = findings(report)
    assert report.ok
    assert not data_root.exists()
    assert str(project / "pipelines.yaml") in by_name["pipelines.yaml"].value
    assert by_name["data folder"].facts == {
        "path": str(data_root),
        "from": "SLM_DATA",
        "exists": False,
    }
    assert by_name["memory"].facts["free"] <= by_name["memory"].facts["machine"]
    assert 1 <= by_name["cores"].facts["available"] <= by_name["cores"].facts["machine"]
    assert by_name["Prefect"].facts == {"address": None, "from": "default"}
    assert by_name["MLflow"].facts["from"] == "default"
    assert by_name["device"].facts["torch"]
    assert by_name["disk"].facts["free"] > 0
    assert set(by_name) >= {"Python", "slm", "packages", "CPU", "data versions", "variables"}
    assert "ok=True" in repr(report)
    json.dumps(report.model_dump(mode="json"))


@pytest.mark.parametrize("has_file", [True, False])
def test_the_origin_of_the_data_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    monkeypatch.delenv("SLM_DATA")
    if not has_file:
        (project / "pipelines.yaml").unlink()
    origin = findings(slm.doctor())["data folder"].facts["from"]
    assert origin == ("next to pipelines.yaml" if has_file else "in the working folder")


def test_a_server_that_does_not_answer_is_broken_and_its_origin_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:secret@127.0.0.1:{port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    report = doctor()
    by_name = findings(report)
    assert not report.ok
    for name, variable in (("Prefect", "PREFECT_API_URL"), ("MLflow", "MLFLOW_TRACKING_URI")):
        assert by_name[name].state == "broken"
        assert by_name[name].facts["from"] == variable
        assert f"unset {variable}" in by_name[name].remedy
    assert "secret" not in str(report.model_dump())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    file = project / "pipelines.yaml"
    own = f"registry: {{tracking_uri: 'http://127.0.0.1:{port}'}}\n    data:"
    file.write_text(file.read_text().replace("data:", own, 1))
    server = next(f for f in doctor().findings if f.facts.get("from", "").startswith("registry"))
    assert (server.state, server.facts["from"]) == ("broken", "registry.tracking_uri of tiny")


def test_a_port_in_use_is_a_note_with_another_port(
    project: Path, ports: dict[str, tuple[int, str]]
) -> None:
    port, option = ports["Prefect"]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        listening.listen()
        report = doctor()
    used = findings(report)[f"port {port}"]
    assert used.state == "note"
    assert f"slm up {option} {port + 1}" in used.remedy
    assert report.ok


def test_files_of_a_newer_slm_are_broken_and_damaged_ones_a_note(
    project: Path, data_root: Path
) -> None:
    run = data_root / "runs" / "tiny-123456789abc"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"format": FORMAT}))
    record = {"format": FORMAT, "environment": {"torch": "9.9"}}
    (run / "record.json").write_text(json.dumps(record))
    versions = findings(doctor())["data versions"]
    assert versions.value == f"format {FORMAT}: 2 files, torch 9.9: 1 run"
    (run / "config.json").write_text("{")
    assert findings(doctor())["data versions"].state == "note"
    (run / "config.json").write_text(json.dumps({"format": FORMAT + 1}))
    report = doctor()
    assert findings(report)["data versions"].state == "broken"
    assert "SLM_DATA" in report.problems[0].remedy


@pytest.fixture
def broken_place(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "file"))
    (project / "pipelines.yaml").write_text("recipes: {x: {train: {lr: 1}}}")
    return project


def test_a_broken_project_and_data_folder_are_findings_and_no_errors(broken_place: Path) -> None:
    report = doctor()
    broken = {finding.name: finding for finding in report.findings if finding.state == "broken"}
    assert set(broken) == {"pipelines.yaml", "data folder"}
    assert "did you mean 'train.learning_rate'?" in broken["pipelines.yaml"].value
    assert all(finding.remedy for finding in broken.values())


def test_a_full_disk_and_a_missing_package_are_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MIN_FREE", 10**30)
    monkeypatch.setattr(health, "PACKAGES", ("torch", "no-such-package"))
    by_name = findings(doctor())
    assert "slm gc" in by_name["disk"].remedy
    assert by_name["packages"].remedy == "pip install no-such-package"
