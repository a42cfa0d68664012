"""`slm sample`: what it prints, with a run that was trained for four steps."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import copy_run
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.errors import UserError
from slm.report.prompts import report_prompts

Sample = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(copy_run(tmp_path))


@pytest.fixture
def sample(run: str) -> Sample:
    """Runs `slm sample` and returns what it prints; its errors are raised."""

    def call(*arguments: str) -> str:
        command = ["sample", run, "--max-new-tokens", "8", *arguments]
        return CliRunner().invoke(app, command, catch_exceptions=False).stdout

    return call


def test_several_texts_of_one_prompt_are_all_different(sample: Sample, run: str) -> None:
    written = json.loads(sample("-n", "5", "--prompt", "Tom", "--json"))["samples"]
    assert len({s["completion"] for s in written}) == 5
    expected = slm.sample(
        slm.load_model(run), ["Tom"] * 5, temperature=0.8, top_k=50, max_new_tokens=8, seed=1
    )
    assert [s["completion"] for s in written] == [s.completion for s in expected]
    shown = sample("-n", "5", "--prompt", "Tom")
    assert shown == "\n".join(f"Tom{s.completion}\n" for s in expected)


def test_one_prompt_given_twice_gives_two_texts(sample: Sample) -> None:
    first, second = json.loads(sample("--prompt", "Tom", "--prompt", "Tom", "--json"))["samples"]
    assert first["completion"] != second["completion"]
    (again,) = json.loads(sample("--prompt", "Tom", "--seed", str(second["seed"]), "--json"))[
        "samples"
    ]
    assert again["completion"] == second["completion"]


def test_what_has_no_more_tokens_is_the_prompt(sample: Sample) -> None:
    assert sample("--prompt", "Tom", "--prompt", "Sue", "--max-new-tokens", "0") == "Tom\n\nSue\n"
    text = sample("--prompt", "Tom").removesuffix("\n")
    stop = text.removeprefix("Tom")[0]
    assert sample("--prompt", "Tom", "--stop", stop) == "Tom\n"


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_what_is_no_seed_is_refused(sample: Sample, seed: str) -> None:
    with pytest.raises(UserError, match=f"seed={seed}: a seed is a whole number from 0"):
        sample("--seed", seed)


def test_several_greedy_texts_are_refused(sample: Sample) -> None:
    with pytest.raises(UserError, match="-n 2 with temperature 0"):
        sample("--greedy", "-n", "2")


def test_a_chat_refuses_its_settings_before_it_begins(run: str) -> None:
    for wrong, message in (("--seed=-1", "seed=-1"), ("--top-p=2", "top_p=2.0")):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, ["chat", run, wrong], catch_exceptions=False)


def test_int8_weights_are_another_text_of_nearly_the_same_model(sample: Sample, run: str) -> None:
    given = ("--prompt", "Tom", "--json", "--max-new-tokens", "40")
    plain, rounded = json.loads(sample(*given)), json.loads(sample(*given, "--weights", "int8"))
    assert (plain["weights"], rounded["weights"]) == ("float32", "int8")
    settings = {"temperature": 0.8, "top_k": 50, "max_new_tokens": 40, "seed": 1}
    (expected,) = slm.sample(slm.load_model(run), "Tom", weights="int8", **settings)
    assert [s["completion"] for s in rounded["samples"]] == [expected.completion]
    shown = sample("--prompt", "Tom", "--weights", "int8", "--max-new-tokens", "40")
    assert shown == f"Tom{expected.completion}\n"


def test_int8_weights_are_read_on_the_cpu_where_there_is_a_gpu(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    given = ("--prompt", "Tom", "--weights", "int8", "--max-new-tokens", "4")
    assert sample(*given).startswith("Tom")


def test_weights_that_do_not_exist_are_refused(run: str) -> None:
    result = CliRunner().invoke(app, ["sample", run, "--weights", "int4"])
    assert result.exit_code == 2
    assert all(f"'{name}'" in result.output for name in ("int4", "float32", "int8"))


def test_without_a_prompt_it_begins_as_the_report_does(sample: Sample, run: str) -> None:
    folder = slm.open_run(run)
    expected, *_ = report_prompts(folder.config, folder.shards)
    samples = json.loads(sample("-n", "2", "--json"))["samples"]
    assert [s["prompt"] for s in samples] == [expected] * 2
    assert expected
    assert folder.shards is not None
    shutil.rmtree(folder.shards.path)
    (alone,) = json.loads(sample("--json"))["samples"]
    assert (alone["prompt"], alone["tokens"] > 0) == ("", True)


def test_chat_with_json_is_a_line_per_text_and_the_texts_those_of_sample(
    sample: Sample, run: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    command = ["chat", run, "--max-new-tokens", "8", "--json"]
    shown = CliRunner().invoke(app, command, input="Tom\n\n", catch_exceptions=False)
    signal.signal(signal.SIGTERM, before)
    first, second = map(json.loads, shown.stdout.splitlines())
    (expected,) = json.loads(sample("--prompt", "Tom", "--json"))["samples"]
    assert first["completion"] == expected["completion"]
    assert second["prompt"] == "Tom" + first["completion"]
    assert "/settings" in shown.stderr
