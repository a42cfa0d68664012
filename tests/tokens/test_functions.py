"""A user's own filter and map: what they do, what is refused, and whose code is run."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slm
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import Shards, Vocabulary
from slm.source.download import download
from slm.tokens.encode import encode, encode_key
from slm.tokens.functions import Applied, Function, check_functions, functions_of
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training.preflight import check_encoding

CODE = """
from dataclasses import dataclass

@dataclass
class Rule:
    word: str

def keep(text):
    return Rule("drop").word not in text

def change(text):
    return None if "gone" in text else text.replace("cat", "dog")
"""
RECIPE = """
recipes:
  own:
    data:
      source: files
      path: texts.txt
      separator: "\\n"
      vocab_size: 512
      val_fraction: 0.3
      clean: {filter: "rules/own.py:keep", map: "rules/own.py:change"}
    train: {max_steps: 4}
"""
TEXTS = [f"a cat and number {n}" for n in range(20)] + ["drop this", "this is gone", "a dog"]


@pytest.fixture
def own(project: Path) -> Path:
    """A project whose recipe names two functions; returns their file."""
    (project / "pipelines.yaml").write_text(RECIPE)
    (project / "texts.txt").write_text("\n".join(TEXTS))
    (project / "rules").mkdir()
    file = project / "rules" / "own.py"
    file.write_text(CODE)
    return file


def config_with(**settings: Any) -> PipelineConfig:
    return slm.load_recipe("own", {f"data.{key}": value for key, value in settings.items()})


def encoded(config: PipelineConfig) -> Shards:
    return encode(config, download(config))


def texts_of(shards: Shards) -> list[str]:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    both = [tokens for split in ("train", "val") for tokens in documents(shards, split)]
    return sorted(tokenizer.decode(tokens.tolist()) for tokens in both)


def test_documents_are_dropped_and_changed_and_counted(own: Path) -> None:
    shards = encoded(config_with())
    assert texts_of(shards) == sorted([f"a dog and number {n}" for n in range(20)] + ["a dog"])
    assert shards.dropped == {"by data.clean.filter or map": 2}
    changed = shards.cleaning["changed"]["by data.clean.map"]
    assert (changed["documents"], changed["examples"][0][1][:5]) == (20, "a dog")
    assert shards.cleaning["functions"]["filter"] == {
        "file": "own.py",
        "function": "keep",
        "sha256": hashlib.sha256(CODE.encode()).hexdigest(),
    }
    assert encoded(config_with()).reused

    # A document stays on its side: the split is drawn by the text as it came.
    without = encoded(config_with(**{"clean.filter": None, "clean.map": None}))
    assert held_out(shards) == held_out(without)
    assert held_out(shards)


def held_out(shards: Shards) -> list[int]:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    texts = (tokenizer.decode(tokens.tolist()) for tokens in documents(shards, "val"))
    return sorted(int(text.split()[-1]) for text in texts if "number" in text)


def test_each_byte_of_the_file_is_in_the_key(own: Path) -> None:
    source = download(config_with())

    def key(**settings: Any) -> str:
        return encode_key(config_with(**settings), source, None)

    first = key()
    assert key(**{"clean.filter": None}) != first
    own.write_text(CODE + "\n")
    second = key()
    assert second != first
    other = own.with_name("moved.py")  # the same bytes elsewhere are the same function
    other.write_text(CODE + "\n")
    assert key(**{"clean.filter": f"{other}:keep", "clean.map": f"{other}:change"}) == second
    own.write_text(CODE)
    assert key() == first


def test_a_vocabulary_is_trained_on_what_they_make(own: Path) -> None:
    """The text as `map` makes it, without what `filter` drops; no file that is not the user's."""
    pytest.importorskip("rustbpe")
    trained = {"tokenizer.train": "bpe", "tokenizer.vocab_size": 300}
    config = config_with(**trained)
    source = download(config)
    made = slm.make_tokenizer(config, source)
    tokens = Tokenizer.load(made.path / TOKENIZER).tokens
    assert any(b"dog" in token for token in tokens)
    assert not any(b"cat" in token or b"drop" in token for token in tokens)
    assert made.documents == encode_with(config, made).splits["train"].documents
    own.write_text(CODE + "\n")
    assert slm.make_tokenizer(config, source).key != made.key
    other = own.with_name("other.py")
    other.write_text(CODE + "#")
    foreign = config_with(**trained, **{"clean.map": f"{other}:change"})
    with pytest.raises(UserError, match="may be anybody's code"):
        slm.make_tokenizer(foreign, source)
    assert not list((made.path.parent).glob(".*.units"))


def encode_with(config: PipelineConfig, vocabulary: Vocabulary) -> Shards:
    return slm.encode(config, download(config), vocabulary=vocabulary)


@pytest.mark.slow  # worker processes take seconds to start
def test_worker_processes_give_the_same_bytes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(config_with())
    files = {name: entry.sha256 for name, entry in first.files.items()}
    again = encode(config_with(workers=2), download(config_with()), root=own.parent / "elsewhere")
    assert {name: entry.sha256 for name, entry in again.files.items()} == files


