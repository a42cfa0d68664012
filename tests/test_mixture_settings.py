"""The settings of a mixture: what is refused, where its paths are, and overrides inside it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from slm import keys
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.recipes import check_recipes, explain, load_recipe, parse_overrides
from slm.tokens.functions import check_functions, functions_of

TALES = {"source": "stories", "documents": 50, "weight": 0.7}
NOTES = {"source": "files", "path": "notes", "weight": 0.3}


def recipe(folder: Path, data: dict[str, Any]) -> Path:
    file = folder / "pipelines.yaml"
    file.write_text(
        yaml.safe_dump({"recipes": {"mixed": {"data": data, "train": {"max_steps": 4}}}})
    )
    return file


def load(folder: Path, data: dict[str, Any], *assignments: str) -> PipelineConfig:
    file = recipe(folder, data)
    return load_recipe("mixed", parse_overrides(list(assignments)), path=file)


BOTH = {"tales": TALES, "notes": NOTES}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": BOTH, "path": "x", "source": "files"}, "data.source is of one dataset"),
        ({"sources": BOTH, "documents": 5}, r"data.documents .* data.sources.notes.documents"),
        ({"sources": BOTH, "clean": {"min_chars": 9}}, "data.clean is of one dataset"),
        ({"sources": {"a.b": TALES}}, "'a.b' is no name of a source: at most 32 letters"),
        ({"sources": {"a": TALES, "A": TALES}}, "data.sources has A and a"),
        ({"sources": {"a": {**TALES, "weight": 0}}}, "data.sources.a.weight=0 .*number above 0"),
        ({"sources": {"a": {**TALES, "weigth": 1}}}, r"did you mean 'data.sources.a.weight'\?"),
        ({"sources": {"a": {"clean": {"min_char": 1}}}}, "'data.sources.a.clean.min_chars'"),
        ({"sources": {"a": {**TALES, "documents": 1.5}}}, "data.sources.a.documents=1.5"),
        ({"sources": {"a": {"source": "files"}}}, r"data.sources.a.path is empty.*sources.a.path="),
        ({"sources": {"a": "notes"}}, "data.sources='notes' is not valid; it takes: sources by"),
        ({"sources": [TALES]}, "data.sources is not valid"),
        ({"phases": [{"until": 1}]}, "there are none"),
        ({"sources": BOTH, "phases": [{"until": 0.5}]}, "the last one ends at 1"),
        ({"sources": BOTH, "phases": [{"until": 1}, {"until": 1}]}, "until=1 follows until=1"),
        ({"sources": BOTH, "phases": [{"weights": {"wiki": 1}}]}, "a weight of wiki"),
        (
            {"sources": BOTH, "phases": [{"weights": {"tales": 0, "notes": 0}}]},
            "every weight until=1 is 0",
        ),
        (
            {"sources": BOTH, "phases": [{"weights": {"tales": -1}}]},
            "data.phases.0.weights.tales=-1",
        ),
        ({"sources": BOTH, "phases": [{"untill": 1}]}, "data.phases.0.untill=1 is not valid"),
        ({"mixture": {}}, "did you mean 'data.sources'"),
    ],
)
def test_what_makes_no_sense_is_one_message(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, data)


def test_one_source_is_a_mixture_too(tmp_path: Path) -> None:
    assert list(load(tmp_path, {"sources": {"tales": TALES}}).data.sources) == ["tales"]


def test_an_override_of_a_source(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {"sources": BOTH},
        "data.sources.tales.weight=0.25",
        "data.sources.tales.documents=1e4",
        r"data.sources.notes.separator=\n\n",
        "data.sources.notes.path=123",
        "data.sources.notes.max_epochs=null",
        "data.phases=[{until: 0.5, weights: {notes: 1}}, {until: 1}]",
    )
    tales, notes = config.data.sources["tales"], config.data.sources["notes"]
    assert (tales.weight, tales.documents) == (0.25, 10_000)
    assert (notes.separator, notes.path, notes.max_epochs) == ("\n\n", "123", None)
    assert [phase.until for phase in config.data.phases] == [0.5, 1]
    assert notes.weight == 0.3


def test_a_misspelt_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown source 'note'.*notes"):
        load(tmp_path, {"sources": BOTH}, "data.sources.note.weight=1")
    config = load(tmp_path, {"sources": BOTH}, "data.sources.more.source=files",
                  "data.sources.more.path=x.txt")  # fmt: skip
    assert list(config.data.sources) == ["more", "notes", "tales"]


def test_paths_of_each_source_are_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("def keep(text):\n    return True\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    notes = {**NOTES, "clean": {"filter": "own.py:keep"}}
    config = load(tmp_path, {"sources": {**BOTH, "notes": notes}})
    assert config.data.sources["notes"].path == str(tmp_path / "notes")
    clean = config.of_source("notes").data.clean
    assert clean.filter == f"{tmp_path / 'own.py'}:keep"
    check_functions(functions_of(clean), ())  # the user's own pipelines.yaml names it
    given = load(tmp_path, {"sources": BOTH}, "data.sources.notes.path=other")
    assert given.data.sources["notes"].path == "other"


def test_a_function_that_only_the_command_line_names_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("def keep(text):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, {"sources": BOTH}, "data.sources.notes.clean.filter=own.py:keep")
    with pytest.raises(UserError, match="is not run"):
        check_functions(functions_of(config.of_source("notes").data.clean), ())


def test_a_path_may_be_left_to_the_command_line(tmp_path: Path) -> None:
    file = recipe(tmp_path, {"sources": {**BOTH, "notes": {"source": "files"}}})
    check_recipes(file)


def test_the_settings_of_a_source_are_explained() -> None:
    keys = [setting.key for setting in explain("data.sources")]
    assert keys[0] == "data.sources"
    assert {"data.sources.NAME.weight", "data.sources.NAME.clean.min_chars"} <= set(keys)
    [weight] = explain("data.sources.wiki.weight")
    assert weight.kind == "number above 0"
    with pytest.raises(UserError, match=r"did you mean 'data.sources.wiki.weight'"):
        explain("data.sources.wiki.weigth")


def test_the_name_of_a_mixture_is_that_of_its_recipe(tmp_path: Path) -> None:
    config = load(tmp_path, {"sources": BOTH})
    assert (config.model_name, config.folder_name) == ("mixed", "mixed")
    assert config.of_source("notes").folder_name == "notes"


def test_only_the_training_has_weights_in_its_key(tmp_path: Path) -> None:
    one = load(tmp_path, {"sources": BOTH})
    other = load(tmp_path, {"sources": BOTH}, "data.sources.notes.weight=0.5")
    for stage in ("download", "encode"):
        for name in BOTH:
            fields = keys.stage_fields(stage, one.of_source(name))
            assert fields == keys.stage_fields(stage, other.of_source(name))
    assert keys.config_sha256(one) != keys.config_sha256(other)
    assert "mixture" not in keys.stage_fields("train", load_recipe("quickstart"))
