"""The `slm` command: exit codes, messages, JSON keys. The stages themselves are stand-ins here."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stages

import slm.orchestration.local
import slm.registry.register
import slm.source.download
import slm.training.launch
from slm.cli import inspection, main
from slm.cli.options import show, show_line
from slm.config import project_root
from slm.errors import CorruptionError, Interrupted, SlmError, TrainingError, UserError
from slm.recipes import find_recipes, load_recipe
from slm.records import Record
from slm.storage import describe_files, write_record


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output."""
        parsed: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return parsed


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Invoke]:
    """Runs `slm …` in a project with the one recipe `tiny`."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> list[str]:
    return stages.install(monkeypatch, data_root)


# ---- what is train, what is val, what is left out ------------------------------------------------


def test_the_splits_of_files_and_what_is_left_out_are_lines_also_when_reused(
    invoke: Invoke, tmp_path: Path
) -> None:
    for name, count in {"wiki.train": 9, "wiki.dev": 3, "wiki.test": 1}.items():
        lines = (json.dumps({"text": f"{name} {number}"}) for number in range(count))
        (tmp_path / f"in-{name}.jsonl").write_text("\n".join(lines))
    settings = ["--set", "data.source=files", "--set", f"data.path={tmp_path}/in-*"]
    for command, outcome in (("download", "done"), ("download", "reused"), ("encode", "reused")):
        result = invoke(command, "tiny", *settings, "--set", "data.documents=null")
        warning, stage, train, val, *_ = result.out.splitlines()
        assert warning.startswith(f"warning: {tmp_path}/in-*: 1 file left out: named like test")
        assert warning.endswith("in-wiki.test.jsonl")
        assert stage.split()[:2] == ["download", outcome]
        assert train.strip() == "train   9 documents of 1 file: in-wiki.train.jsonl"
        assert val.strip() == "val     3 documents of 1 file: in-wiki.dev.jsonl"


def test_a_benchmark_gets_the_options_that_are_its_own(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project_root() / "benchmarks").mkdir()
    (project_root() / "benchmarks" / "train.py").touch()
    commands = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", note)
    assert invoke("bench", "train", "--isa", "--json", "--rounds", "2").code == 3
    [[python, script, *options]] = commands
    assert (python, Path(script).name) == (sys.executable, "train.py")
    assert options == ["--isa", "--rounds", "2", "--json"]


# ---- names and prompts --------------------------------------------------------------------------


def test_a_name_is_that_of_the_folders(invoke: Invoke, data_root: Path) -> None:
    result = invoke("encode", "tiny", "--name", "mine", "--json")
    assert result.code == 0, result.err
    assert Path(result.json["shards"]).name.startswith("mine-")
    assert [path.name[:5] for path in (data_root / "sources").glob("[!.]*")] == ["mine-"]
    again = invoke("encode", "tiny", "--json")
    assert again.json == result.json  # the same result, whatever it is called
    wrong = invoke("encode", "tiny", "--name", "a b")
    assert (wrong.code, "name='a b'" in wrong.err) == (2, True)


@pytest.mark.usefixtures("called")
def test_a_run_passes_its_name_on_and_ends_with_a_command_for_its_own_text(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    given: dict[str, Any] = {}

    def run_flow(flow: str, recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
        given.update(overrides)
        run = data_root / "runs" / stages.EVALUATION.run
        return {"val_bpb": 2.5, "report": str(run / "report/index.html"), "run": str(run)}

    monkeypatch.setattr(slm.orchestration.local, "run_flow", run_flow)
    stages.write(data_root, load_recipe("tiny"))
    result = invoke("run", "tiny", "--name", "mine", "--set", 'report.prompts=["It\'s me"]')
    assert result.code == 0, result.err
    assert given == {"name": "mine", "report.prompts": ["It's me"]}
    (suggested,) = (line for line in result.err.splitlines() if line.startswith("next "))
    command = shlex.split(suggested.removeprefix("next"))
    assert command == ["slm", "sample", stages.EVALUATION.run, "--prompt", "It's me"]


# ---- bad input: one message, exit 2, no traceback -----------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tini"], "unknown recipe 'tini': did you mean 'tiny'?"),
        (["train", "tiny", "--set", "train.max_step=3"], "did you mean 'train.max_steps'?"),
        (["train", "tiny", "--set", "trian.max_steps=3"], "did you mean 'train.max_steps'?"),
        (["encode", "tiny", "--set", "data.vocab_size=many"], "data.vocab_size='many'"),
        (["encode", "tiny", "--set", "data.seed"], "is not key=value"),
        (["sample", "nowhere"], "no run 'nowhere'"),
        (["evaluate", "nowhere"], "no run 'nowhere'"),
        (["bench", "encod"], "unknown benchmark 'encod'"),
        (["sample", "x" * 300], "is too long for the name of a file"),
        (["verify", "9:100:"], "'9:100:'"),
        (["verify", "."], "contains no record.json"),
        (["verify", "nowhere", "--steps", "3"], "'3' is not A:B"),
        (["verify", "nowhere", "--steps", "3:5:7"], "'3:5:7' is not A:B"),
        (["verify", "nowhere", "--steps", "a:b"], "'a:b' is not A:B"),
        (["recipes", "--explain", "train.max_step"], "did you mean 'train.max_steps'?"),
        (["check", "tini"], "did you mean 'tiny'?"),
    ],
)
def test_bad_input_is_one_message(invoke: Invoke, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert not result.out


def test_the_version_is_that_of_the_package(invoke: Invoke) -> None:
    result = invoke("--version")
    assert (result.code, result.out) == (0, f"slm {slm.__version__}\n")


def test_a_missing_argument_exits_2(invoke: Invoke) -> None:
    assert invoke("evaluate").code == 2
    assert invoke("no-such-command").code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SlmError("it failed"), 1),
        (UserError("it was wrong"), 2),
        (CorruptionError("it was damaged"), 1),
        (TrainingError("it diverged"), 1),
        (Interrupted("it was stopped"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    invoke: Invoke,
    called: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(slm.training.launch, "train", fail)
    result = invoke("train", "tiny", "--json")
    assert result.code == code
    assert (str(error) or "interrupted: what is done is kept") in result.err
    assert "Traceback" not in result.err
    assert result.json == {"error": str(error) or "interrupted: what is done is kept"}
    assert result.out.count("\n") == 1


def test_a_full_disk_is_bad_input(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slm.source.download, "download", fail)
    result = invoke("download", "tiny")
    assert result.code == 2
    assert f"cannot write to {data_root} (No space left on device)" in result.err
    assert "SLM_DATA" in result.err


def test_a_bug_keeps_its_traceback(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(slm.source.download, "download", fail)
    monkeypatch.setattr(sys, "argv", ["slm", "download", "tiny"])
    with pytest.raises(ZeroDivisionError):
        main.main()


# ---- what others build on: the JSON keys --------------------------------------------------------


def test_download_json(invoke: Invoke, called: list[str], data_root: Path) -> None:
    result = invoke("download", "tiny", "--json")
    assert result.code == 0
    assert result.json == {
        "source": str(data_root / "sources" / "tiny-1"),
        "dataset": "stories",
        "revision": "version 1",
        "documents": 7,
        "bytes": 70,
        "files": {"train_00000.bin": "ab" * 32},
    }
    assert result.out.count("\n") == 1  # stages are shown on stderr
    assert "download  done" in result.err


def test_encode_json(invoke: Invoke, called: list[str], data_root: Path) -> None:
    result = invoke("encode", "tiny", "--json")
    assert result.json == {
        "shards": str(data_root / "shards" / "tiny-2"),
        "documents": 7,
        "tokens": 35,
        "bytes": 70,
        "files": {"train_00000.bin": "ab" * 32, "val_00000.bin": "ab" * 32},
    }
    assert called == ["download", "encode"]
    assert "encode    reused" in result.err


def test_train_json(invoke: Invoke, called: list[str], data_root: Path) -> None:
    run = data_root / "runs" / stages.EVALUATION.run
    assert invoke("train", "tiny", "--json").json == {
        "run": str(run),
        "checkpoint": str(run / "checkpoints" / "step_000004"),
        "step": 4,
        "tokens": 512,
        "train_loss": 5.5,
        "val_loss": 5.25,
        "val_bpb": 2.5,
        "tok_per_sec": 1000.0,
        "seconds": 0.5,
        "weights_sha256": "5" * 64,
    }
    assert called == ["download", "encode", "train"]


def test_stages_of_a_run(
    invoke: Invoke, called: list[str], data_root: Path, tiny_config: Any
) -> None:
    name = stages.EVALUATION.run
    stages.write(data_root, tiny_config())
    assert invoke("evaluate", name, "--json").json == {
        "documents": 1,
        "tokens": 6,
        "bytes": 10,
        "val_loss": 5.25,
        "val_bpb": 2.5,
    }
    assert invoke("report", name, "--json").json["report"].endswith("report/index.html")
    version = {"version": "models:/slm/3", "aliases": ["champion"]}
    assert invoke("register", name, "--json").json == version
    assert called[-3:] == ["evaluate", "write_report", "register"]


def test_results_are_shown_to_people_too(invoke: Invoke, called: list[str]) -> None:
    result = invoke("encode", "tiny", "--set", "data.documents=10")
    assert "download  done" in result.out
    assert "tokens" in result.out
    assert "{" not in result.out


def test_a_path_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would take brackets for its markup, and fail on some, and `:100:` for an emoji."""
    for path in ("data/[red]/[/x]", "data/90:100:"):
        show({"source": path}, as_json=False)
        show_line(path)
        assert capsys.readouterr().out.count(path) == 2


