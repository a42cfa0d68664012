"""docs/quickstart.ipynb: what is published is sound, and a clean environment executes it."""

import ast
import importlib
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from wheels import ROOT, clean_checkout, run, wheel_of

import slm
from slm.records import Report

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
MAX_CELLS = 16
WEIGHTS = re.compile(r"(never interrupted|killed and resumed) +([0-9a-f]{64})")


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> dict[str, str]:
    """The code of each cell, by its id."""
    return {c["id"]: "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"}


def outputs(notebook: dict[str, Any], cell: str) -> list[dict[str, Any]]:
    [shown] = [c["outputs"] for c in notebook["cells"] if c["id"] == cell]
    return list(shown)


def printed(notebook: dict[str, Any], cell: str) -> str:
    return "".join("".join(o["text"]) for o in outputs(notebook, cell) if "text" in o)


def test_it_is_a_notebook_of_few_cells() -> None:
    notebook = read(NOTEBOOK)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) <= MAX_CELLS
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == keys | code


def test_its_code_compiles_and_uses_what_slm_has() -> None:
    used = set()
    for name, text in code_cells(read(NOTEBOOK)).items():
        tree = ast.parse(text, name)
        used |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "slm"
        }
    assert {"train", "sample", "load_model", "write_report", "export", "lineage"} <= used
    assert used <= set(slm.__all__)


def test_its_settings_are_settings() -> None:
    cell = code_cells(read(NOTEBOOK))["settings"].partition("config =")[0]
    names: dict[str, Any] = {}
    exec(cell, names)
    config = slm.load_recipe("quickstart", names["SETTINGS"])
    assert config.train.max_steps == names["STEPS"] > names["KILL_AT"]
    assert names["KILL_AT"] > config.train.checkpoint_every


def test_its_outputs_are_those_of_a_whole_execution() -> None:
    notebook = read(NOTEBOOK)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    check_outputs(notebook)


def check_outputs(notebook: dict[str, Any]) -> None:
    for name in code_cells(notebook):
        assert all(output["output_type"] != "error" for output in outputs(notebook, name))
        assert all(output.get("name") != "stderr" for output in outputs(notebook, name))
    for name in ("train", "resume"):
        assert any("image/png" in output.get("data", {}) for output in outputs(notebook, name))
    weights = dict(WEIGHTS.findall(printed(notebook, "resume")))
    assert len(weights) == 2
    assert len(set(weights.values())) == 1
    assert "SIGKILL" in printed(notebook, "resume")
    shown = [output.get("data", {}) for output in outputs(notebook, "report")]
    [report] = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert "bits per byte" in "".join(report)
    assert "unchanged" in printed(notebook, "lineage")


# ---- what is published ------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("quickstart_notebook")
    monkeypatch.delitem(sys.modules, "quickstart_notebook")
    return module


def test_what_names_a_folder_or_is_large_is_not_published(script: ModuleType) -> None:
    script.check(NOTEBOOK.read_text("utf-8"))
    script.check("in data/runs/quickstart, https://example.org/home/page")
    for path in ("/tmp/tmp1/work", "'/home/ada/x.py'", "File /usr/lib/python3"):
        with pytest.raises(ValueError, match="names a folder"):
            script.check(f"warning: {path}/a")
    with pytest.raises(ValueError, match="300,000 at most"):
        script.check("x" * 300_001)


def test_a_report_is_shown_in_a_notebook_and_published_as_markdown(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text('<p title="1">&amp;')
    (tmp_path / "report.md").write_text("# A model")
    report = Report(key="1" * 64, run="tiny", path=tmp_path)
    page, markdown = report._repr_html_(), report._repr_markdown_()
    assert page is not None
    assert 'srcdoc="&lt;p title=&quot;1&quot;&gt;&amp;amp;"' in page
    data = {"text/html": page, "text/markdown": markdown}
    bar = {"text/html": "<progress></progress>"}
    cell = {"cell_type": "code", "outputs": [{"data": data}, {"data": bar}, {"text": "x"}]}
    published = json.loads(script.as_text({"cells": [cell], "metadata": {}}))
    first, second, _ = published["cells"][0]["outputs"]
    assert first["data"] == {"text/markdown": "# A model"}
    assert second["data"] == bar

    (tmp_path / "index.html").unlink()
    assert report._repr_html_() is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_clean_environment_executes_it(tmp_path: Path) -> None:
    """Nothing of this project but its wheel; home, network and data folder are its own."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    sources = clean_checkout(tmp_path / "sources")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    paths = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))}
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    pip = (sys.executable, "-m", "pip", "-q", "install", "--no-index", "--no-deps", "--target")
    run(*pip, site, wheel_of(sources, tmp_path / "wheels"), cwd=tmp_path)

    path = tmp_path / "quickstart.ipynb"
    path.write_bytes(NOTEBOOK.read_bytes())
    nowhere = "http://127.0.0.1:9"
    output = run(
        python, sources / "benchmarks" / "quickstart_notebook.py", "--notebook", path,
        cwd=tmp_path, PATH=os.environ["PATH"], HOME=str(tmp_path / "home"),
        HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, no_proxy="127.0.0.1,localhost",
    )  # fmt: skip
    print(output)
    notebook = read(path)
    check_outputs(notebook)
    assert code_cells(notebook) == code_cells(read(NOTEBOOK))
    assert not (tmp_path / "home").exists()
