"""A filter and a map that see a document's columns, and what is refused of their parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import Shards
from slm.source.download import download
from slm.tokens.encode import encode, encode_key
from slm.tokens.functions import Applied, Function
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training.preflight import check_encoding

CODE = """
def keep(text, columns):
    assert text.startswith("<")  # the map comes first
    return columns["lang"] == "en" and columns["meta"]["tags"] != ["bad"]

def change(text, columns):
    columns["lang"] = "changed"  # a dict of its own
    return None if columns["score"] is None else f"<{columns['score']}> {text}"

def short(text):
    return len(text) < 10

def optional(text, columns=None):
    return columns is None or columns["lang"] == "en"

def limit(text, most=5):
    return len(text) > most
"""
RECIPE = """
recipes:
  own:
    data:
      source: files
      path: texts.jsonl
      vocab_size: 512
      val_fraction: 0.3
      columns: [lang, score, meta]
      clean: {filter: "own.py:keep", map: "own.py:change"}
    train: {max_steps: 4}
"""
ROWS = [
    {"text": f"cat {n}", "lang": "en", "score": n, "meta": {"tags": ["a", n]}} for n in range(20)
] + [
    {"text": "ein Hund", "lang": "de", "score": 1, "meta": {"tags": []}},
    {"text": "no score", "lang": "en", "meta": {"tags": []}},
    {"text": "bad", "lang": "en", "score": 2, "meta": {"tags": ["bad"]}},
]


@pytest.fixture
def own(project: Path) -> Path:
    """A project whose recipe names two functions; returns their file."""
    text = RECIPE
    for name in ("short", "optional", "limit"):  # named, so that they may be run
        text += f"  {name}: {{data: {{clean: {{filter: 'own.py:{name}'}}}}}}\n"
    (project / "pipelines.yaml").write_text(text)
    (project / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (project / "own.py").write_text(CODE)
    return project / "own.py"


def config_with(**settings: Any) -> PipelineConfig:
    return slm.load_recipe("own", {f"data.{key}": value for key, value in settings.items()})


def texts_of(shards: Shards) -> list[str]:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    both = [tokens for split in ("train", "val") for tokens in documents(shards, split)]
    return sorted(tokenizer.decode(tokens.tolist()) for tokens in both)


def test_a_filter_and_a_map_see_the_columns(own: Path) -> None:
    config = config_with()
    check_encoding(config)
    shards = encode(config, download(config))
    assert texts_of(shards) == sorted(f"<{n}> cat {n}" for n in range(20))
    assert shards.dropped == {"by data.clean.filter or map": 3}
    assert encode(config, download(config)).reused


def test_a_function_of_the_text_alone_is_called_as_before(own: Path) -> None:
    plain = config_with(columns=[], **{"clean.map": None, "clean.filter": f"{own}:short"})
    before = texts_of(encode(plain, download(plain)))
    kept = config_with(**{"clean.map": None, "clean.filter": f"{own}:short"})
    assert texts_of(encode(kept, download(kept))) == before
    limit = config_with(**{"clean.map": None, "clean.filter": f"{own}:limit"})
    assert "bad" not in texts_of(encode(limit, download(limit)))


def test_a_second_parameter_with_a_default_is_the_columns_where_it_is_called_so(own: Path) -> None:
    settings = {"clean.map": None, "clean.filter": f"{own}:optional"}
    without = config_with(columns=[], **settings)
    assert "ein Hund" in texts_of(encode(without, download(without)))
    with_columns = config_with(**settings)
    assert "ein Hund" not in texts_of(encode(with_columns, download(with_columns)))


def test_worker_processes_and_a_vocabulary_see_them_too(own: Path) -> None:
    pytest.importorskip("rustbpe")
    config = config_with(**{
        "vocab_size": 50_257, "tokenizer.train": "bpe", "tokenizer.vocab_size": 260,
    })  # fmt: skip
    source = download(config)
    vocabulary = slm.make_tokenizer(config, source)
    shards = slm.encode(config, source, vocabulary=vocabulary)
    assert vocabulary.documents == shards.splits["train"].documents
    assert texts_of(shards) == sorted(f"<{n}> cat {n}" for n in range(20))


@pytest.mark.slow  # worker processes take seconds to start
def test_worker_processes_give_the_same_bytes(own: Path) -> None:
    config = config_with()
    first = encode(config, download(config))
    again = config_with(workers=2)
    other = encode(again, download(again), root=own.parent / "elsewhere")
    assert first.files == other.files


def test_other_columns_are_another_source_and_the_plan_names_them(own: Path) -> None:
    config = config_with()
    source = download(config)
    encode(config, source)
    plan = slm.plan("own", {"data.columns": ["lang"]})
    assert plan.first is not None
    assert plan.first.stage == "download"
    assert plan.first.changed == {"data.columns": (["lang", "score", "meta"], ["lang"])}
    less = config_with(columns=["lang", "score"])
    assert encode_key(less, download(less), None) != encode_key(config, source, None)
    with pytest.raises(UserError, match=r"data\.columns names lang, score, and the source own-"):
        encode(less, source, root=own.parent / "elsewhere")


def applied(code: str, columns: dict[str, Any] | None = None) -> str | None:
    function = Function("filter", "/home/ada/own.py", "keep", code.encode())
    names = list(columns or ())
    own = Applied((function,), names)
    return own("a cat", lambda: "document 17 of train_00000.parquet", json.dumps(columns))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def keep(): return True", "takes no parameter for the text"),
        ("def keep(*, text): return True", "takes the parameters text"),
        ("def keep(text, columns, more): return True", "takes the parameters text, columns, more"),
        ("def keep(text, *, n): return True", "takes the parameters text, n"),
        ("def keep(**all): return True", "takes no parameter for the text"),
    ],
)
def test_other_parameters_are_refused(code: str, message: str) -> None:
    with pytest.raises(UserError, match=message + r": give it one for the text, or two for the t"):
        applied(code, {"lang": "en"})


@pytest.mark.parametrize(
    "code",
    [
        "keep = str.isascii",
        "keep = bool",
        "def keep(*all): return all == ('a cat',)",
        "def keep(text, n=1, *, m=2, **more): return n == 1 and not more",
        "from functools import partial\nkeep = partial(lambda c, t: t == 'a cat', 1)",
        "class Keep:\n  def __call__(self, t): return True\nkeep = Keep()",
        "def keep(text, columns): return columns == {'lang': 'en'}",
        "keep = lambda text, c: c['lang'] == 'en'",
        "def keep(text, columns=None): return columns == {'lang': 'en'}",
    ],
)
def test_whatever_can_be_called_with_one_or_two_is_called(code: str) -> None:
    assert applied(code, {"lang": "en"}) == "a cat"


@pytest.mark.parametrize("parameters", ["", "a, b, c"])
def test_parameters_are_refused_before_anything_is_downloaded(own: Path, parameters: str) -> None:
    own.write_text(f"def keep({parameters}): return True\ndef change(text): return text")
    config = config_with()
    with pytest.raises(UserError, match=r"data\.clean\.filter=own\.py:keep takes"):
        check_encoding(config)
    result = CliRunner().invoke(app, ["run", "own"])
    assert isinstance(result.exception, UserError)
    assert not list(own.parent.parent.glob("data/sources/[!.]*"))


def test_columns_that_are_not_named_are_refused_before_anything_is_downloaded(own: Path) -> None:
    with pytest.raises(UserError) as raised:
        check_encoding(config_with(columns=[]))
    assert str(raised.value) == (
        "data.clean.map=own.py:change takes the text and its columns, and data.columns names none: "
        "name those that it needs, such as data.columns=[lang]"
    )


def test_what_is_raised_names_the_document_and_its_columns(own: Path) -> None:
    with pytest.raises(UserError) as raised:
        applied("def keep(text, columns): return columns['lng'] == 'en'", {"lang": "en"})
    assert str(raised.value) == (
        "data.clean.filter=own.py:keep raises KeyError: 'lng', for document 17 of "
        'train_00000.parquet, \'a cat\' (columns: {"lang": "en"})'
    )