def test_a_long_path_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/data" * 30
    show({"run": path, "aliases": ["champion", "best"], "note": None}, as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["run", path],
        ["aliases", "champion,", "best"],
        ["note", "–"],
    ]


# ---- look and check -----------------------------------------------------------------------------


def test_recipes_and_check(invoke: Invoke) -> None:
    listed = invoke("recipes").out
    assert "tiny: of pipelines.yaml; all others are shipped" in listed
    assert "quickstart" in listed
    explained = invoke("recipes", "--explain", "train").out
    assert "train.max_steps = null  whole number above 0 or null" in explained
    assert "End after this many optimizer steps." in explained
    assert "data." not in explained
    assert f"{len(find_recipes())} recipes and 0 deployments are valid" in invoke("check").out
    assert "n_embd=32" in invoke("check", "tiny").out


def test_a_folder_without_a_file_has_the_shipped_recipes(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLM_DATA")
    listed = invoke("recipes").out
    assert "quickstart" in listed
    assert "shipped; a pipelines.yaml in this folder adds recipes" in listed
    assert f"{len(find_recipes())} recipes and 0 deployments are valid" in invoke("check").out
    assert invoke("download", "quickstart", "--set", "data.documents=50", "--json").code == 0
    assert [path.name for path in (tmp_path / "data" / "sources").iterdir()]
    refused = invoke("up")
    assert (refused.code, "pipelines.yaml does not exist" in refused.err) == (2, True)
    refused = invoke("train", "quikstart")
    assert (refused.code, "did you mean 'quickstart'?" in refused.err) == (2, True)


def test_check_shows_the_settings_in_force_and_figures_for_people(invoke: Invoke) -> None:
    result = invoke(
        "check", "tiny", "--set", "model.n_layer=3", "--set", "train.max_tokens=1e6", "--set",
        "data.clean.min_chars=7",
    )  # fmt: skip
    assert result.code == 0
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in result.out.splitlines()}
    assert "n_layer=3" in shown["model"]
    assert "n_layer=1" not in result.out
    assert "max_tokens=1000000" in shown["train"]
    assert "max_steps" not in result.out
    assert "clean={'min_chars': 7}" in shown["data"]
    assert shown["parameters"] == (
        "56.6 k (56,640): 39.9 k inside the blocks, 16.4 k of the vocabulary"
    )
    assert shown["tokens"] == "1.0 M (1,000,064)"
    assert shown["steps"] == "7,813"
    assert shown["time"].startswith("about ")


