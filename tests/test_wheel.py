"""The wheel: complete without a checkout, and it knows which code it was built from."""

import json
import os
import shutil
import sys
import sysconfig
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from wheels import ROOT, clean_checkout, git, install, run, wheel_by_hook, wheel_of

from slm.code_state import BUILD, state_of
from slm.recipes import find_recipes, shipped_pipelines
from slm.source.stories import stories

TINY = {
    "data.documents": 60, "data.vocab_size": 512, "data.val_fraction": 0.2, "model.n_layer": 1,
    "model.n_head": 2, "model.n_embd": 32, "model.seq_len": 32, "train.tokens_per_step": 128,
    "train.max_steps": 2, "report.max_new_tokens": 8, "registry.max_bpb": 99,
    "registry.beat_baselines": "false",
}  # fmt: skip


def setting(key: str) -> tuple[str, str]:
    return "--set", f"{key}={TINY[key]}"


SETTINGS = [word for key in TINY for word in setting(key)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_checkout(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(sources, tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    return install(wheel, tmp_path / "installed")


def slm(python: Path | str, folder: Path, *arguments: object, path: Path | None = None) -> str:
    """The output of a command, in a folder, with a home of its own and no network.

    Args:
        path: of an installation that the interpreter does not know by itself.
    """
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    home = folder.with_name("home")
    home.mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    kept |= {"PYTHONPATH": str(path)} if path else {}
    output = run(
        python, "-m", "slm.cli.main", *arguments, cwd=folder, **kept,
        HOME=str(home), HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere,
    )  # fmt: skip
    assert list(home.iterdir()) == []
    return output


def test_the_wheel_claims_one_name_and_has_all_that_a_run_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"slm"}
    assert len(tops) == 2
    package = {name for name in names if name.startswith("slm/")}
    tracked = run("git", "ls-files", "-co", "--exclude-standard", "slm", cwd=ROOT).splitlines()
    assert package == {*tracked, "slm/pipelines.yaml", f"slm/{BUILD}"}
    assert {"slm/report/page.css", "slm/report/page.html.j2", "slm/registry/serving.py"} <= package


def test_an_installation_runs_in_an_empty_folder_and_knows_its_code(
    sources: Path, installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    command = partial(slm, sys.executable, folder, path=installed)
    listed = command("recipes")
    assert all(name in listed for name in find_recipes(shipped_pipelines()))
    result = last(command("train", "quickstart", *SETTINGS, "--json"))
    assert [path.name for path in folder.iterdir()] == ["data"]
    made = Path(result["run"])
    assert made.parent == folder / "data" / "runs"
    recorded = json.loads((made / "record.json").read_bytes())["environment"]
    commit = git(sources, "rev-parse", "HEAD")
    modules = state_of(sources / "slm")["modules_sha256"]
    facts = {"commit": commit, "dirty": False, "diff_sha256": None, "modules_sha256": modules}
    assert facts.items() <= recorded.items()
    assert state_of(installed / "slm").items() <= recorded.items()

    edited = installed / "slm" / "figures.py"
    edited.write_text(edited.read_text() + "\n# edited\n")
    state = state_of(installed / "slm")
    assert (state["commit"], state["dirty"]) == (commit, True)
    assert state["diff_sha256"] == state["modules_sha256"] != modules
    links = last(command("lineage", made.name, "--json"))["links"]
    link = next(link for link in links if link["name"] == "code")
    assert (link["digest"], link["state"]) == (commit, "changed")
    assert link["notes"] == ["the code now has changes that are in no commit"]


def test_a_build_of_what_is_in_no_commit_is_dirty_and_an_archive_keeps_the_state(
    sources: Path, wheel: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sources, copy)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=copy)
    from_archive = wheel_by_hook(next(tmp_path.glob("*.tar.gz")), tmp_path / "archive")
    assert built(from_archive) == built(wheel)
    assert zipfile.ZipFile(from_archive).namelist() == zipfile.ZipFile(wheel).namelist()

    (copy / "slm" / "added.py").write_text("x = 1\n")
    state = built(wheel_by_hook(copy, tmp_path / "dirty"))
    assert state == state_of(copy / "slm")
    assert (state["dirty"], state["commit"]) == (True, built(wheel)["commit"])
    (copy / "slm" / "added.py").unlink()
    assert built(wheel_by_hook(copy, tmp_path / "clean")) == built(wheel)  # nothing left in build/


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_new_environment_takes_text_to_a_registered_model_and_reproduces_it(
    wheel: Path, tmp_path: Path
) -> None:
    """Nothing of this project but the wheel; its dependencies are those installed here."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (python, "-m", "pip")
    options = ("--no-index", "--no-deps", "--ignore-installed")
    run(*pip, "-q", "install", *options, wheel, cwd=tmp_path)
    assert (python.parent / "slm").is_file()
    run(*pip, "check", cwd=tmp_path)  # what it requires is here, in these versions

    folder = tmp_path / "empty"
    folder.mkdir()
    command = partial(slm, python, folder)
    made = last(command("run", *SETTINGS, "--json"))
    assert made["version"]
    assert [path.name for path in folder.iterdir()] == ["data"]
    again = last(command("run", *SETTINGS, "--json"))
    assert (again["run"], again["report"]) == (made["run"], made["report"])
    assert {"train", "report"} <= set(again["reused"])
    page = Path(made["report"]).read_text("utf-8")
    assert "<style>" in page
    reproduction = last(command("reproduce", Path(made["run"]).name, "--json"))
    assert reproduction["verdict"] == "bit-identical"

    texts = tmp_path / "tales.jsonl"
    texts.write_text("\n".join(json.dumps({"tale": text}) for text in stories(1, 0, 200)))
    folder = tmp_path / "own"
    folder.mkdir()
    command = partial(slm, python, folder)
    command("init", ".", "--data", texts)
    settings = [word for key in TINY if key != "data.documents" for word in setting(key)]
    made = last(command("run", *settings, "--json"))
    assert made["recipe"] == "tales"
    assert made["version"] == "models:/tales/1"


def last(output: str) -> dict[str, Any]:
    """The JSON object that a command ends with."""
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def built(wheel: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(zipfile.ZipFile(wheel).read(f"slm/{BUILD}"))
    return state
