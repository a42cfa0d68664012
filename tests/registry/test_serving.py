"""A version at work in a virtual environment that has its logged requirements and no `slm`."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    empty_store,
    finish_run,
    start_run,
    step_events,
    write_journal,
)
from servers import free_port, running
from tiny_run import shards_of

from slm.config import RegistryConfig
from slm.model.sample import generate
from slm.model.saved import load_model
from slm.registry import gate, register
from slm.tracking.server import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
SETTINGS = {"temperature": 0.5, "top_k": 5, "max_new_tokens": 9, "seed": 7}
ALONE = """
import importlib.util, json, sys, time
begin = time.perf_counter()
import mlflow
imported = time.perf_counter()
model = mlflow.pyfunc.load_model("models:/slm@champion")
loaded = time.perf_counter()
texts, ends = [], []
for _ in range(2):
    texts += model.predict(["One day"], params=json.loads(sys.argv[1]))
    ends.append(time.perf_counter())
assert importlib.util.find_spec("slm") is None
seconds = {"import": imported - begin, "load": loaded - imported,
           "first answer": ends[0] - loaded, "second answer": ends[1] - ends[0]}
print(json.dumps({"texts": texts, "seconds": seconds}))
"""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the one version of a registry, `models:/slm@champion`."""
    root = empty_store(tmp_path_factory.mktemp("served") / "my data")
    path = start_run(root)
    write_journal(path, step_events(1, 60))
    run = finish_run(path, trained=30)
    register.register(CONFIG, run, add_evaluation(run), None, shards_of(run), root=root)
    lenient = RegistryConfig(max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1)
    gate.promote("models:/slm/1", root=root, thresholds=lenient)
    return run.checkpoint("best")


@pytest.fixture(scope="module")
def python(champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's Python, with only what the version's requirements name."""
    models = champion.parents[3] / "mlflow" / "artifacts" / "models"
    requirements = next(models.glob("*/artifacts/requirements.txt"))
    folder = tmp_path_factory.mktemp("environment") / "venv"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements]
    subprocess.run(install, check=True, env=_environment(champion))
    print(f"install {time.perf_counter() - begin:.1f} s")
    return folder / "bin" / "python"


def _environment(champion: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_TRACKING_URI": default_uri(champion.parents[3]),
    }


def sampled(champion: Path, prompt: str) -> str:
    """What `slm sample` writes."""
    return generate(*load_model(champion), [prompt], **SETTINGS)[0].completion


def test_a_version_is_loaded_by_its_alias(champion: Path, python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-c", ALONE, json.dumps(SETTINGS)],
        cwd=tmp_path, env=_environment(champion), check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    result = json.loads(done.stdout)
    print(result["seconds"])
    assert result["texts"] == [sampled(champion, "One day")] * 2


def test_a_version_is_served(
    champion: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _environment(champion).items():
        monkeypatch.setenv(name, value)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = ["models", "serve", "-m", "models:/slm@champion", "--env-manager", "local"]
    command = [*serve, "-h", "127.0.0.1", "-p", str(port)]

    def ask(body: str) -> list[str]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/invocations", body.encode(), headers)
        begin = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:
            completions = list(json.loads(answer.read())["predictions"])
        print(f"answer {time.perf_counter() - begin:.3f} s")
        return completions

    begin = time.perf_counter()
    with running(command, f"{url}/ping", tmp_path, python=python):
        print(f"ready {time.perf_counter() - begin:.1f} s")
        body = {"inputs": ["One day", "The dog"], "params": SETTINGS}
        assert ask(json.dumps(body))[0] == sampled(champion, "One day")
        assert ask(json.dumps({**body, "inputs": ["One day"]})) == [sampled(champion, "One day")]
        shown = re.search(r"-d '(\{\"inputs\".*?)'", PAGE.read_text("utf-8"))
        assert shown is not None
        assert ask(shown[1])[0]
        for wrong, message in (
            ({**body, "params": {"top_k": "many"}}, "top_k"),
            ({**body, "params": {"max_tokens": 3}}, "did you mean 'max_new_tokens'"),
            ({**body, "inputs": [None]}, "prompt 1 is null"),
            ({"messages": [{"role": "user", "content": "a"}]}, "messages are for a chat model"),
        ):
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                ask(json.dumps(wrong))
            answer = json.loads(refused.value.read())
            assert message in answer["message"]
            assert "stack_trace" not in answer
