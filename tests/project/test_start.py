"""`slm init`: what it sees of the data is right, and what it writes loads and trains."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from texts import documents, rows, write

import slm
from slm.cli import main
from slm.errors import UserError
from slm.project.decide import Question
from slm.recipes import default_recipe, load_recipe, read_pipelines
from slm.run_folder import DataRoot

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "text")
ROWS = 120


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return documents(ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_is_right_and_the_recipe_encodes(
    folder: Path, tmp_path: Path, texts: list[str], kind: str
) -> None:
    project = slm.init(folder, write(tmp_path / "in", kind, texts))
    sizes = sorted(len(text.encode()) for text in texts)
    seen = project.survey
    assert seen is not None
    assert (seen.train.documents, seen.train.bytes, seen.train.exact) == (ROWS, sum(sizes), True)
    assert seen.median in (sizes[ROWS // 2 - 1], sizes[ROWS // 2])
    assert sum(size <= seen.p95 for size in sizes) >= 0.95 * ROWS
    assert seen.format == {"json": "jsonl"}.get(kind, kind)
    assert project.recipe == default_recipe() == "tales"
    config = load_recipe("tales")
    assert config.data.text_column == ("text" if kind == "text" else "body")
    shards = slm.encode(config, slm.download(config))
    split = shards.splits
    assert split["train"].documents + split["val"].documents == len(set(texts))
    assert split["val"].documents >= 10
    assert DataRoot().path == folder / "data"


def test_the_recipe_trains(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    slm.init(folder, write(tmp_path / "in", "csv", texts), name="small")
    made = slm.run(overrides={"train.max_steps": 2, "data.workers": 1}, until="train")
    assert made["recipe"] == "small"
    run = slm.open_run(made["run"])
    assert run.is_finished
    assert run.config.model_name == "small"


def test_generated_stories_without_data(folder: Path) -> None:
    project = slm.init(folder)
    made, shipped = (
        load_recipe(project.recipe),
        load_recipe("quickstart", path=ROOT / "pipelines.yaml"),
    )
    assert made.model_copy(update={"recipe": "quickstart"}) == shipped
    assert default_recipe() == project.recipe
    assert sorted(path.name for path in folder.iterdir()) == [
        ".gitignore",
        "data",
        "pipelines.yaml",
    ]


def test_nothing_is_overwritten(folder: Path) -> None:
    (folder / ".gitignore").write_text("mine\n")
    project = slm.init(folder)
    assert project.kept == [".gitignore"]
    assert project.written == ["data/README.md", "pipelines.yaml"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="exists already"):
        slm.init(folder, name="other")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (folder / ".gitignore").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [("a b", "letters, digits"), ("", "letters, digits"), ("-x", "first"), ("x" * 65, "64")],
)
def test_a_name_that_is_none(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        slm.init(folder, name=name)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["2024", "true", "1e3", "null", "0x1f"])
def test_names_that_yaml_takes_for_something_else(folder: Path, name: str) -> None:
    slm.init(folder, name=name)
    content = read_pipelines(folder / "pipelines.yaml")
    assert list(content["recipes"]) == [name]
    assert {entry["parameters"]["recipe"] for entry in content["deployments"]} == {name}
    assert load_recipe(name).model_name == name


def test_a_path_inside_the_folder_is_relative(folder: Path, texts: list[str]) -> None:
    path = write(folder, "jsonl", texts)
    slm.init(folder, path)
    recipes = read_pipelines(folder / "pipelines.yaml")["recipes"]
    assert recipes["tales"]["data"]["path"] == "tales.jsonl"


def test_a_file_name_cannot_break_the_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / 'a: "b"\n- [c] # d.jsonl'
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(documents(20))))
    slm.init(folder, path)
    assert load_recipe(default_recipe()).data.path == str(path)


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs `slm init …`; gives exit code, output and errors."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slm", "init", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_json_and_a_second_time(
    folder: Path, tmp_path: Path, invoke: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "two.jsonl"
    lines = [json.dumps({"q": text[:90], "a": text[90:190]}) for text in documents(30)]
    path.write_text("\n".join(lines))
    code, out, _ = invoke(str(folder), "--data", str(path), "--json")
    result = json.loads(out.splitlines()[-1])
    assert (code, result["recipe"]) == (0, "two")
    assert result["data"]["splits"]["train"]["documents"] == 30
    assert result["decided"] == {"data.text_column": result["settings"]["data.text_column"]}
    code, _, errors = invoke(str(folder), "--data", str(path), "--json")
    assert code == 2
    assert "exists already" in errors


def test_what_was_seen_and_every_rule_is_printed(
    folder: Path, tmp_path: Path, invoke: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "two.csv"
    texts = documents(200)
    path.write_text("q,a\n" + "".join(f'"{text[:90]}","{text}"\n' for text in texts))
    code, out, _ = invoke(str(folder), "--data", str(path))
    assert code == 0
    size = sum(len(text.encode()) for text in texts)
    assert f"200 documents, {size / 1000:.1f} kB of text, csv (1 file: two.csv)" in out
    assert "columns   q, a; the text is 'a'" in out
    assert "rule      data.text_column: a, the column with the most text" in out
    assert "about 30 documents are held out" in out
    assert out.splitlines()[-1].split() == ["next", "slm", "run"]


def test_what_is_doubtful_is_asked_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    texts = documents(30)
    path.write_text("".join(json.dumps({"q": t[:90], "a": t}) + "\n" for t in texts))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "slm.cli.main", "init", str(folder), "--data", str(path)],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"9\nq\n")  # the first is refused, the second is a name
    shown = b""
    try:
        while data := os.read(ours, 1000):
            shown += data
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    assert b"Which column is the text?" in shown
    assert b"none of 1 to 3" in shown
    assert load_recipe("two").data.text_column == "q"


def test_answers_of_python(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"q": t[:90], "a": t}) + "\n" for t in documents(30)))

    def all_of_them(question: Question) -> str:
        assert question.default == "a"
        return "all of them"

    slm.init(folder, path, ask=all_of_them)
    assert load_recipe("two").data.template == "{q}\n\n{a}"
