"""Recipes and settings: what `--set` means, and that bad input is refused in one message."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slm.cli.options import Settings
from slm.config import PipelineConfig, Section
from slm.errors import UserError
from slm.recipes import dotted_keys, explain, load_recipe, parse_overrides

Config = Callable[..., PipelineConfig]


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.compile=on", True),
        ("train.precision=fp32", "fp32"),
        ("data.path=2024", "2024"),
        ("data.path=no", "no"),
        ("data.path='a b'", "a b"),
        ("data.separator=---", "---"),
        ("data.separator=#", "#"),
        (r'data.separator="\n\n"', "\n\n"),
        (r"data.separator=\n\n", "\n\n"),
        (r"data.separator=\t|\\n|\x1e|\u00e9|\d", "\t|\\n|\x1e|é|\\d"),
        (r"data.separator='\n'", r"\n"),
        (r"data.template={title}\n\n{body}", "{title}\n\n{body}"),
        (r"data.path=a\n.txt", r"a\n.txt"),
        ("data.separator=null", None),
        ("data.text_column=null", "null"),
        ("data.template={title}: {body}", "{title}: {body}"),
        ('data.template="{title}": {body}', '"{title}": {body}'),
        ("data.val_split=null", None),
        ("train.max_steps=100", 100),
        ("train.threads=auto", "auto"),
        ("train.threads=2", 2),
        ("train.deterministic=off", False),
        ('report.prompts=["Once", "no"]', ["Once", "no"]),
    ],
)
def test_text_is_taken_literally_and_all_else_as_yaml(
    assignment: str, value: object, tiny_config: Config
) -> None:
    overrides = parse_overrides([assignment])
    assert overrides == {assignment.partition("=")[0]: value}
    assert tiny_config(**{"data.path": "x", **overrides})


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_example_of_the_help_works_in_a_shell(shell: str) -> None:
    (example,) = re.findall(r"'data\.separator=[^']*'", Settings.__metadata__[0].help)
    for quoted in (example, example.replace("'", '"'), f'data.separator="{example[16:-1]}"'):
        command = f"printf %s {quoted}"
        assignment = subprocess.check_output([shell, "-c", command], text=True)
        assert parse_overrides([assignment]) == {"data.separator": "\n\n"}


def test_line_breaks_of_a_separator_are_those_that_are_read(tiny_config: Config) -> None:
    config = tiny_config(**parse_overrides([r"data.separator=\r\n--\r"]))
    assert config.data.separator == "\n--\n"
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("data.separator=", "data.separator=''"),
        ("data.shard_tokens=2147483648", "data.shard_tokens=2147483648"),
        ("train.max_seconds=.inf", "train.max_seconds=inf"),
        ("train.epochs=.inf", "train.epochs=inf"),
        ("registry.margin=.nan", "registry.margin=nan"),
        ("retrain.approval_hours=8761", "retrain.approval_hours=8761"),
        ("recipe=other", "not a setting: remove it"),
        ("recipe.x=1", "not a setting: remove it"),
        ("train.max_steps=[1", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(assignment: str, words: str, tiny_config: Config) -> None:
    with pytest.raises(UserError) as refused:
        tiny_config(**parse_overrides([assignment]))
    assert words in str(refused.value)


@pytest.mark.parametrize("recipe", ["[1, 2]", "words", "7"])
def test_a_recipe_that_is_no_mapping_is_refused(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(f"recipes: {{x: {recipe}, 2024: }}")
    with pytest.raises(UserError, match=r"recipe x is a (list|str|int), not a"):
        load_recipe("x", path=path)
    with pytest.raises(UserError, match="unknown recipe 'y'"):
        load_recipe("y", path=path)


def test_a_recipe_without_train_shows_no_password(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text("recipes: {x: {registry: {tracking_uri: 'http://me:secret@host'}}}")
    with pytest.raises(UserError) as refused:
        load_recipe("x", path=path)
    assert str(refused.value) == "train: Field required"


def test_every_key_can_be_named() -> None:
    keys = list(dotted_keys())
    assert {"train.max_steps", "data.clean.fix_text"} < set(keys)
    assert "recipe" not in keys


# ---- what a setting means -----------------------------------------------------------------------


def sections(section: type[Section] = PipelineConfig) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


def test_every_field_carries_its_text() -> None:
    for section in sections():
        for name, field in section.model_fields.items():
            text = (field.description or "").strip()
            assert text.endswith("."), f"{section.__name__}.{name}: {text!r}"


def test_settings_are_explained() -> None:
    assert [setting.key for setting in explain()] == list(dotted_keys())
    kinds = {setting.key: setting.kind for setting in explain()}
    assert kinds["train.max_steps"] == "whole number above 0 or null"
    assert kinds["train.compile"] == "true or false or auto"
    assert kinds["model.architecture"] == "gpt2 or qwen3"
    assert kinds["data.vocab_size"] == "whole number from 257 to 50,257"
    assert kinds["report.top_ks"] == "list of whole number above 0"
    (setting,) = explain("data.clean.min_chars")
    assert (setting.default, setting.text) == ("1", "Drop documents of fewer characters.")
    assert {setting.key.split(".")[0] for setting in explain("registry")} == {"registry"}
    with pytest.raises(UserError, match=r"did you mean 'train\.max_steps'"):
        explain("train.max_step")