def applied(kind: str, code: str, text: str = "a cat") -> str | None:
    """What a function of this code makes of a document."""
    function = Function(kind, "/home/ada/own.py", "keep", code.encode())
    return Applied((function,))(text, lambda: "document 17 of train_00000.parquet")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def keep(text): return 1",
            r"data\.clean\.filter=own\.py:keep returns a int, not True or False, for document 17 "
            r"of train_00000\.parquet, 'a cat'",
        ),
        ("def keep(text): return None", "keep returns a NoneType"),
        ("def keep(text): raise KeyError('x')", "keep raises KeyError: 'x', for document 17 of"),
        ("def keep(text): exit(3)", "keep raises SystemExit: 3, for document 17"),
        (
            "import random\ndef keep(text, *, n=[0]): n[0] += 1; return n[0] % 2 == 0",
            "does not return the same again for document 17",
        ),
        ("def kept(text): return True", "has no function 'keep'"),
        ("keep = 3", "has no function 'keep'"),
        ("def keep(text) return", "fails: SyntaxError"),
        ("import no_such_module", "fails: ModuleNotFoundError: No module named"),
        ("exit(3)", "fails: SystemExit: 3"),
    ],
)
def test_a_filter_that_fails_is_one_message(code: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        applied("filter", code)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def keep(text): return True", r"keep returns a bool, not a str, or None to drop it"),
        (r"def keep(text): return '\ud800'", "no UTF-8 form"),
    ],
)
def test_a_map_that_returns_no_text_is_one_message(code: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        applied("map", code)
    assert applied("map", "def keep(text): return None") is None
    assert applied("map", "def keep(text): return text.upper()") == "A CAT"


def test_what_a_function_raises_names_the_document_and_leaves_nothing(own: Path) -> None:
    own.write_text("def keep(text):\n  return True if '17' not in text else text.nothing")
    config = config_with(**{"clean.map": None})
    message = r"raises AttributeError: .*, for document 17 of train_00000\.parquet, 'a cat and num"
    with pytest.raises(UserError, match=message):
        encoded(config)
    shards = own.parents[1] / "data" / "shards"
    assert [path.suffix for path in shards.iterdir()] == [".lock"] if shards.exists() else True


# ---- whose code is run ------------------------------------------------------------------------

MARK = "from pathlib import Path\nPath('ran').touch()\n"


@pytest.fixture
def foreign(own: Path) -> Path:
    """A file that no pipelines.yaml names, and that leaves a mark where it is run."""
    file = own.parents[1] / "foreign.py"
    file.write_text(MARK + CODE)
    return file


def from_the_command_line(config: PipelineConfig, file: Path) -> PipelineConfig:
    return config_with(**{"clean.filter": f"{file}:keep", "clean.map": None})


def from_a_record(config: PipelineConfig, file: Path) -> PipelineConfig:
    """As `config.json` of a pulled run, or the request of a deployment, has it."""
    fields = config.model_dump(mode="json")
    fields["data"]["clean"] = {"filter": f"{file}:keep"}
    return PipelineConfig.model_validate(fields, context={"stored": True})


@pytest.mark.parametrize("origin", [from_the_command_line, from_a_record])
def test_a_file_that_the_user_does_not_name_is_never_run(
    own: Path, foreign: Path, origin: Callable[[PipelineConfig, Path], PipelineConfig]
) -> None:
    config = origin(config_with(), foreign)
    with pytest.raises(UserError, match=r"foreign\.py is not run.*pipelines\.yaml does not name"):
        encoded(config)
    with pytest.raises(UserError, match="is not run"):  # before any download
        check_encoding(config)
    slm.plan("own", {"data.clean.filter": f"{foreign}:keep"})
    assert not Path("ran").exists()
    foreign.write_text(CODE)  # the bytes that the user names
    check_functions(functions_of(config.data.clean), ())


def test_a_run_of_another_machine_has_the_function_of_the_same_name_here(own: Path) -> None:
    config = config_with(**{"clean.filter": "/elsewhere/own.py:keep"})
    source = download(config)
    assert encode_key(config, source, None) == encode_key(config_with(), source, None)
    check_functions(functions_of(config.data.clean), ())
    config = config_with(**{"clean.filter": "/elsewhere/own.py:other"})
    with pytest.raises(UserError, match="cannot be read"):
        functions_of(config.data.clean)


def test_a_file_that_is_missing_is_one_message(own: Path) -> None:
    own.unlink()
    with pytest.raises(UserError, match=r"own\.py:\w+: the file cannot be read"):
        encoded(config_with())


@pytest.mark.parametrize("value", ["own.py", "own:keep", "own.py:keep()", "own.py:a.b", ":keep"])
def test_what_names_no_function_is_refused(own: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"data\.clean\.filter"):
        config_with(**{"clean.filter": value})
