import importlib.util
from pathlib import Path
from typing import Any

import pytest

from slm.errors import UserError
from slm.sweeps.definition import (
    Sweep,
    check_sweeps,
    define_sweep,
    load_sweep,
    parse_budget,
    sweep_names,
    warnings_of,
)
from tests.sweeps.sweeping import RATES, tiny_sweep

pytestmark = pytest.mark.usefixtures("project")
SWEEPS = """
sweeps:
  rates:
    description: both
    recipe: tiny
    overrides: {train.max_steps: 8}
    space:
      train.optimizer: [adamw, muon]
      train.muon_learning_rate: {range: "log:1e-3:1e-1", when: {train.optimizer: muon}}
    trials: 9
    halving: 2
    budget: 2h
"""


def add(project: Path, text: str) -> None:
    file = project / "pipelines.yaml"
    file.write_text(file.read_text() + text)


def test_a_sweep_of_the_file_is_the_one_of_the_command_line(project: Path) -> None:
    add(project, SWEEPS)
    assert sweep_names() == ["rates", *(n for n in sweep_names() if n != "rates")]
    loaded = load_sweep("rates", trials=12, overrides={"train.seed": 3})
    given = define_sweep(
        "tiny",
        {
            "train.muon_learning_rate": {
                "range": "log:1e-3:1e-1",
                "when": {"train.optimizer": "muon"},
            },
            "train.optimizer": "adamw,muon",
        },
        name="rates",
        overrides={"train.max_steps": 8, "train.seed": 3},
        trials=12,
        halving="2:2",
        budget="2h",
    )
    assert (loaded, loaded.key) == (given, given.key)
    assert Sweep.model_validate_json(loaded.model_dump_json()).key == loaded.key


def test_the_shipped_sweeps_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_sweeps() >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweeps: [rates]", "is not a mapping"),
        ("sweeps: {rates: 3}", "rates is not a mapping"),
        ("sweeps: {rates: {space: {model.n_layer: [1]}}}", "names no recipe"),
        ("sweeps: {rates: {recipe: tiny}}", "needs a space"),
        ("sweeps: {rates: {recipe: tinny, space: {model.n_layer: [1]}}}", "mean 'tiny'"),
        ("sweeps: {rates: {recipe: tiny, sapce: {model.n_layer: [1]}}}", "mean 'space'"),
        ("sweeps: {rates: {recipe: tiny, trails: 3, space: {model.n_layer: [1]}}}", "'trials'"),
        ("sweeps: {rates: {recipe: tiny, trials: -1, space: {model.n_layer: [1]}}}", "more than 0"),
        ("sweeps: {rates: {recipe: tiny, overrides: 3, space: {model.n_layer: [1]}}}", "mapping"),
        ("sweeps: {rates: {recipe: tiny, space: {model.n_layer: [0]}}}", "rates: the space has"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_message(project: Path, text: str, message: str) -> None:
    add(project, text)
    with pytest.raises(UserError, match=message):
        check_sweeps()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "bayes"}, "sampler"),
        ({"sampler": "grid"}, "grid needs choices"),
        ({"trials": 0}, "trials"),
        ({"batch": 0}, "batch"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"name": "a/b"}, "the name 'a/b'"),
        ({"budget": "soon"}, "budget='soon' is none of"),
        ({"budget": "0h"}, "budget='0h' is none of"),
        ({"halving": "x"}, "FACTOR:RUNGS"),
        ({"halving": 1}, "at least 2"),
        ({"halving": "3:3"}, "needs 13 trials"),
        ({"overrides": {"train.learning_rat": 1}}, "train.learning_rate"),
        ({"space": {"train.seed": "1,2"}, "seeds": 2}, "train.seed is in the space"),
        ({"space": {"train.seed": "int:1:5000"}, "sampler": "grid"}, "5,000 combinations"),
        ({"space": {"train.max_steps": "2,4", "train.epochs": "1,2"}}, "exactly one limit"),
    ],
)
def test_what_cannot_be_swept_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_sweep(**fields)


def test_tpe_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(
        "slm.extras.find_spec", lambda name: None if name == "optuna" else here(name)
    )
    with pytest.raises(UserError, match=r"slm-pipeline\[sweep\]"):
        tiny_sweep(sampler="tpe")
    tiny_sweep(sampler="random")


def test_the_key_is_of_what_proposals_depend_on() -> None:
    first = tiny_sweep()
    for same in ({"trials": 50}, {"budget": "3h"}, {"name": "other"},
                 {"overrides": {"report.seed": 3}}):  # fmt: skip
        assert tiny_sweep(**same).key == first.key, same
    assert tiny_sweep(dict(reversed(RATES.items()))).key == first.key
    for other in ({"seed": 8}, {"seeds": 2}, {"batch": 3}, {"halving": 2},
                  {"overrides": {"train.weight_decay": 0.2}}, {"space": {"model.n_layer": "1,2"}},
                  {"space": {**RATES, "train.learning_rate": "1e-3:1e-2"}}):  # fmt: skip
        assert tiny_sweep(**other).key != first.key, other
    assert first.model_copy(update={"inputs": "x"}).key != first.key


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [("90s", "seconds", 90), ("30m", "seconds", 1800), ("2h", "seconds", 7200),
     ("1.5 h", "seconds", 5400), ("1e9 tokens", "tokens", 1e9), ("40 trials", "trials", 40)],
)  # fmt: skip
def test_the_forms_of_a_budget(text: str, kind: str, amount: float) -> None:
    assert (parse_budget(text).kind, parse_budget(text).amount) == (kind, amount)


def test_a_limit_in_seconds_is_warned_of() -> None:
    assert not warnings_of(tiny_sweep())
    [warning] = warnings_of(tiny_sweep(overrides={"train.max_seconds": 5}))
    assert "train.max_steps or train.max_tokens gives the same ones" in warning
    steps = {**RATES, "train.max_steps": "2,4"}
    assert not warnings_of(tiny_sweep(steps, overrides={"train.max_seconds": 5}))
