"""What a served version answers: a right request does what it says, a wrong one gets 400 and why.

The requests go through MLflow's own scoring server, in this process.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from fastapi.testclient import TestClient
from tiny_model import BYTES, SEQ_LEN, tiny_model

from slm.model.sample import generate
from slm.model.saved import CONFIG, MODEL, LoadedModel, describe_model
from slm.registry import packing
from slm.tokens.tokenizer.bpe import TOKENIZER

OURS = LoadedModel(tiny_model("qwen3"), BYTES)
JSON = {"Content-Type": "application/json"}
FEW = {"max_new_tokens": 5}

Ask = Callable[[Any], tuple[int, Any]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder."""
    folder = tmp_path_factory.mktemp("version")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    safetensors.torch.save_file(OURS.model.state_dict(), checkpoint / MODEL)
    (checkpoint / CONFIG).write_text(json.dumps(describe_model(OURS.model)))
    BYTES.save(checkpoint / TOKENIZER)
    packing.pack(checkpoint, folder / "packed", model_id="m-1", run_id="r")
    return folder / "packed"


@pytest.fixture(scope="module")
def server(packed: Path) -> Iterator[TestClient]:
    import mlflow
    from mlflow.pyfunc import scoring_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # init sets it, and leaves it
        yield TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(packed))))


@pytest.fixture
def ask(server: TestClient) -> Ask:
    """Sends a request; returns the status, and the predictions or the message."""

    def call(body: Any) -> tuple[int, Any]:
        content = body if isinstance(body, str) else json.dumps(body)
        answer = server.post("/invocations", content=content, headers=JSON)
        answered = answer.json()
        if answer.status_code == 200:
            return 200, answered["predictions"] if isinstance(answered, dict) else answered
        assert "stack_trace" not in answered
        return answer.status_code, answered["message"]

    return call


def sampled(prompts: list[str], **settings: Any) -> list[str]:
    """What `slm sample` writes."""
    given = {**packing.PARAMS, **settings}
    return [s.completion for s in generate(*OURS, prompts, **given)]


# ---- right --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["a", "b"]},
        {"instances": ["a", "b"]},
        {"inputs": [["a"], ["b"]]},
        {"inputs": {"prompt": ["a", "b"]}},
        {"inputs": [{"prompt": "a"}, {"prompt": "b"}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [["a"], ["b"]]}},
        {"dataframe_records": [{"text": "a"}, {"text": "b"}]},
    ],
)
def test_prompts_come_in_every_form_of_mlflow(ask: Ask, body: dict[str, Any]) -> None:
    assert ask({**body, "params": FEW}) == (200, sampled(["a", "b"], **FEW))


def test_one_text_is_one_prompt(ask: Ask) -> None:
    assert ask({"inputs": "ab", "params": FEW}) == (200, sampled(["ab"], **FEW))
    assert ask({"inputs": "", "params": FEW}) == (200, sampled([""], **FEW))
    assert ask({"prompt": "ab", **FEW}) == (200, sampled(["ab"], **FEW))
    assert ask({"prompt": ["a", "b"], **FEW}) == (200, sampled(["a", "b"], **FEW))
    assert ask({"inputs": []}) == (200, [])


@pytest.mark.parametrize("text", ["None", "nan", "null", "1", "né ✓", "<|endoftext|>"])
def test_a_text_is_taken_as_it_is(ask: Ask, text: str) -> None:
    assert ask({"inputs": [text], "params": FEW}) == (200, sampled([text], **FEW))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 2**63 - 1},
        {"top_k": 3},
        {"top_k": None, "top_p": None, "min_p": None},
        {"top_p": 0.4},
        {"min_p": 0.3},
        {"repetition_penalty": 5.0, "temperature": 0},
        {"max_new_tokens": 0},
    ],
)
def test_every_param_does_what_it_says(ask: Ask, params: dict[str, Any]) -> None:
    given = {"max_new_tokens": 30, **params}
    status, texts = ask({"inputs": ["A girl"], "params": given})
    assert (status, texts) == (200, sampled(["A girl"], **given))
    assert texts != sampled(["A girl"], max_new_tokens=30)


def test_a_text_ends_before_a_stop(ask: Ask) -> None:
    (whole,) = sampled(["A girl"])
    stop = whole[4:6]
    assert ask({"inputs": ["A girl"], "params": {"stop": ["never", stop]}}) == (
        200,
        [whole[: whole.index(stop)]],
    )


def test_one_prompt_twice_gives_two_texts(ask: Ask) -> None:
    _, texts = ask({"inputs": ["a", "a"]})
    assert texts[0] != texts[1]


def test_the_params_are_those_of_sampling() -> None:
    given = inspect.signature(generate).parameters.values()
    assert set(packing.PARAMS) == {p.name for p in given if p.kind is p.KEYWORD_ONLY} - {"on_text"}


