"""Names: what a run, its model and its data are called, and that no result depends on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.recipes import load_recipe
from slm.run_folder import DataRoot
from slm.source.download import download
from slm.source.stories import stories
from slm.tokens.encode import encode
from slm.training.launch import prepare

Config = Callable[..., PipelineConfig]
SHIPPED = Path(__file__).parents[1] / "pipelines.yaml"


def documents(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for number, text in enumerate(stories(3, 0, count)):
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


# ---- after the data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("notes", "notes"),
        ("notes/*.txt", "notes"),
        ("/home/me/articles.jsonl.zst", "articles"),
        ("~/poems/", "poems"),
        (".", "my-project"),
        ("*.txt", "my-project"),
        ("sub/..", "my-project"),
        ("数据.csv", "files"),  # no name that a folder or a registry takes: the recipe's
    ],
)
def test_the_recipe_for_own_files_is_named_after_them(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    config = load_recipe("files", {"data.path": path}, path=SHIPPED)
    assert (config.folder_name, config.model_name) == (name, name)
    monkeypatch.chdir(tmp_path)  # it is fixed when the recipe is read
    stored = PipelineConfig.model_validate_json(config.model_dump_json())
    assert (stored.folder_name, stored.model_name) == (name, name)


def test_a_hub_dataset_and_stories_have_names_too() -> None:
    hub = {"data.source": "hub", "data.path": "OWNER/Some-Data"}
    assert load_recipe("files", hub, path=SHIPPED).folder_name == "Some-Data"
    generated = {"data.source": "stories", "data.documents": 10}
    assert load_recipe("files", generated, path=SHIPPED).folder_name == "files"


def test_a_name_that_is_given_names_folders_and_model(tiny_config: Config) -> None:
    config = tiny_config(name="mine")
    assert (config.folder_name, config.model_name, config.recipe) == ("mine", "mine", "tiny")
    assert tiny_config(**{"name": "mine", "registry.model": "ours"}).model_name == "ours"
    assert (tiny_config().folder_name, tiny_config().model_name) == ("tiny", "slm")
    for wrong in ("a b", "../a", "", "-a", 3):
        with pytest.raises(UserError, match="name"):
            tiny_config(name=wrong)


# ---- no result depends on it --------------------------------------------------------------------


def test_a_result_of_the_same_key_under_another_name_is_reused(
    tiny_config: Config, data_root: Path
) -> None:
    config, other = tiny_config(), tiny_config(name="mine")
    source = download(config)
    shards = encode(config, source)
    run = prepare(config, shards)
    assert {path.name[:5] for path in (source.path, shards.path, run.path)} == {"tiny-"}
    again = download(other)
    assert (again.path, again.reused) == (source.path, True)
    encoded = encode(other, again)
    assert (encoded.path, encoded.reused) == (shards.path, True)
    assert prepare(other, encoded) == run
    assert [path.name for path in (data_root / "runs").iterdir()] == [run.name]
    # What has another key is made under the name that is asked for.
    assert prepare(tiny_config(name="mine", **{"train.seed": 2}), shards).name.startswith("mine-")


def test_a_folder_of_another_key_that_ends_alike_is_not_taken(
    tiny_config: Config, data_root: Path
) -> None:
    source = download(tiny_config())
    record = json.loads((source.path / "record.json").read_text())
    other = source.key[:12] + "0" * 52
    assert DataRoot().folder("sources", "mine", source.key) == source.path
    assert DataRoot().folder("sources", "mine", other).name == f"mine-{source.key[:12]}"
    assert record["key"] == source.key


def test_keys_have_no_path_in_them(tiny_config: Config, tmp_path: Path, data_root: Path) -> None:
    """The same files give the same source wherever they are, and however they are named."""
    first = documents(tmp_path / "one" / "texts")
    second = shutil.copytree(first, tmp_path / "two[1]" / "notes")
    given: dict[str, Any] = {"data.source": "files", "data.documents": None}
    escaped = str(second).replace("[", "[[]")
    paths = (first, f"{first}/*.txt", second, f"{escaped}/*.txt", f"{escaped}/*")
    sources = [download(tiny_config(**given, **{"data.path": str(path)})) for path in paths]
    assert len({source.key for source in sources}) == 1
    assert [source.reused for source in sources] == [False, True, True, True, True]


# ---- where the data are -------------------------------------------------------------------------


@pytest.fixture
def project_with_texts(project: Path) -> Path:
    """A project in a folder with brackets, whose recipe names its own data."""
    folder = project.with_name("project [2]")
    project.rename(folder)
    text = (folder / "pipelines.yaml").read_text()
    own = "data: {source: files, path: texts, vocab_size: 512, val_fraction: 0.1}"
    given = "data: {source: stories, documents: 80, vocab_size: 512, val_fraction: 0.1}"
    assert given in text
    (folder / "pipelines.yaml").write_text(text.replace(given, own))
    documents(folder / "texts")
    return folder


def test_a_path_in_a_recipe_is_relative_to_its_file(
    project_with_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = project_with_texts / "a" / "b"
    inside.mkdir(parents=True)
    keys = set()
    for folder in (project_with_texts, inside):
        monkeypatch.chdir(folder)
        config = load_recipe("tiny")
        assert config.data.path == str(project_with_texts / "texts")
        keys.add(download(config).key)
    assert len(keys) == 1
    file = project_with_texts / "pipelines.yaml"
    text = file.read_text()
    file.write_text(text.replace("path: texts", "path: 'texts/*.txt'"))
    assert {download(load_recipe("tiny")).key} == keys


@pytest.mark.parametrize("path", ["/elsewhere/texts", "~/texts"])
def test_a_whole_path_in_a_recipe_is_kept(project_with_texts: Path, path: str) -> None:
    file = project_with_texts / "pipelines.yaml"
    file.write_text(file.read_text().replace("path: texts", f"path: {path}"))
    assert load_recipe("tiny", path=file).data.path == path


def test_a_path_on_the_command_line_is_relative_to_the_working_folder(
    project_with_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = project_with_texts / "a"
    documents(inside / "mine", 12)
    monkeypatch.chdir(inside)
    assert load_recipe("tiny", {"data.path": "mine"}).data.path == "mine"
    assert download(load_recipe("tiny", {"data.path": "mine"})).documents == 12
    with pytest.raises(UserError, match=r"data\.path=texts does not exist"):
        download(load_recipe("tiny", {"data.path": "texts"}))


def test_a_dataset_of_the_hub_is_no_path(project: Path) -> None:
    file = project / "pipelines.yaml"
    file.write_text(
        file.read_text().replace("source: stories, documents: 80,", "source: hub, path: a/b,")
    )
    assert load_recipe("tiny").data.path == "a/b"


def test_a_glob_works_in_a_folder_with_brackets(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    folder = documents(tmp_path / "texts [old]", 12)
    monkeypatch.chdir(folder)
    given = {"data.source": "files", "data.documents": None, "data.path": "*.txt"}
    assert download(tiny_config(**given)).documents == 12
