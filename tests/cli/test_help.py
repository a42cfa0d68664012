"""The first hour at the command line: help, examples, completion, the next command, failures."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import stages
import typer
from rich.console import Console
from test_snippets import check
from tiny_run import copy_run

from slm.cli import main, tables
from slm.cli.help import examples, type_in_words, usage_message
from slm.cli.main import app
from slm.history.runs import list_runs
from slm.recipes import read_pipelines

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = {
    f"{name} {inner}".strip(): each
    for name, command in GROUP.commands.items()
    for inner, each in getattr(command, "commands", {"": command}).items()
}
PASSED_ON = {"bench", "prefect"}  # they hand options that they do not know to another program

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Invoke]:
    """Runs `slm …` in a project with the one recipe `tiny`; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_itself_that_parses(name: str) -> None:
    shown = examples(COMMANDS[name])
    assert shown, f"`slm {name} --help` has no line `Example: slm {name} …`"
    for line in shown:
        assert len(line) <= 69, "80 columns would break it"
        words = shlex.split(line)
        assert " ".join(words).startswith(f"slm {name} ") or words == ["slm", name]
        check(words[1:])


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "prefect"])  # its help is Prefect's
def test_the_help_of_every_command_has_types_that_a_person_reads(
    name: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke(*name.split(), "--help")
    assert code == 0
    assert not re.search(r"<\w+[^>]*>|\b(bool|str|int|float|Optional|None)\b", out)
    assert f"slm {name}" in out
    assert re.search(r"Examples?: slm ", out)
    for line in out.splitlines():
        assert len(line) <= 80
    context = COMMANDS[name].make_context(name, [], resilient_parsing=True)
    for param in COMMANDS[name].get_params(context):
        words = type_in_words(param)
        assert param.help, f"{name}: {param.name} has no text"
        takes_value = not getattr(param, "is_flag", False)
        assert bool(words) == takes_value or param.param_type_name == "argument", param.name


def test_the_list_of_all_commands_has_a_paragraph_each(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke("--help")
    assert code == 0
    assert "Example" not in out
    assert "<" not in out
    for name in GROUP.commands:
        assert re.search(rf"^│ {name} ", out, flags=re.MULTILINE)


def test_slm_alone_shows_the_five_commands_of_the_first_hour(
    invoke: Invoke, data_root: Path
) -> None:
    code, out, _ = invoke()
    assert code == 0
    lines = re.findall(r"^(slm .+?)(?:   .*)?$", out, flags=re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["run", "sample", "report", "train", "compare"]
    assert "slm sample RUN" in out
    assert "slm --help" in out
    name = copy_run(data_root).name
    code, out, _ = invoke()
    assert re.search(rf"^slm sample {name} ", out, flags=re.MULTILINE)
    assert f"slm compare RUN {name}" in out


# ---- a command line that is wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x", "-n", "abc"], "-n / --samples: give a whole number; see `slm sample"),
        (["sample", "x", "--weights", "int4"], "'int4' is not one of 'float32', 'int8'"),
        (["up", "--prefect-port", "99999"], "--prefect-port: give 65535 or less"),
        (["sample"], "Missing argument 'RUN': a run's name, the beginning of its key (4 digits"),
        (["stop", "a", "b", "c"], "too many, 'b c': the command is `slm stop RUN`; see"),
        (
            ["train", "tiny", "--set", "model.n_embd=64", "--set", "model.n_head=3"],
            "set model.n_head=2, or model.n_embd=66",
        ),
        (["train", "tiny", "--lr", "3"], "changed by --set train.learning_rate=VALUE"),
        (["train", "tiny", "--batch-size", "3"], "changed by --set train.tokens_per_step=VALUE"),
        (["smaple", "x"], "Did you mean 'sample'?"),
        (["sample", "a", "b"], "one argument too many, 'b': the command is `slm sample RUN`"),
        (["train", "tiny", "--set", "train.lr=1"], "did you mean 'train.learning_rate'?"),
        (["runs", "--sort", "x"], "--sort: 'x' is not one of 'started'"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_one_line(
    arguments: list[str], message: str, invoke: Invoke
) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Input should" not in err


@pytest.mark.parametrize("name", sorted({*COMMANDS} - PASSED_ON))
def test_with_json_a_wrong_option_is_an_object_on_stdout(name: str, invoke: Invoke) -> None:
    code, out, err = invoke(*name.split(), "--json", "--no-such-option")
    assert code == 2
    assert "No such option: --no-such-option" in json.loads(out)["error"]
    assert err == f"error: {json.loads(out)['error']}\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_with_json_whatever_fails_is_an_object_on_stdout(
    name: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of every command, with arguments that name nothing, and with a data folder that is a file."""
    params = COMMANDS[name].params
    required = [param for param in params if param.required and param.param_type_name == "argument"]
    arguments = ["nowhere"] * len(required)
    if required:
        code, out, err = invoke(*name.split(), *arguments, "--json")
        assert code in (1, 2)
        assert json.loads(out)["error"]
        assert "Traceback" not in err
    if name == "doctor":
        return  # it reports such a folder: tests/orchestration/test_health.py
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "file"))
    code, out, err = invoke(*name.split(), *arguments, "--json")
    assert code == 2
    assert "is a file" in json.loads(out)["error"]


def test_with_json_a_bug_is_an_object_too_and_keeps_its_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("slm.source.download.download", fail)
    monkeypatch.setattr(sys, "argv", ["slm", "download", "tiny", "--json"])
    with pytest.raises(ZeroDivisionError):
        main.main()
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: by nothing"}


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"prefect"}))  # whose options are Prefect's
def test_every_command_has_json(name: str) -> None:
    assert any("--json" in param.opts for param in COMMANDS[name].params)


def test_a_message_of_several_lines_becomes_one() -> None:
    error: Any = typer.BadParameter("Input should be\n  a valid boolean, unable to interpret")
    assert usage_message(error) == "the command line: give true or false"


# ---- the next command ----------------------------------------------------------------------------


def test_the_next_command_is_shown_to_people_alone(invoke: Invoke, data_root: Path) -> None:
    name = copy_run(data_root).name
    check_next = {
        ("recipes",): "slm run NAME",
        ("recipes", "tiny"): "slm check tiny",
        ("runs",): f"slm report {name} --open",
        ("lineage", name): f"slm reproduce {name}",
        ("sample", name, "--max-new-tokens", "2"): f"slm chat {name}",
        ("download", "tiny", "--set", "data.documents=60"): (
            "slm encode tiny --set data.documents=60"
        ),
    }
    for arguments, expected in check_next.items():
        code, out, err = invoke(*arguments)
        assert code == 0
        assert "next  " not in out
        assert re.search(r"^next +slm ", err, flags=re.MULTILINE)
        assert expected in err
        code, out, err = invoke(*arguments, "--json")
        assert code == 0
        assert "next " not in err
        assert json.loads(out.splitlines()[-1])


# ---- what opens and what stays ----------------------------------------------------------------


def test_a_report_opens_in_the_browser_where_that_is_asked(
    invoke: Invoke, data_root: Path, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.install(monkeypatch, data_root)
    stages.write(data_root, tiny_config())
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    name = stages.EVALUATION.run
    page = json.loads(invoke("report", name, "--json")[1])["report"]
    assert not opened
    assert invoke("report", name, "--open")[0] == 0
    assert opened == [Path(page).as_uri()]


@pytest.mark.parametrize(
    ("deployed", "shown"),
    [
        (["sweep/rates", "pipeline/tiny"], "pipeline/tiny"),  # the recipe of the folder
        (["sweep/rates", "pipeline/other"], "sweep/rates"),
        ([], None),
    ],
)
def test_up_with_json_prints_its_addresses_once_all_is_up(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, deployed: list[str], shown: str | None
) -> None:
    def up(write: Callable[[str], None], on_ready: Callable[..., None], **_: Any) -> None:
        write("starting  servers")
        on_ready({"prefect": "http://127.0.0.1:4200"}, deployed)

    monkeypatch.setattr("slm.orchestration.stack.services.up", up)
    code, out, err = invoke("up", "--json")
    assert (code, json.loads(out)) == (0, {"prefect": "http://127.0.0.1:4200"})
    assert err == "starting  servers\n"
    code, out, err = invoke("up")
    assert (code, out) == (0, "starting  servers\n")
    assert ("deployment run" in err) == bool(deployed)
    assert shown is None or f"slm prefect deployment run {shown} --watch" in err


# ---- lists ---------------------------------------------------------------------------------------


def test_recipes_are_a_name_and_a_description_with_no_word_broken(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    shipped = (Path(__file__).parents[2] / "pipelines.yaml").read_text()
    (project / "pipelines.yaml").write_text(shipped)
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = invoke("recipes")
    assert max(map(len, out.splitlines())) <= 80
    recipes = read_pipelines(project / "pipelines.yaml")["recipes"]
    words = set(out.split())
    for name, recipe in recipes.items():
        assert {name, *recipe["description"].split()} <= words
    _, out, _ = invoke("recipes", "--json")
    listed = {each["name"]: each for each in json.loads(out)["recipes"]}
    assert set(listed) == set(recipes)
    assert listed["tinystories"]["settings"]["train.epochs"] == 2
    _, out, _ = invoke("recipes", "tinystories")
    assert re.search(r"^train\.epochs +2 *$", out, flags=re.MULTILINE)
    _, out, _ = invoke("recipes", "--explain", "train.warmup", "--json")
    assert json.loads(out)["settings"][0]["key"] == "train.warmup"


def test_runs_are_filtered_and_sorted_and_have_what_differs(
    invoke: Invoke, data_root: Path
) -> None:
    copy_run(data_root)
    copy_run(data_root, max_steps=3)
    _, out, _ = invoke("runs")
    assert {"max_steps=3", "max_steps=4"} & set(out.split())
    assert "in training" in out
    with StringIO() as written:
        facts = list_runs(data_root)
        Console(file=written, width=40).print(tables.runs(facts, 40))
        assert all(f"{run.val_bpb or run.slice_val_bpb:.4f}" in written.getvalue() for run in facts)
    listed = json.loads(invoke("runs", "--sort", "name", "--json")[1])["runs"]
    assert [each["run"] for each in listed] == sorted(each["run"] for each in listed)
    assert all(set(each["differs"]) == {"train.max_steps"} for each in listed)
    (chosen,) = json.loads(invoke("runs", listed[0]["run"][:10], "--json")[1])["runs"]
    assert chosen["run"] == listed[0]["run"]
    assert json.loads(invoke("runs", "--recipe", "other", "--json")[1])["runs"] == []
    assert "`slm runs` lists all" in invoke("runs", "other-*")[1]


# ---- completion ----------------------------------------------------------------------------------

COMPLETE = """
import sys
from slm.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "prefect", "mlflow", "pyarrow", "matplotlib"} & set(sys.modules)
    print("HEAVY", *heavy, file=sys.stderr)
"""


def completed(line: str, project: Path, **environment: str) -> list[str]:
    """What a shell offers at the end of a line."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE.replace("import sys", "import sys; sys.argv = ['slm']", 1)],
        env={
            **os.environ, "_SLM_COMPLETE": "complete_bash", "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "HEAVY\n"
    return done.stdout.split()


def test_commands_recipes_runs_and_settings_complete_without_anything_heavy(
    project: Path, data_root: Path
) -> None:
    name = copy_run(data_root).name
    assert completed("slm rec", project) == ["recipes"]
    assert completed("slm train t", project) == [
        "tiny", "tinystories", "tinystories-gpt2", "tinystories-sample", name,
    ]  # fmt: skip
    assert completed("slm sample ", project) == [name, "latest"]
    assert completed(f"slm compare {name} tiny-", project) == [name]
    assert "train.max_steps=" in completed("slm train tiny --set train.max_", project)
    assert "train.max_steps" in completed("slm recipes --explain train.max_", project)
    assert completed("slm sample x --weights ", project) == ["float32", "int8"]


def test_where_nothing_can_be_read_nothing_is_completed_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text("recipes: [")
    assert completed("slm train t", tmp_path, SLM_DATA=str(tmp_path / "none")) == []
    assert completed("slm sample t", tmp_path, SLM_DATA=str(tmp_path / "pipelines.yaml")) == []


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_is_installed_and_works_in_bash(project: Path, tmp_path: Path) -> None:
    home, program = tmp_path / "home", tmp_path / "bin" / "slm"
    home.mkdir()
    program.parent.mkdir()
    script = tmp_path / "main.py"
    script.write_text(f"import sys\nsys.path[:0] = {sys.path!r}\n"
                      "sys.argv[0] = 'slm'\nfrom slm.cli.main import main\nmain()\n")  # fmt: skip
    # No `#!` with the interpreter: its path may have a blank.
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "{script}" "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ, "HOME": str(home), "PATH": f"{program.parent}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }  # fmt: skip

    def run(*command: str) -> str:
        return subprocess.run(
            command, env=environment, cwd=project, capture_output=True, text=True, check=True
        ).stdout

    assert "installed" in run("slm", "--install-completion", "bash")
    typed = (
        "source ~/.bashrc; COMP_WORDS=(slm train t); COMP_CWORD=2; _slm_completion slm; "
        'echo "${COMPREPLY[@]}"'
    )
    assert run("bash", "-c", typed).split()[0] == "tiny"
