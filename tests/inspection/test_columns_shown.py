"""The columns of a document where it is shown: `slm inspect` and `slm batch`."""

import json
from pathlib import Path

import pytest
from tiny_run import CLEAN, code
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch, loop

ROWS = [
    {"text": f"a cat and a dog number {n}", "lang": "en", "n": n, "tags": [n] * (n % 3)}
    for n in range(60)
]
RECIPE = """
recipes:
  own:
    data: {source: files, path: texts.jsonl, vocab_size: 300, val_fraction: 0.2, columns: [n, tags]}
    model: {architecture: qwen3, n_layer: 1, n_head: 2, n_embd: 32, seq_len: 32}
    train: {max_steps: 2, tokens_per_step: 128, threads: 1}
"""


@pytest.fixture
def config(project: Path) -> slm.PipelineConfig:
    (project / "pipelines.yaml").write_text(RECIPE)
    (project / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return slm.load_recipe("own")


def kept(row: int) -> dict[str, object]:
    return {name: ROWS[row][name] for name in ("n", "tags")}


def test_inspect_shows_where_a_document_is_from_and_its_columns(config: slm.PipelineConfig) -> None:
    shards = encode(config, download(config))
    for number in (0, shards.splits["train"].documents):  # the first of train, and of val
        result = CliRunner().invoke(
            app, ["inspect", shards.name, "--document", str(number), "--json"]
        )
        shown = json.loads(result.stdout)["document"]
        assert shown["text"] == ROWS[shown["row"]]["text"]
        assert shown["columns"] == kept(shown["row"])
        assert (shown["part"], shown["file"]) == (None, "train_00000.parquet")
    printed = CliRunner().invoke(app, ["inspect", shards.name, "--document", "0"]).stdout
    assert '"tags": [' in printed


def test_the_rows_of_a_step_have_the_columns_of_their_documents(config: slm.PipelineConfig) -> None:
    shards = encode(config, download(config))
    with code(CLEAN):
        run = launch.prepare(config, shards)
        loop.train(run)
    documents = [each for row in slm.batch_rows(run, 1).rows for each in row.documents]
    assert documents
    for each in documents:
        assert each.row is not None
        assert each.columns == kept(each.row)
    printed = CliRunner().invoke(app, ["batch", run.name, "1"]).stdout
    assert f'           {{"n": {documents[0].row}, "tags": [' in printed
