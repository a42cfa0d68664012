"""The rows of a step: those that a training has consumed, with the documents that they are of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CLEAN, code, copy_run
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.errors import UserError
from slm.run_folder import DataRoot, RunFolder
from slm.source.reading import source_texts
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training import launch, loop


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    copy_run(folder)
    return folder


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("SLM_DATA", str(root))
    return RunFolder(next((root / "runs").iterdir()))


def test_the_rows_are_those_that_the_training_takes(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, real = [], loop.train_step

    def train_step(session: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        taken.append((torch.cat([x, y[:, -1:]], dim=1).tolist(), session.micro_batches))
        return real(session, x, y)

    monkeypatch.setattr(loop, "train_step", train_step)
    shards = run.shards
    assert shards is not None
    train = run.config.train.model_copy(update={"micro_batches": 2, "max_steps": 3})
    config = run.config.model_copy(update={"train": train})
    with code(CLEAN):
        folder = launch.prepare(config, shards, root=tmp_path)
        (tmp_path / "shards").symlink_to(shards.path.parent)
        loop.train(folder)
    assert len(taken) == 3
    for step, (rows, micro_batches) in enumerate(taken, 1):
        batch = slm.batch_rows(folder, step)
        assert [list(row.ids) for row in batch.rows] == rows
        assert [row.micro_batch for row in batch.rows] == [0, 0, 1, 1]
        assert list(micro_batches) == [0, 1]
        assert batch.trained
    with pytest.raises(UserError, match="has the steps 1 to 3, and no step 4"):
        slm.batch_rows(folder, 4)


def test_the_documents_of_a_row_are_its_tokens_and_come_from_where_it_says(run: RunFolder) -> None:
    shards, source = run.shards, run.source
    assert shards is not None
    assert source is not None
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    train = [[shards.eot, *ids.tolist()] for ids in documents(shards, "train")]
    texts = list(source_texts(source))
    stream = [i for ids in train for i in ids]
    several = 0
    for step in range(1, 5):
        for row in slm.batch_rows(run, step).rows:
            assert stream[row.start : row.start + 33] == list(row.ids)
            shown = [
                i for each in row.documents for i in train[each.document][each.begin : each.end]
            ]
            assert shown == list(row.ids)
            assert row.text == tokenizer.decode(row.ids)
            several += len(row.documents) > 1
            for each in row.documents:
                assert row.ids[each.at] == train[each.document][each.begin]
                assert each.length == len(train[each.document])
                assert each.file == "train_00000.parquet"
                assert each.row is not None
                assert texts[each.row] == tokenizer.decode(train[each.document][1:])
    assert several


def test_a_step_is_printed_and_one_row_whole(run: RunFolder) -> None:
    made = slm.batch_rows(run, 2)
    shown = CliRunner().invoke(app, ["batch", run.name, "2"])
    assert shown.exit_code == 0
    assert "row 3, epoch 0, from token" in shown.output
    whole = CliRunner().invoke(app, ["batch", run.name, "2", "--row", "1"])
    assert made.rows[1].text in whole.output
    assert "row 0" not in whole.output.replace("train_00000.parquet, row", "")
    printed = CliRunner().invoke(app, ["batch", run.name, "2", "--json"])
    assert json.loads(printed.stdout) == made.model_dump(mode="json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a step"),
        (["2", "--find", "x"], "one of them"),
        (["--find", "x", "--row", "1"], "are of a step"),
        (["2", "--row", "4"], "has the rows 0 to 3"),
        (["0"], "has the steps 1 to 4, and no step 0"),
        (["--find", ""], "it is empty"),
    ],
)
def test_what_cannot_be_shown_is_one_message(
    run: RunFolder, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["batch", run.name, *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_run_without_its_shards_says_what_brings_them_back(root: Path, tmp_path: Path) -> None:
    copy_run(tmp_path)
    [shards] = DataRoot(tmp_path).results("shards")
    shards.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the shards of .* are gone"):
        slm.batch_rows(next((tmp_path / "runs").iterdir()), 1)
