"""Recipes and settings: what `--set` means, and that bad input is refused in one message."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slm.cli.options import Settings
from slm.config import PipelineConfig, Section, project_root
from slm.errors import UserError
from slm.recipes import (
    check_recipes,
    default_recipe,
    describe,
    dotted_keys,
    explain,
    find_recipes,
    given_later,
    load_recipe,
    parse_overrides,
    read_pipelines,
    sections,
    shipped_pipelines,
)

Config = Callable[..., PipelineConfig]
SHIPPED = Path(__file__).parents[1] / "pipelines.yaml"


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
        ("data.train_split=null", None),
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
        ("data.seed=-1", "data.seed=-1: a seed is a whole number from 0 to 2**63 - 1"),
        ("train.seed=-1", "train.seed=-1: a seed is"),
        ("report.seed=9223372036854775808", "report.seed=9223372036854775808: a seed is"),
        ("recipe=other", "not a setting: remove it"),
        ("recipe.x=1", "not a setting: remove it"),
        ("train.max_steps=[1", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(assignment: str, words: str, tiny_config: Config) -> None:
    with pytest.raises(UserError) as refused:
        tiny_config(**parse_overrides([assignment]))
    assert words in str(refused.value)


def test_a_folder_adds_recipes_and_replaces_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {recipe.name for recipe in find_recipes(shipped_pipelines()).values()}
    path = tmp_path / "pipelines.yaml"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert project_root() == Path.cwd()
    assert {name for name, recipe in find_recipes().items() if recipe.shipped} == shipped
    before = load_recipe("quickstart")

    path.write_text("recipes: {mine: {train: {epochs: 1}}, quickstart: {train: {max_steps: 7}}}")
    assert project_root() == tmp_path
    recipes = find_recipes()
    assert [name for name, recipe in recipes.items() if not recipe.shipped] == [
        "mine",
        "quickstart",
    ]
    assert {recipes["mine"].file, recipes["quickstart"].file} == {path}
    assert set(recipes) == shipped | {"mine"}
    replaced = load_recipe("quickstart")
    assert replaced.train.max_steps == 7
    assert replaced.model != before.model  # the recipe is replaced whole, not merged
    assert load_recipe("tinystories", path=path) == load_recipe(
        "tinystories", path=shipped_pipelines()
    )
    with pytest.raises(UserError, match=r"unknown recipe 'quickstar'.* 'quickstart'"):
        load_recipe("quickstar")


@pytest.mark.parametrize("content", ["", "deployments: []", "recipes:"])
def test_a_file_without_recipes_adds_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(content)
    assert all(recipe.shipped for recipe in find_recipes(path).values())
    assert check_recipes(path) == len(find_recipes(path)) > 3


@pytest.mark.parametrize("content", ["[1]", "words", "recipes: [1]", "recipes: words"])
def test_a_file_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="has no mapping `recipes:`"):
        find_recipes(path)


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
    assert str(refused.value) == "recipe x: it has no section `train`"


# ---- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e3", "1000", "1_000", "1.0e3", "1.0e+3", "1000.0", "10.00e2"])
def test_a_whole_number_may_be_written_in_any_way(
    text: str, tiny_config: Config, tmp_path: Path
) -> None:
    for key in ("train.max_steps", "train.max_tokens", "train.tokens_per_step", "data.documents"):
        overrides = {**parse_overrides([f"{key}={text}"]), "model.seq_len": 8}
        value = tiny_config(**overrides).flat()[key]
        assert (value, type(value)) == (1000, int)
    path = tmp_path / "pipelines.yaml"
    path.write_text(
        f"recipes: {{x: {{train: {{max_steps: {text}}}, report: {{top_ks: [{text}, 2]}}}}}}"
    )
    config = load_recipe("x", path=path)
    assert (config.train.max_steps, config.report.top_ks) == (1000, (1000, 2))


def test_numbers_written_in_another_way_are_the_same_config(tiny_config: Config) -> None:
    plain, other = (
        tiny_config(**parse_overrides([f"train.max_tokens={text}", f"train.threads={threads}"]))
        for text, threads in (("10000", "2"), ("1e4", "2.0"))
    )
    assert plain == other


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.max_steps=1.5", "=1.5 is not valid; it takes: whole number above 0 or null"),
        ("train.max_steps=15e-1", "='15e-1' is not valid; it takes: whole number above 0 or null"),
        ("train.max_steps=true", "=True is not valid; it takes: whole number above 0 or null"),
        ("train.max_steps=1e999999999", "='1e999999999' is not valid; it takes: whole number"),
        ("train.max_steps=.nan", "=nan is not valid; it takes: whole number above 0 or null"),
        ("train.max_steps=0", "=0 is not valid; it takes: whole number above 0 or null"),
        ("train.threads=2.5", "=2.5 is not valid; it takes: whole number above 0 or auto"),
        ("train.threads=many", "='many' is not valid; it takes: whole number above 0 or auto"),
        ("train.learning_rate=fast", "='fast' is not valid; it takes: number above 0"),
        ("train.learning_rate=true", "=True is not valid; it takes: number above 0"),
        ("train.compile=perhaps", "='perhaps' is not valid; it takes: true or false or auto"),
        ("model.dropout=2", "=2 is not valid; it takes: number from 0 to 0.9"),
        (
            "report.top_ks=[1.5]",
            "=1.5 is not valid; it takes: list of whole numbers above 0, such as [20, 50]",
        ),
        (
            "report.prompts=Once",
            '=\'Once\' is not valid; it takes: list of texts, such as ["one", "two"], or null',
        ),
        ("data=5", "=5 is not valid; it takes: settings of its own, such as data.source"),
        ("registry.model=a/b", "='a/b' is not valid; it takes: at most 64 letters, digits, '_', "),
    ],
)
def test_what_a_setting_does_not_take_is_one_message_with_what_it_takes(
    assignment: str, message: str, tiny_config: Config
) -> None:
    with pytest.raises(UserError) as refused:
        tiny_config(**parse_overrides([assignment]))
    assert str(refused.value).startswith(assignment.partition("=")[0] + message)


# ---- what is refused of new configs alone -------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.beta1": 0.99999999}, "train.beta1=0.99999999 is 1 in float32"),
        ({"train.beta2": 0.99999999}, "train.beta2=0.99999999 is 1 in float32"),
        (
            {"train.schedule": "wsd", "train.warmup": 0.5, "train.cooldown": 0.6},
            "train.warmup=0.5 and train.cooldown=0.6 overlap",
        ),
    ],
)
def test_what_could_never_work_is_refused_and_old_runs_of_it_stay_readable(
    overrides: dict[str, object], words: str, tiny_config: Config
) -> None:
    with pytest.raises(UserError, match=words):
        tiny_config(**overrides)
    stored = tiny_config().model_dump(mode="json")
    for key, value in overrides.items():
        stored["train"][key.partition(".")[2]] = value
    assert PipelineConfig.model_validate(stored).flat().items() >= overrides.items()


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.schedule": "wsd", "train.warmup": 0.1, "train.cooldown": 0.9},
        {"train.schedule": "cosine", "train.warmup": 0.5, "train.cooldown": 0.6},
        {"train.beta2": 0.9999999},
    ],
)
def test_what_is_at_the_limit_is_not_refused(
    overrides: dict[str, object], tiny_config: Config
) -> None:
    assert tiny_config(**overrides).flat().items() >= overrides.items()


def test_every_key_can_be_named() -> None:
    keys = list(dotted_keys())
    assert {"train.max_steps", "data.clean.fix_text"} < set(keys)
    assert "recipe" not in keys


# ---- what a setting means -----------------------------------------------------------------------


def section_types(section: type[Section] = PipelineConfig) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from section_types(field.annotation)


def test_every_field_carries_its_text() -> None:
    for section in section_types():
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
    assert kinds["report.top_ks"] == "list of whole numbers above 0, such as [20, 50]"
    (setting,) = explain("data.clean.min_chars")
    assert (setting.default, setting.text) == ("1", "Drop documents of fewer characters.")
    assert {setting.key.split(".")[0] for setting in explain("registry")} == {"registry"}
    with pytest.raises(UserError, match=r"did you mean 'train\.max_steps'"):
        explain("train.max_step")


def test_the_only_recipe_of_a_file_needs_no_name(project: Path) -> None:
    assert default_recipe() == "tiny"
    file = project / "pipelines.yaml"
    file.write_text(
        f"{file.read_text()}".replace("  tiny:", "  other: {train: {epochs: 1}}\n  tiny:")
    )
    assert default_recipe() == "quickstart"


# ---- no word of pydantic's ----------------------------------------------------------------------

PYDANTIC = re.compile(
    r"Input should|should be a valid|valid (tuple|dictionary|string|integer|number|list|boolean)|"
    r"instance of|validation error|String should|Value error|pydantic|\[A-Z|\\d|type=|Extra inputs"
)
WRONG: list[object] = [
    None, True, -1, 1e99, float("nan"), "?", "", "a b/c", [], ["?"], [None], {}, {"x": 1}, [[1]],
    {"x": {"y": None}},
]  # fmt: skip


@pytest.mark.parametrize("key", [*dotted_keys(), *sections()])
def test_a_wrong_value_of_any_setting_is_answered_in_our_words(
    key: str, tiny_config: Config
) -> None:
    refused = 0
    for value in WRONG:
        try:
            tiny_config(**{key: value})
        except UserError as error:
            refused += 1
            message = str(error)
            assert not PYDANTIC.search(message), (value, message)
            assert "\n" not in message, (value, message)
            assert len(message) < 500, (value, message)
    assert refused


def test_a_recipe_with_wrong_sections_is_answered_in_our_words(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    for section in sections():
        if "." not in section:
            for text in ("7", "[1]", "words", "{x: 1}"):
                train = "" if section == "train" else ", train: {max_steps: 1}"
                path.write_text(f"recipes: {{x: {{{section}: {text}{train}}}}}")
                with pytest.raises(UserError) as refused:
                    load_recipe("x", path=path)
                assert section in str(refused.value)
                assert not PYDANTIC.search(str(refused.value))
    path.write_text("recipes: {'a b': {train: {max_steps: 1}}}")
    with pytest.raises(UserError, match=r"'a b'.* at most 64 letters"):
        load_recipe("a b", path=path)


# ---- descriptions -------------------------------------------------------------------------------


def test_every_shipped_recipe_has_a_description_and_no_key_or_config_does() -> None:
    shipped = read_pipelines(SHIPPED)["recipes"]
    for name, recipe in shipped.items():
        text = describe(name, recipe)
        assert 20 < len(text) < 100
        assert text.endswith(".")
        given = dict(given_later(recipe))
        assert "description" not in str(load_recipe(name, given, path=SHIPPED).model_dump())


def test_a_description_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    configs = []
    for line in ("", "description: Something, in\n     two lines.\n    "):
        path.write_text(f"recipes:\n  x:\n    {line}train: {{max_steps: 1}}\n")
        configs.append(load_recipe("x", path=path))
    assert configs[0] == configs[1]
    assert describe("x", read_pipelines(path)["recipes"]["x"]) == "Something, in two lines."
    path.write_text("recipes: {x: {description: [1], train: {max_steps: 1}}}")
    with pytest.raises(UserError, match=r"recipe x: description=\[1\] is not a text"):
        load_recipe("x", path=path)
    with pytest.raises(UserError, match="unknown setting 'description'"):
        load_recipe("quickstart", {"description": "y"}, path=SHIPPED)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("recipes:\n  a: {data: [}\n", "line 2, column 14: expected the node content"),
        ("recipes:\n  a:\n\ttrain: 3\n", "line 3, column 1: .*a tab: indent by blanks"),
    ],
)
def test_what_is_no_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=place) as raised:
        read_pipelines(path)
    assert "\n" not in str(raised.value)