@pytest.mark.parametrize("command", ["run", "retrain"])
def test_a_flow_needs_no_recipe_where_there_is_one(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    started: list[str] = []

    def run_flow(name: str, recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
        started.append(recipe)
        raise UserError("enough")

    monkeypatch.setattr(slm.orchestration.local, "run_flow", run_flow)
    assert invoke(command).code == 2
    assert started == ["tiny"]


@pytest.mark.parametrize("command", ["download", "encode", "train"])
def test_a_stage_needs_no_recipe_where_there_is_one(
    invoke: Invoke, called: list[str], command: str
) -> None:
    assert invoke(command).code == 0
    assert called[-1] == command


def test_the_latest_run_is_no_unknown_recipe(invoke: Invoke, data_root: Path) -> None:
    assert "there are none in" in invoke("train", "latest").err


def test_data_that_is_not_there_is_refused_before_a_server_starts(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slm.orchestration.local, "start_server", pytest.fail)
    result = invoke("run", "--set", "data.source=files", "--set", "data.path=no.txt")
    assert (result.code, result.out) == (2, "")
    assert "data.path=no.txt does not exist" in result.err


@pytest.mark.parametrize("command", ["run", "train", "check", "retrain"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.threads=100000", "train.threads=100000: this machine has"),
        ("model.n_layer=10000000", "does not fit: its training holds at least weights"),
        (f"report.prompts=['{'It was a day. ' * 20}']", "shorten it"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_done(
    command: str,
    setting: str,
    message: str,
    invoke: Invoke,
    called: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slm.orchestration.local, "start_server", pytest.fail)
    result = invoke(command, "tiny", "--set", setting)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not result.out
    assert not called


def test_check_refuses_a_misspelt_key(invoke: Invoke, project: Path) -> None:
    file = project / "pipelines.yaml"
    file.write_text(file.read_text().replace("deployments:", "deploymnts:"))
    result = invoke("check")
    assert result.code == 2
    assert "did you mean 'deployments'?" in result.err


def test_verify_finds_a_flipped_bit(invoke: Invoke, data_root: Path) -> None:
    folder = data_root / "shards" / "tiny-1"
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"1234")
    write_record(folder, Record(key="k", files=describe_files(folder, [folder / "a.bin"])))
    result = invoke("verify", str(data_root), "--json")
    assert json.loads(result.out) == {"files": 1, "records": 1}
    (folder / "a.bin").write_bytes(b"1235")
    result = invoke("verify", str(folder))
    assert result.code == 1
    assert "a.bin" in result.err
    (folder / "record.json").write_text("{}")
    result = invoke("verify", str(folder))
    assert (result.code, "record.json cannot be read" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("3:5", (3, 5)), ("3:", (3, None)), (":5", (None, 5)), (":", (None, None))],
)
def test_a_range_of_steps_may_be_open(text: str, steps: tuple[int | None, int | None]) -> None:
    assert inspection.step_range(text) == steps


def test_promote_and_rollback_without_a_model_are_one_message_each(
    invoke: Invoke, data_root: Path
) -> None:
    for command in (["promote"], ["rollback"]):
        result = invoke(*command)
        assert result.code == 2
        assert "slm" in result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [("sample", "RUN", "--prompt"), ("inspect",), ("check",), ("run", "tiny", "--set")],
)
def test_an_argument_that_is_not_utf8_is_refused(
    invoke: Invoke, arguments: tuple[str, ...]
) -> None:
    result = invoke(*arguments, os.fsdecode(b"caf\xe9"))
    assert result.code == UserError.exit_code
    assert result.err == (
        "error: the argument caf\\xe9 is not UTF-8 (\\x… are its stray bytes): write it in UTF-8, "
        "or rename the file\n"
    )


def test_a_data_folder_that_is_not_utf8_is_refused(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLM_DATA", str(tmp_path / os.fsdecode(b"caf\xe9")))
    result = invoke("download", "tiny")
    assert result.code == UserError.exit_code
    assert r"caf\xe9 is not UTF-8" in result.err
    assert not list(tmp_path.glob("caf*"))
