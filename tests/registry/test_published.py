"""Exports that are published: whether they are the model that they claim to be, part by part."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from hub import Hub, serve_this_process
from run_folders import CONFIG, add_evaluation, empty_store, finish_run, start_run
from tiny_run import copy_run, shards_of
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.errors import UserError
from slm.registry import register
from slm.registry.published import Published
from slm.storage import write_record

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a run, and next to it its exports `hf`, `half` and `a.gguf`."""
    folder = tmp_path_factory.mktemp("published")
    run = copy_run(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_DATA", str(folder / "data"))
        slm.export(run, folder / "hf")
        slm.export(run, folder / "half", dtype="bf16")
        slm.export(run, folder / "a.gguf", dtype="q8_0")
    return folder


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the exports that a test may change."""
    monkeypatch.setenv("SLM_DATA", str(home / "data"))
    for name in ("hf", "half"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.copy(home / "a.gguf", tmp_path)
    return tmp_path


def run_of(home: Path) -> Path:
    return next((home / "data" / "runs").iterdir())


def differing(result: Published) -> dict[str, str]:
    return {part.name: part.difference for part in result.parts if not part.identical}


@pytest.mark.parametrize("name", ["hf", "half", "a.gguf"])
def test_an_export_is_the_model_that_it_claims_to_be(place: Path, home: Path, name: str) -> None:
    result = slm.verify_published(place / name)
    assert result.identical
    assert [part.name for part in result.parts] == ["weights", "config", "tokenizer"]
    assert run_of(home).name in result.model
    assert slm.verify_published(place / name, run_of(home).name).identical


def test_one_bit_of_one_weight_is_seen(place: Path) -> None:
    path = place / "hf" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert list(differing(slm.verify_published(place / "hf"))) == ["weights"]
    file = place / "a.gguf"
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    wrong = differing(slm.verify_published(file))
    assert list(wrong) == ["weights"]
    assert "1 of" in wrong["weights"]


def test_the_same_tensors_in_another_file_are_the_same_weights(place: Path) -> None:
    """As `transformers` saves them again."""
    path = place / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"format": "pt", "saved": "again"})
    assert slm.verify_published(place / "hf").identical
    name = next(iter(tensors))
    del tensors[name]
    safetensors.torch.save_file(tensors, path)
    assert f"{name} is missing" in differing(slm.verify_published(place / "hf"))["weights"]


def test_what_was_changed_in_config_and_tokenizer_is_named(place: Path) -> None:
    for name, key, value in (
        ("config.json", "rope_theta", 5.0),
        ("tokenizer_config.json", "add_bos_token", False),
    ):
        path = place / "hf" / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, key: value}))
    (place / "hf" / "README.md").write_text("a card of theirs")
    wrong = differing(slm.verify_published(place / "hf"))
    assert wrong == {
        "config": "config.json: rope_theta 5.0 instead of 10000.0",
        "tokenizer": "tokenizer_config.json: add_bos_token false instead of true",
    }
    (place / "hf" / "tokenizer_config.json").unlink()
    assert "is missing" in differing(slm.verify_published(place / "hf"))["tokenizer"]


def test_another_model_is_not_the_one_that_is_named(
    place: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_run(tmp_path / "others", seed=2)
    result = slm.verify_published(place / "a.gguf", other)
    assert list(differing(result)) == ["weights"]
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="are not here"):
        slm.verify_published(place / "hf")
    with pytest.raises(UserError, match="neither a folder"):
        slm.verify_published("nothing")


def test_a_version_is_held_to_what_the_registry_has(
    data_root: Path, tmp_path: Path, empty_registry: Path
) -> None:
    """Another version's name on sound files is seen, however consistent they are."""
    for key, trained in (("a", 0), ("b", 3)):
        path = start_run(data_root, key=key * 64)
        run = finish_run(path, key=key * 64, trained=trained)
        register.register(CONFIG, run, add_evaluation(run), None, shards_of(run), root=data_root)
    record = slm.export("models:/slm/1", tmp_path / "out")
    assert record.claim["version"] == "models:/slm/1"
    result = slm.verify_published(tmp_path / "out")
    assert result.identical
    assert result.model == "models:/slm/1"
    claim = {**record.claim, "version": "models:/slm/2"}
    write_record(tmp_path / "out", record.model_copy(update={"claim": claim}))
    assert list(differing(slm.verify_published(tmp_path / "out"))) == ["weights"]


@pytest.fixture
def empty_registry(data_root: Path) -> Path:
    return empty_store(data_root)


def test_the_command_exits_with_1_where_it_differs(place: Path) -> None:
    printed = CliRunner().invoke(app, ["verify", "--published", str(place / "a.gguf")])
    assert printed.exit_code == 0
    assert printed.stdout.count("identical") == 3
    (place / "half" / "generation_config.json").write_text("{}")
    command = ["verify", "--published", str(place / "half"), "--json"]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 1
    assert json.loads(printed.stdout)["identical"] is False


# ---- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_this_process(place / "huggingface", monkeypatch) as server:
        server.write_token = "secret"
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content")  # in huggingface_hub
@pytest.mark.parametrize("target", ["pushed", "pushed.gguf"])
def test_what_is_pushed_is_verified_from_the_hub(
    hub: Hub, place: Path, home: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="needs HF_TOKEN"):
        slm.export(run_of(home), place / "unsent" / target, push="us/stories")
    monkeypatch.setenv("HF_TOKEN", "secret")
    record = slm.export(run_of(home), place / target, push="us/stories")
    repository = hub.repositories["us/stories"]
    commit = repository.branches["main"]
    assert record.pushed == f"{hub.endpoint}/us/stories/commit/{commit}"
    assert set(record.files) < set(repository.commits[commit])
    result = slm.verify_published("us/stories")
    assert result.identical
    assert result.revision == commit
    weights = "pushed.gguf" if target.endswith("gguf") else "model.safetensors"
    files = dict(repository.commits[commit])
    files[weights] = files[weights][:-40] + bytes([files[weights][-40] ^ 1]) + files[weights][-39:]
    repository.commit(files)
    assert list(differing(slm.verify_published("us/stories"))) == ["weights"]
    assert slm.verify_published(f"us/stories@{commit}").identical
    assert len(hub.lines("repos/create")) == 1


def test_a_token_that_may_not_write_is_one_sentence(
    hub: Hub, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(UserError, match="refuses HF_TOKEN"):
        slm.export(run_of(home), place / "kept", push="us/stories")
    assert slm.verify_published(place / "kept").identical  # the export is complete
    with pytest.raises(UserError, match="no such model"):
        slm.verify_published("us/nothing")
