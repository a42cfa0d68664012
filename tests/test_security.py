"""Nobody is let in: nothing is unpickled, no name leads out of its folder, no secret is kept."""

import ast
import io
import json
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faults import Lab
from prefect import Flow, Task
from run_folders import add_checkpoint, empty_store, start_run

from slm.config import PipelineConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.model.saved import load_model
from slm.orchestration import pipeline, retrain, tasks
from slm.recipes import load_recipe
from slm.records import Checkpoint
from slm.registry import opening
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.storage import read_record
from slm.tokens.encode import encode
from slm.tokens.shards.reading import read_tokens
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tokens.units import Encoded
from slm.tracking import mirror
from slm.training.checkpoint import latest_checkpoint
from slm.training.loop import train
from slm.training.session import open_job

Config = Callable[..., PipelineConfig]
PROJECT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("slm", "flows") for path in (PROJECT / folder).rglob("*.py"))


# ---- the code ---------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.save", "torch.hub.load", "yaml.load", "yaml.unsafe_load"),
    *("eval", "exec", "os.system", "os.popen", "pd.read_pickle"),
}
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}
# The one place that runs code: a user's own, which their pipelines.yaml names.
ALLOWED = {"slm/tokens/functions.py": ["calls exec"]}


def faults_in(code: str) -> Iterator[str]:
    """What the code does that may run code found in data, a line each."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        yield from (f"imports {name}" for name in names & UNPICKLERS)
        if isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield f"calls {name}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in FORBIDDEN_KEYWORDS:
                    yield f"{keyword.arg}={value}"
                if keyword.arg == "trust_remote_code" and value is not False:
                    yield "trust_remote_code"
                if keyword.arg == "result_serializer" and value != "json":
                    yield f"result_serializer={ast.unparse(keyword.value)}"
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield "binds to every address"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_code_runs_what_it_reads(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(PROJECT).as_posix(), [])
    assert list(faults_in(path.read_text())) == allowed


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "load_dataset(name, trust_remote_code=True)",
        "load_dataset(name, trust_remote_code=flag)",
        "yaml.load(text)",
        "flow(result_serializer='pickle')",
        "subprocess.run(text, shell=True)",
        "serve(host='0.0.0.0')",
    ],
)
def test_the_check_of_the_code_finds_what_it_looks_for(code: str) -> None:
    assert len(list(faults_in(code))) == 1


def test_prefect_keeps_no_result() -> None:
    """It would pickle it."""
    made = [vars(module).values() for module in (pipeline, retrain, tasks)]
    flows_and_tasks = {x.name: x for x in chain(*made) if isinstance(x, Flow | Task)}
    assert len(flows_and_tasks) > 8
    for name, flow_or_task in flows_and_tasks.items():
        assert flow_or_task.persist_result is False, name


# ---- files that carry code ----------------------------------------------------------------------


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What a payload makes when it runs; checked at the end of the test."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "the payload ran"


@pytest.fixture(params=["pickle", "torch", "numpy"])
def payload(request: pytest.FixtureRequest, marker: Path) -> bytes:
    file = io.BytesIO()
    if request.param == "pickle":
        pickle.dump(Payload(marker), file)
    elif request.param == "torch":
        torch.save({"model": Payload(marker)}, file)
    else:
        np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_a_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.tiktoken"])
def test_a_checkpoint_that_carries_code(
    tmp_path: Path, payload: bytes, name: str, signed: bool
) -> None:
    folder = add_checkpoint(start_run(tmp_path), 1).path
    (folder / name).write_bytes(payload)
    if not signed:
        (folder / "record.json").unlink()
    with pytest.raises(CorruptionError, match=name if signed else str(folder)):
        load_model(folder)
    if signed:
        assert latest_checkpoint(folder.parent) is None  # training does not resume from it


def test_records_settings_and_journals_that_carry_code(tmp_path: Path, payload: bytes) -> None:
    run = start_run(tmp_path)
    folder = add_checkpoint(run, 1).path
    readers: dict[Path, Callable[[], object]] = {
        folder / "record.json": lambda: read_record(folder, Checkpoint),
        run / "config.json": lambda: RunFolder(run).config,
        run / "metrics.jsonl": lambda: list(RunFolder(run).journal),
        tmp_path / "x.tiktoken": lambda: Tokenizer.load(tmp_path / "x.tiktoken"),
        tmp_path / "x.bin": lambda: read_tokens(tmp_path / "x.bin"),
        tmp_path / "x.unit": lambda: Encoded.read(tmp_path / "x.unit"),
    }
    for path, read in readers.items():
        path.write_bytes(payload + b"\n")
        with pytest.raises(CorruptionError, match=path.name):
            read()


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.json", "x.csv"])
def test_data_that_carries_code(
    tmp_path: Path, payload: bytes, tiny_config: Config, name: str
) -> None:
    (tmp_path / name).write_bytes(payload)
    config = tiny_config(
        **{"data.source": "files", "data.path": str(tmp_path / name), "data.documents": None}
    )
    with pytest.raises(SlmError, match=name):
        download(config, root=tmp_path / "data")


def test_recipes_that_carry_code(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(f"recipes:\n  x: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe("x", path=path)


# ---- names ------------------------------------------------------------------------------------

ELSEWHERE = ["../../x", "..", "/etc", "a/../../b", "x\0y", "~root", ".hidden", "x\n"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere_are_refused(
    tmp_path: Path, data_root: Path, name: str, tiny_config: Config
) -> None:
    recipes = {"recipes": {name: {"train": {"max_steps": 1}}}}
    (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump(recipes))
    with pytest.raises(UserError, match="recipe"):
        load_recipe(name, path=tmp_path / "pipelines.yaml")
    with pytest.raises(UserError, match=r"registry\.model"):
        tiny_config(**{"registry.model": name})
    start_run(empty_store(data_root))
    for text in (name, f"models:/{name}@challenger"):
        with pytest.raises(UserError):
            opening.model_folder(text)
    with pytest.raises(UserError, match="unknown run"):
        opening.finished_run(name)


@pytest.mark.parametrize("key", ["../../elsewhere", "*", "/etc"])
def test_a_run_that_names_shards_elsewhere_is_refused(tmp_path: Path, key: str) -> None:
    run = start_run(tmp_path)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "shards_key": key}))
    assert RunFolder(run).shards is None
    with pytest.raises(UserError, match="shards"):
        open_job(RunFolder(run))


# ---- secrets ----------------------------------------------------------------------------------

SECRETS = ("hf_TheTokenOfTheTest", "hunter2")
SERVER = f"http://me:{SECRETS[1]}@127.0.0.1:9"


def test_no_secret_is_kept_anywhere(
    tmp_path: Path,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run from data to MLflow, with a token and a password in the environment."""
    monkeypatch.setenv("HF_TOKEN", SECRETS[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS[1])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    caplog.set_level(logging.DEBUG)
    root = empty_store(tmp_path / "data")
    config = tiny_config(**{"train.threads": 1})
    shards = encode(config, download(config, root=root), root=root)
    run = Lab(config, shards, tmp_path).prepare(root).path
    train(RunFolder(run))
    mirror.sync(RunFolder(run), tracking_uri=f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
    files = [path for path in root.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    for secret in SECRETS:
        assert secret not in caplog.text
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_password_in_the_config_is_refused_and_not_repeated(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        tiny_config(**{"registry.tracking_uri": SERVER})
    assert SECRETS[1] not in "".join(traceback.format_exception(raised.value))
    assert tiny_config(**{"registry.tracking_uri": "http://127.0.0.1:9/a@b"})


def test_a_server_that_is_down_shows_no_password(tmp_path: Path) -> None:
    with pytest.raises(SlmError) as raised:
        mirror.sync(RunFolder(start_run(tmp_path)), tracking_uri=SERVER)
    assert SECRETS[1] not in "".join(traceback.format_exception(raised.value))
