"""`slm inspect`: every document that was dropped, and the data card."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mixtures import mixture, write_sources
from tiny_run import tiny_config
from typer.testing import CliRunner

import slm
from slm import storage
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.inspection import card
from slm.inspection.card import sample_documents, script_shares
from slm.inspection.shards import open_shards
from slm.inspection.texts import train_texts
from slm.records import Shards
from slm.source.download import download
from slm.source.stories import stories
from slm.tokens.encode import encode
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

TEXTS = list(stories(7, 0, 50))
GREEK = "Μια φορά κι έναν καιρό ήταν μια μικρή γάτα που ζούσε σε ένα σπίτι. " * 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    root = tmp_path_factory.mktemp("data")
    path = root / "in.jsonl"
    lines = [*TEXTS, TEXTS[3], "<b>tiny</b>", GREEK, TEXTS[4], None]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    config = tiny_config(path).model_dump(mode="json")
    config["data"]["clean"] |= {"exact_duplicates": "everywhere", "min_chars": 20}
    config["data"] |= {"vocab_size": 2000}
    made = PipelineConfig.model_validate(config)
    return encode(made, download(made, root=root), root=root)


@pytest.fixture
def root(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLM_DATA", str(shards.path.parents[1]))
    return shards.path.parents[1]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_dropped_document_is_printed_with_its_reason(shards: Shards, root: Path) -> None:
    lines = invoke(shards.name, "--excluded").splitlines()
    assert lines[0].startswith(
        "duplicate of train_00000.parquet, row 3: train_00000.parquet, row 50"
    )
    assert lines[1] == "too short: train_00000.parquet, row 51 (train, 11 bytes): <b>tiny</b>"
    assert lines[-1] == "3 documents were dropped"
    fields = json.loads(invoke("tiny", "--reason", "duplicate", "--json"))
    assert [each["row"] for each in fields["excluded"]] == [50, 53]
    with pytest.raises(UserError, match="unknown reason 'duplicates'"):
        CliRunner().invoke(
            app, ["inspect", "tiny", "--reason", "duplicates"], catch_exceptions=False
        )
    counts = json.loads(invoke("tiny", "--json"))
    assert counts["dropped"] == {"duplicate": 2, "too short": 1}
    assert counts["not_read"] == {"null": 1}
    assert "not read: null" in invoke("tiny")


def test_shards_from_before_say_what_to_do(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards" / shards.name
    folder.mkdir(parents=True)
    files = {name: e for name, e in shards.files.items() if name not in Shards.no_content}
    for name in files:
        (folder / name).write_bytes((shards.path / name).read_bytes())
    storage.write_record(folder, shards.model_copy(update={"files": files}))
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    assert json.loads(invoke(shards.name, "--json"))["dropped"] == shards.dropped
    with pytest.raises(UserError, match="the tokens are the same bytes"):
        CliRunner().invoke(app, ["inspect", shards.name, "--excluded"], catch_exceptions=False)
    page = slm.data_card(shards.name).read_text()
    assert "was not recorded when these shards were made" in page


def test_a_card_is_one_page_without_scripts_that_escapes_the_data(
    shards: Shards, root: Path
) -> None:
    path = root / "cards" / f"{shards.name}.html"
    assert json.loads(invoke("tiny", "--card", "--json")) == {
        "shards": shards.name, "card": str(path),
    }  # fmt: skip
    page = path.read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page
    assert "<b>tiny" not in page
    for part in ("Greek", "duplicate", "too short", "not read: null", "data.clean.min_chars"):
        assert part in page
    assert slm.data_card(shards).read_text() == page
    with pytest.raises(UserError, match="is a folder"):
        slm.data_card(shards, root)


def test_scripts_are_shares_of_the_bytes(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    monkeypatch.setattr(card, "MAX_DOCUMENT_TOKENS", 10**6)
    monkeypatch.setattr(card, "SAMPLE", 10**5)
    shares = script_shares(shards, tokenizer)
    train = next(column for column in shares["columns"] if column["name"] == "train")
    assert train["bytes"] == shards.splits["train"].bytes
    assert train["documents"] == train["of"] == shards.splits["train"].documents
    of_split = {
        split: sum("Μια" in tokenizer.decode(ids.tolist()) for ids in documents(shards, split))
        for split in ("val", "train")
    }
    greek = next(row for row in shares["rows"] if row["script"] == "Greek")
    for column, share in zip(shares["columns"], greek["shares"], strict=True):
        expected = of_split[column["name"]] * len(GREEK.encode()) / column["bytes"]
        assert share == pytest.approx(expected)


def test_a_sample_is_of_whole_documents_at_even_distances(shards: Shards) -> None:
    [text] = train_texts(shards)
    every = [ids.tolist() for ids in documents(shards, "train")]
    chosen = [ids.tolist() for ids in sample_documents(text, shards.eot, 10)]
    assert 5 <= len(chosen) <= 10
    places = [every.index(ids) for ids in chosen if len(ids) < 2000]
    assert places == sorted(places)
    assert np.diff(places).max() <= 12


def test_what_a_name_means_is_one_message_where_it_is_nothing(
    shards: Shards, root: Path, tmp_path: Path
) -> None:
    for name in (shards.name, "tiny", str(shards.path)):
        assert open_shards(name).key == shards.key
    with pytest.raises(UserError, match="unknown shards 'tinny'"):
        open_shards("tinny")
    with pytest.raises(UserError, match="there are none yet"):
        open_shards("tiny", tmp_path)
    result = CliRunner().invoke(app, ["inspect", "tiny", "--card", "--document", "1"])
    assert isinstance(result.exception, UserError)


def test_of_a_mixture_every_source_is_on_the_card_and_in_the_list(tmp_path: Path) -> None:
    changes = {"data.sources.b.license": "CC0-1.0", "data.vocab_size": 300}
    config = mixture(write_sources(tmp_path / "in"), changes)
    source = slm.download(config, root=tmp_path)
    vocabulary = slm.make_tokenizer(config, source, root=tmp_path)
    mixed = slm.encode(config, source, vocabulary=vocabulary, root=tmp_path)
    page = slm.data_card(mixed, root=tmp_path).read_text()
    for part in ("CC0-1.0", "train, also in val", "also in val", "share of the tokens"):
        assert part in page
    assert slm.data_card(mixed.name, tmp_path / "card.html", tmp_path).read_text() == page