# ---- wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 3}, "unknown param 'max_tokens': did you mean 'max_new_tokens'?"),
        ({"temprature": 0.5}, "unknown param 'temprature': did you mean 'temperature'?"),
        ({"n": 2}, "unknown param 'n': valid: max_new_tokens, min_p, "),
        ({"it's": 2, 'a "b"': 1}, "unknown param"),
        ({"temperature": None}, "temperature=None: it must be a number"),
        ({"temperature": -1}, "temperature=-1.0: it must be a number, 0 or above"),
        ({"temperature": float("nan")}, "temperature=nan: it must be"),
        ({"top_k": 0}, "top_k=0: it must be"),
        ({"top_p": 1.5}, "top_p=1.5: it must be"),
        ({"min_p": -0.5}, "min_p=-0.5: it must be"),
        ({"repetition_penalty": 0}, "repetition_penalty=0.0: it must be"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1: it must be"),
        ({"seed": -1}, "seed=-1: a seed is a whole number"),
        ({"seed": 2**63}, f"seed={2**63}: a seed is a whole number"),
        ({"stop": [""]}, "stop='': an empty string"),
        ({"stop": [None]}, "stop=None: it is no text"),
    ],
)
def test_a_wrong_param_is_refused_by_its_name(
    ask: Ask, params: dict[str, Any], message: str
) -> None:
    status, answer = ask({"inputs": ["a"], "params": params})
    assert status == 400
    assert answer.startswith(message)
    assert "\n" not in answer


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("seed", 1.5), ("seed", True), ("stop", "x"), ("top_k", [1])],
)
def test_a_param_of_another_type_is_refused_by_mlflow(ask: Ask, name: str, value: object) -> None:
    status, answer = ask({"inputs": ["a"], "params": {name: value}})
    assert status == 400
    assert name in answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["a", None]}, "prompt 2 is null"),
        ({"inputs": None}, "prompt 1 is null"),
        ({"dataframe_split": {"columns": ["prompt"], "data": [[None]]}}, "prompt 1 is null"),
        ({"dataframe_records": [{"prompt": "a"}, {"prompt": None}]}, "prompt 2 is null"),
        ({"inputs": [7]}, "prompt 1 is no text, but of the type int"),
        ({"inputs": [True]}, "prompt 1 is no text"),
        ({"inputs": [["a", "b"]]}, "must be one column, the prompts, not 2 (0, 1)"),
        ({"inputs": [[["a"]]]}, "prompt 1 is no text"),
        ({"inputs": {"id": ["1"], "prompt": ["a"]}}, "not 2 (id, prompt)"),
        ({"inputs": [{"prompt": "a"}, {"text": "b"}]}, "not 2 (prompt, text)"),
        (
            {"dataframe_split": {"columns": ["id", "prompt"], "data": [["1", "a"]]}},
            "not 2 (id, prompt)",
        ),
        ({"dataframe_records": [{"id": "1", "prompt": "a"}]}, "not 2 (id, prompt)"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages are for a chat model"),
        (
            {"model": "slm", "messages": [{"role": "user", "content": "a"}], "temperature": 1},
            "messages are for a chat model",
        ),
        ({"inputs": [{"messages": [{"role": "user"}]}]}, "messages are for a chat model"),
        ({"prompt": "a", "max_tokens": 3}, "not 2 (prompt, max_tokens)"),
        ({"inputs": ["x" * 100]}, f"the model's context has room for {SEQ_LEN - 1}"),
        ({}, "exactly one of the input fields"),
        ("{", "valid JSON"),
        ("[1]", "Received a list"),
    ],
)
def test_what_is_no_prompt_is_refused(ask: Ask, body: Any, message: str) -> None:
    status, answer = ask(body)
    assert status == 400
    assert message in answer


def test_a_csv_has_one_column_of_texts(server: TestClient) -> None:
    def send(text: str) -> tuple[int, str]:
        answer = server.post("/invocations", content=text, headers={"Content-Type": "text/csv"})
        return answer.status_code, answer.text

    assert send("prompt\na\nb\n")[0] == 200
    assert send("id,prompt\n1,a\n")[0] == 400
    status, answer = send('prompt\na\n""\n')
    assert (status, "prompt 2 is null" in answer) == (400, True)


# ---- other models -------------------------------------------------------------------------------


def test_a_param_is_refused_where_warnings_are_not_logged(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr(logging.getLogger("mlflow"), "level", logging.ERROR)
    model = mlflow.pyfunc.load_model(str(packed))
    with pytest.raises(mlflow.MlflowException, match="unknown param 'max_tokens'"):
        model.predict(["a"], params={"max_tokens": 3})
    with pytest.raises(mlflow.MlflowException, match="unknown param 'max_tokens'"):
        model.predict(["a"], params={"max_tokens": 3})


OTHER = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Other(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params):
        return [str(params)]

set_model(Other())
"""


def test_another_model_in_the_process_keeps_the_ways_of_mlflow(
    packed: Path, tmp_path: Path
) -> None:
    import mlflow
    from mlflow.models import infer_signature

    (tmp_path / "other.py").write_text(OTHER)
    mlflow.pyfunc.save_model(
        tmp_path / "other",
        python_model=str(tmp_path / "other.py"),
        signature=infer_signature(["a"], ["b"], params={"seed": 1}),
        input_example=["a"],
        pip_requirements=["mlflow"],
    )
    mlflow.pyfunc.load_model(str(packed))
    other = mlflow.pyfunc.load_model(str(tmp_path / "other"))
    assert other.predict(["a"], params={"max_tokens": 3}) == ["{'seed': 1}"]
