"""What README, docs and the report show to be typed: commands, Python, settings."""

import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny_run import CLEAN, code, copy_run

import slm
from slm.cli.main import app
from slm.cli.options import load
from slm.config import PipelineConfig
from slm.recipes import load_recipe, read_pipelines
from slm.report.cards import commands
from slm.run_folder import RunFolder
from slm.sweeps.definition import load_sweep, sweep_names

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "pipelines.yaml"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks of a page, continued lines joined."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


SHOWN = [words for page in PAGES for words in lines(page)]
OF_SLM = [words[1:] for words in SHOWN if words[0] in ("slm", ".venv/bin/slm")]
DEPLOYED = [words[3] for words in OF_SLM if words[:3] == ["prefect", "deployment", "run"]]


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


def test_a_command_that_is_none_is_seen() -> None:
    for wrong in (["sampel", "RUN"], ["sample", "RUN", "--topk", "3"], ["export", "RUN"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parsed(wrong)
    with pytest.raises(slm.UserError, match="did you mean"):
        check(["run", "quickstart", "--set", "train.max_step=3"])


def test_there_are_commands_in_the_pages() -> None:
    assert len(OF_SLM) > 20
    assert len(DEPLOYED) > 3


def test_every_deployment_that_is_run_in_a_page_exists() -> None:
    deployments = read_pipelines(PIPELINES)["deployments"]
    names = {f"{Path(d['entrypoint']).stem.split('.')[0]}/{d['name']}" for d in deployments}
    assert set(DEPLOYED) <= names


def test_every_command_that_a_text_or_message_names_exists() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    sources = [*PAGES, *(ROOT / "slm").rglob("*.py"), *(ROOT / "slm").rglob("*.j2")]
    named = {name for path in sources for name in re.findall(r"`slm ([a-z]+)", path.read_text())}
    assert len(named) > 10
    assert named <= set(group.commands)


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
@pytest.mark.parametrize("snippet", [b for page in PAGES for b in blocks(page, "python")])
def test_the_python_that_is_shown_runs(snippet: str) -> None:
    printed = StringIO()
    with code(CLEAN), redirect_stdout(printed):
        exec(snippet, {})
    assert "Once upon a time" in printed.getvalue()


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
