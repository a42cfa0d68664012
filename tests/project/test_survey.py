"""What is seen of a dataset that is too large to be read, or on the hub."""

import json
from pathlib import Path

import pytest
from hub import Fault, Hub
from texts import documents, parquet, rows, write

import slm
from slm.errors import SlmError, UserError
from slm.project import inputs, survey
from slm.project.decide import Dataset, dataset
from slm.recipes import load_recipe
from slm.storage import make_folder

TEXTS = documents(4000)
SIZE = sum(len(text.encode()) for text in TEXTS)


def seen(chosen: Dataset, root: Path) -> survey.Survey:
    return survey.survey(chosen.splits, chosen.data, make_folder(root))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"])
def test_the_beginning_gives_good_estimates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(survey, "MAX_READ", 0)
    monkeypatch.setattr(inputs, "HEAD_BYTES", 100_000)
    chosen = dataset(str(write(tmp_path / "in", kind, TEXTS)), tmp_path / "data")
    train = seen(chosen, tmp_path / "data").train
    assert train.documents == pytest.approx(len(TEXTS), rel=0.05)
    assert train.bytes == pytest.approx(SIZE, rel=0.05)


def test_estimates_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_READ", 0)
    monkeypatch.setattr(inputs, "HEAD_BYTES", 100_000)
    project = slm.init(tmp_path / "p", write(tmp_path / "in", "jsonl", TEXTS))
    assert dict(project.notes)["train"].startswith("about ")


# ---- the hub ----------------------------------------------------------------------------------

SHARDS = {
    f"data/train-0000{n}-of-00002.parquet": parquet(rows(TEXTS[2000 * n : 2000 * (n + 1)]))
    for n in (0, 1)
}


VAL = "data/validation-00000-of-00001.parquet"


def test_a_dataset_of_the_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its footers count the documents; it is not downloaded, and the recipe names no commit."""
    monkeypatch.setattr("slm.source.hub.RANGE_BYTES", 4096)
    hub.add("org/tales", {**SHARDS, VAL: parquet(rows(TEXTS[:50]))})
    project = slm.init(folder, "hub:org/tales")
    assert project.survey is not None
    assert project.survey.train.documents == len(TEXTS)
    assert project.survey.train.bytes == pytest.approx(SIZE, rel=0.05)
    assert project.survey.splits["val"].documents == 50
    data = load_recipe("tales").data
    assert (data.source, data.path, data.revision) == ("hub", "org/tales", None)
    assert data.text_column == "body"
    reads = [request for request in hub.lines("GET /datasets/") if ".parquet" in request.line]
    assert reads
    assert all(request.range for request in reads)
    assert not list((folder / "data").rglob("*.parquet"))


def test_lines_of_the_hub(hub: Hub, folder: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows(TEXTS[:300])).encode()
    hub.add("org/lines", {"train.jsonl": lines, "dev.jsonl": lines[: lines.index(b"\n") + 1]})
    project = slm.init(folder, "hub:org/lines@main", name="mine")
    assert project.survey is not None
    assert (project.survey.train.documents, project.survey.train.exact) == (300, True)
    assert project.survey.splits["val"].documents == 1
    config = load_recipe("mine")
    assert (config.data.revision, config.model_name) == ("main", "mine")


def test_one_of_several_configurations_is_named(hub: Hub, folder: Path) -> None:
    card = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("de", "en")
    )
    line = json.dumps({"text": "some words"}).encode()
    files = {f"{name}/train.jsonl": line for name in ("de", "en")}
    hub.add("org/many", {**files, "README.md": f"---\n{card}---\n".encode()})
    with pytest.raises(UserError, match="hub:org/many:de; there are de, en"):
        slm.init(folder, "hub:org/many")
    assert not list(folder.iterdir())
    slm.init(folder, "hub:org/many:en")
    assert load_recipe("many").data.config_name == "en"


def test_a_hub_that_does_not_answer(hub: Hub, folder: Path) -> None:
    hub.faults.append(Fault("/", "status", times=1000, status=503))
    with pytest.raises(SlmError, match=r"answered 503; try again later"):
        slm.init(folder, "hub:org/tales")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("address", ["hub:", "hub:org/none"])
def test_a_dataset_that_is_none(hub: Hub, folder: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"OWNER/NAME|no such dataset"):
        slm.init(folder, address)
