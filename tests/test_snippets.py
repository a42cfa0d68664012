"""What README, docs and the report show to be typed: commands, Python, YAML, settings."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pages import PAGES, ROOT, Block, blocks, prose
from tiny_run import CLEAN, code, copy_run
from typer.exceptions import TyperException

import slm
from slm.cli.main import app
from slm.cli.options import load
from slm.config import PipelineConfig, SourceConfig
from slm.recipes import dotted_keys, load_recipe, read_pipelines
from slm.report.cards import commands
from slm.run_folder import RunFolder
from slm.sweeps.definition import load_sweep, sweep_names

PIPELINES = ROOT / "pipelines.yaml"
COMMANDS = [words for block in blocks("bash") for words in block.commands()]
OF_SLM = [words[1:] for words in COMMANDS if words[0] in ("slm", ".venv/bin/slm") and words[1:]]
DEPLOYED = [words[3] for words in OF_SLM if words[:3] == ["prefect", "deployment", "run"]]
GROUPS = [["launch"]]  # of commands: one alone prints its help
VALUES = ("--set", "--set-each", "--space")  # options whose value begins with a setting


def in_sentences(pattern: str) -> list[str]:
    """What a page has as code in its sentences."""
    return sorted({code for page in PAGES for code in re.findall(pattern, prose(page.read_text()))})


LINES = in_sentences(r"`((?:slm|\.venv/bin/slm) [a-z][^`\n|…]+)`")  # no option that acts itself
CALLS = in_sentences(r"`(slm\.\w+\([^`]*\))`")


def name_of(block: Block) -> str:
    return f"{block.page}-{block.number}"


# ---- commands -----------------------------------------------------------------------------------


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The arguments of a command as the CLI parses them; exits where it refuses them."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    context = group.make_context("slm", list(arguments))
    name, command, rest = group.resolve_command(context, list(arguments))
    assert command is not None
    if isinstance(command, typer.core.TyperGroup):  # such as `slm launch`
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None
    return command.make_context(name, rest, parent=context).params


def check(arguments: list[str]) -> None:
    """Hold a command line to the CLI, and its recipe and settings to `pipelines.yaml`."""
    given = parsed(arguments)
    recipe = given.get("recipe")
    names_a_run = recipe is not None and re.search(r"-[0-9a-f]{12}$", recipe)
    if recipe in sweep_names():
        load_sweep(recipe)
    elif recipe not in (None, "RECIPE", "RUN") and not names_a_run:
        load(recipe, [*(given.get("settings") or []), *needs_path(given)])


def needs_path(given: dict[str, Any]) -> list[str]:
    """The path that a recipe leaves to the command line."""
    stated = " ".join(given.get("settings") or [])
    recipe = read_pipelines(PIPELINES)["recipes"][given["recipe"]]
    of_files = recipe.get("data", {}).get("source") == "files"
    return ["data.path=."] if of_files and "data.path=" not in stated else []


@pytest.mark.parametrize("arguments", OF_SLM, ids=" ".join)
def test_every_command_that_is_shown_is_one(arguments: list[str]) -> None:
    check(arguments)


@pytest.mark.parametrize("line", LINES)
def test_every_command_in_a_sentence_is_one(line: str) -> None:
    words = [word if word != "N" else "1" for word in shlex.split(line)[1:]]
    if words in GROUPS:
        return
    try:
        parsed(words)
    except TyperException as error:  # a sentence may leave values out, but invent no option
        if not re.search("^Missing argument|requires an argument", error.format_message()):
            raise


def test_a_command_that_is_none_is_seen() -> None:
    for wrong in (["sampel", "RUN"], ["sample", "RUN", "--topk", "3"], ["export", "RUN"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parsed(wrong)
    with pytest.raises(slm.UserError, match="did you mean"):
        check(["run", "quickstart", "--set", "train.max_step=3"])


def test_there_are_commands_in_the_pages() -> None:
    assert len(OF_SLM) > 100
    assert len(LINES) > 50
    assert len(DEPLOYED) > 3


def test_every_setting_that_a_command_changes_exists() -> None:
    """Also where its recipe is a placeholder."""
    given = [*COMMANDS, *map(shlex.split, LINES)]
    options = [pair for words in given for pair in pairwise(words) if pair[0] in VALUES]
    keys = {value.partition("=")[0] for _, value in options}
    assert len(keys) > 15
    of_sources = {key for key in keys if re.match(r"data\.sources\.\w+\.", key)}
    assert {key.split(".", 3)[3] for key in of_sources} <= {*SourceConfig.model_fields}
    assert keys - of_sources <= {*dotted_keys(), "KEY"}


def test_every_deployment_that_is_run_in_a_page_exists() -> None:
    pipelines = read_pipelines(PIPELINES)
    deployments = pipelines["deployments"]
    names = {f"{Path(d['entrypoint']).stem.split('.')[0]}/{d['name']}" for d in deployments}
    assert set(DEPLOYED) <= names | {f"sweep/{name}" for name in pipelines["sweeps"]}


def test_every_command_that_a_text_or_message_names_exists() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    sources = [*PAGES, *(ROOT / "slm").rglob("*.py"), *(ROOT / "slm").rglob("*.j2")]
    named = {name for path in sources for name in re.findall(r"`slm ([a-z]+)", path.read_text())}
    assert len(named) > 10
    assert named <= set(group.commands)


# ---- YAML ---------------------------------------------------------------------------------------


def contents() -> Iterator[dict[str, Any]]:
    """What each block of YAML has, with null for what an earlier block of its page names."""
    for block in blocks("yaml"):
        text = block.code.replace("recipes: …\n", "")
        own = "|".join(re.findall(r"&([\w-]+)", text))
        content = yaml.safe_load(re.sub(rf"(?<=: )\*(?!(?:{own})\b)[\w-]+", "null", text))
        if isinstance(content, dict):
            yield content


def test_every_recipe_and_sweep_of_a_page_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_filters.py").write_text("def keep(text): ...\ndef change(text): ...\n")
    shipped = read_pipelines(PIPELINES)["recipes"]
    loaded = 0
    for content in contents():
        recipes = content.get("recipes") or {}
        sections = {k: v for k, v in content.items() if k in PipelineConfig.model_fields}
        if sections.keys() - {"name"}:  # a part of a recipe
            recipes["part"] = sections
        sweeps = content.get("sweeps") or {}
        file = {"recipes": {**shipped, **recipes}, "sweeps": sweeps}
        (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump(file))
        for name in recipes:
            load_recipe(name, {"train.max_steps": 1} if name == "part" else {})
        for name in sweeps:
            load_sweep(name)
        loaded += len(recipes) + len(sweeps)
    assert loaded > 4


# ---- Python -------------------------------------------------------------------------------------


@pytest.fixture
def quickstart(project: Path) -> None:
    """A project whose recipe `quickstart` is a tiny one, with few checkpoints."""
    pipelines = project / "pipelines.yaml"
    text = (
        pipelines.read_text().replace("  tiny:", "  quickstart:").replace("every: 2", "every: 50")
    )
    pipelines.write_text(text)


@pytest.mark.usefixtures("quickstart")
@pytest.mark.parametrize("block", blocks("python"), ids=name_of)
def test_the_python_that_is_shown_runs(block: Block) -> None:
    printed = StringIO()
    with code(CLEAN), redirect_stdout(printed):
        exec(block.code, {})
    assert "Once upon a time" in printed.getvalue()


def check_names(source: str) -> int:
    """Hold every `slm.NAME` and every call of one to the library; returns how many there are."""
    nodes = list(ast.walk(ast.parse(source.replace("…", "..."))))
    names = [node for node in nodes if isinstance(node, ast.Attribute) and of_slm(node)]
    for node in names:
        assert node.attr in slm.__all__ or find_spec(f"slm.{node.attr}"), f"slm.{node.attr}"
    for node in nodes:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and of_slm(node.func)
        ):
            left_out = any(isinstance(a, ast.Constant) and a.value is ... for a in node.args)
            if not left_out:
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                inspect.signature(getattr(slm, node.func.attr)).bind(*node.args, **keywords)
    return len(names)


def of_slm(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "slm"


@pytest.mark.parametrize("block", blocks("py") + blocks("python"), ids=name_of)
def test_the_python_that_is_shown_calls_what_exists(block: Block) -> None:
    compile(block.code, block.page, "exec")
    check_names(block.code)


def test_the_python_in_sentences_calls_what_exists() -> None:
    assert len(CALLS) > 8
    for call in CALLS:
        assert check_names(call) >= 1


def test_python_that_calls_what_does_not_exist_is_seen() -> None:
    with pytest.raises(AssertionError, match="trian"):
        check_names("slm.trian(1)")
    with pytest.raises(TypeError, match="argument"):
        check_names("slm.train(config, shard=1)")


# ---- the report's commands ----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", read_pipelines(PIPELINES)["recipes"])
def test_the_commands_of_a_report_are_commands(recipe: str, tmp_path: Path) -> None:
    run = RunFolder(copy_run(tmp_path)).record
    assert run is not None
    changed = {"data.path": "my data", "model.dropout": 0.25, "report.prompts": ["It's", "a\nb"]}
    config: PipelineConfig = load_recipe(recipe, changed, path=PIPELINES)
    shown = commands(config, run)
    assert len(shown) == 4
    for line in shown:
        assert shlex.split(line)[0] == "slm"
        check(shlex.split(line)[1:])
