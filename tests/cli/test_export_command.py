"""`slm export`: what it prints, its JSON, its refusals; and what `slm check` names."""

import json
from pathlib import Path

import pytest
from tiny_run import copy_run
from typer.testing import CliRunner

from slm.cli.main import app
from slm.errors import UserError
from slm.storage import sha256_file


@pytest.fixture
def run(data_root: Path) -> str:
    return copy_run(data_root).name


def call(*arguments: str) -> str:
    return CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False).stdout


def test_a_folder_and_what_was_compared(run: str, tmp_path: Path) -> None:
    printed = call(run, str(tmp_path / "out"))
    assert "parity    logits within" in printed
    assert "greedy text identical" in printed
    assert "note      model.n_embd / model.n_head = 16: vLLM reads heads of 32 to 256" in printed
    result = json.loads(call(run, str(tmp_path / "half"), "--dtype", "f16", "--json"))
    assert result["folder"] == str(tmp_path / "half")
    assert set(result["files"]) == set(result["sha256"]) >= {"model.safetensors", "config.json"}
    assert result["claim"]["run"] == run
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_a_file_with_its_hash(run: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    result = json.loads(call(run, str(path), "--json"))
    assert result["file"] == str(path)
    assert result["sha256"] == sha256_file(path)
    assert result["parity"]["greedy_same"] == result["parity"]["greedy_tokens"] > 0
    assert result["parity"]["documents"] > 1
    with pytest.raises(UserError, match="exists already"):
        call(run, str(path))
    with pytest.raises(UserError, match="of gguf give f32, f16, bf16, q8_0"):
        call(run, str(tmp_path / "b.gguf"), "--dtype", "q4")
    assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {
        "a.gguf", "a.gguf.json", "Modelfile",
    }  # fmt: skip


def test_what_verify_needs_is_said(run: str) -> None:
    for wrong in (["verify"], ["verify", run, "--published", "x", "--steps", "1:2"]):
        with pytest.raises(UserError, match="--published"):
            CliRunner().invoke(app, wrong, catch_exceptions=False)
