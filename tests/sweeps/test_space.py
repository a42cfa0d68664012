from pathlib import Path
from typing import Any

import pytest

from slm.errors import UserError
from slm.sweeps.space import Dimension, combinations, parse_dimension, parse_space, point
from tests.sweeps.sweeping import tiny_sweep

pytestmark = pytest.mark.usefixtures("project")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model.n_layer", "2,4,6", {"choices": (2, 4, 6)}),
        ("model.dropout", "0:0.2", {"low": 0.0, "high": 0.2}),
        ("model.n_layer", "int:2:8", {"low": 2.0, "high": 8.0, "integer": True}),
        ("train.learning_rate", "log:1e-3:1e-2", {"low": 1e-3, "high": 1e-2, "log": True}),
        ("model.n_inner", "log:int:16:256", {"low": 16.0, "high": 256.0, "log": True,
                                             "integer": True}),
        ("model.n_inner", "int:log:16:256", {"low": 16.0, "high": 256.0, "log": True,
                                             "integer": True}),
        ("train.optimizer", "adamw,muon", {"choices": ("adamw", "muon")}),
        ("train.grad_clip", "1.0, null", {"choices": (1.0, None)}),
        ("train.init_from", "models:/a@champion,models:/b/2",
         {"choices": ("models:/a@champion", "models:/b/2")}),
        ("model.n_layer", [1, 2], {"choices": (1, 2)}),
        ("model.n_layer", 3, {"choices": (3,)}),
        ("train.muon_learning_rate",
         {"range": "log:1e-3:1e-1", "when": {"train.optimizer": "muon"}},
         {"low": 1e-3, "high": 1e-1, "log": True, "when": {"train.optimizer": ("muon",)}}),
    ],
)  # fmt: skip
def test_the_forms_of_a_dimension(key: str, text: Any, expected: dict[str, Any]) -> None:
    parsed = parse_dimension(key, text)
    assert parsed == Dimension(**expected)
    if isinstance(text, str):
        assert parse_dimension(key, parsed.text) == parsed  # as it is shown, it can be given again


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.lr": "1,2"}, "train.learning_rate"),
        ({"model.n_layers": "1,2"}, "model.n_layer"),
        ({"train.learning_rate": "1e-2:1e-3"}, "train.learning_rate: 1e-2:1e-3 is empty"),
        ({"train.learning_rate": "1e-2:1e-2"}, "is empty"),
        ({"train.learning_rate": "log:0:1"}, "a logarithm needs numbers above 0"),
        ({"train.learning_rate": "log:-1:1"}, "a logarithm needs numbers above 0"),
        ({"train.learning_rate": "log:1e-3"}, "is none of"),
        ({"train.learning_rate": "1:1e999"}, "finite"),
        ({"train.learning_rate": ""}, "is none of"),
        ({"train.learning_rate": []}, "is empty"),
        ({"train.learning_rate": "-1,2"}, "train.learning_rate=-1 is not valid"),
        ({"train.learning_rate": "0:1"}, "train.learning_rate=0.0, which is refused"),
        ({"model.n_layer": "int:1.5:3"}, "int takes whole numbers"),
        ({"model.n_layer": "1.5:3"}, "model.n_layer=1.5"),
        ({"model.n_layer": "2,2"}, "twice"),
        ({"train.optimizer": "adam,muon"}, "train.optimizer='adam' is not valid"),
        ({"model.n_head": "2,3"}, "n_embd=32 is not a multiple of model.n_head=3"),
        ({"train.checkpoint_every": "1,2"}, "no model depends on it"),
        ({"report.seed": "1,2"}, "no model depends on it"),
        ({"evaluate.documents": "1,2"}, "hold out other documents"),
        ({"data.val_fraction": "0.1,0.2"}, "hold out other documents"),
        ({"train.learning_rate": {"range": "1:2", "if": 1}}, "did you mean|valid"),
        ({"train.learning_rate": {"range": "1:2", "choices": [1]}}, "give `range` or `choices`"),
        ({"train.learning_rate": {"range": "1:2", "when": {"train.optimizer": "muon"}}},
         "unknown setting in the condition"),
        ({"train.learning_rate": {"range": "1:2", "when": {"train.optimizer": "sgd"}},
          "train.optimizer": "adamw,muon"}, "train.optimizer is never 'sgd'"),
        ({"train.learning_rate": {"range": "1:2", "when": {"model.dropout": 0}},
          "model.dropout": "0:0.2"}, "conditions are on choices"),
        ({"train.schedule": {"choices": ["wsd", "linear"], "when": {"train.optimizer": "muon"}},
          "train.optimizer": {"choices": ["adamw", "muon"], "when": {"train.schedule": "wsd"}}},
         "in a circle"),
        ({}, "needs a space"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_is_one_message(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_sweep(space) if space else define_nothing()


def define_nothing() -> None:
    from slm.sweeps.definition import define_sweep

    define_sweep("tiny", {})


def test_assignments_of_the_command_line() -> None:
    assert list(parse_space(["model.n_layer=1,2", "model.dropout = 0:0.1"])) == [
        "model.n_layer",
        "model.dropout",
    ]
    for wrong in (["model.n_layer"], ["model.n_layer=1", "model.n_layer=2"]):
        with pytest.raises(UserError, match=r"--space"):
            parse_space(wrong)


def test_values_are_as_the_config_has_them() -> None:
    space = tiny_sweep({"train.max_steps": "1e1,2e1", "train.weight_decay": "0,1"}).space
    assert space["train.max_steps"].choices == (10, 20)
    assert repr(space["train.weight_decay"].choices) == "(0.0, 1.0)"
    whole = tiny_sweep({"model.n_layer": "1:4"}).space["model.n_layer"]
    assert (whole.integer, whole.values) == (True, (1, 2, 3, 4))


def test_every_value_of_a_range_is_within_it_and_as_likely() -> None:
    log = Dimension(low=1e-3, high=1e-1, log=True)
    assert [log.at(0), log.at(0.5), log.at(0.999999999)] == [0.001, 0.01, 0.1]
    whole = Dimension(low=2, high=5, integer=True)
    counts = [whole.at(share / 400) for share in range(400)]
    assert {value: counts.count(value) for value in counts} == {2: 100, 3: 100, 4: 100, 5: 100}
    wide = Dimension(low=1, high=1000, integer=True, log=True)
    assert [wide.at(0), wide.at(0.9999999)] == [1, 1000]


def test_a_setting_whose_condition_does_not_hold_is_left_out() -> None:
    space = {
        "train.muon_learning_rate": Dimension(
            choices=(0.01, 0.02), when={"train.optimizer": ("muon",)}
        ),
        "train.optimizer": Dimension(choices=("adamw", "muon")),
    }
    assert point(space, [0.9, 0.1]) == {"train.optimizer": "adamw"}
    assert point(space, [0.9, 0.9]) == {
        "train.muon_learning_rate": 0.02,
        "train.optimizer": "muon",
    }
    assert combinations(space) == [
        {"train.optimizer": "adamw"},
        {"train.muon_learning_rate": 0.01, "train.optimizer": "muon"},
        {"train.muon_learning_rate": 0.02, "train.optimizer": "muon"},
    ]
    assert combinations({"model.dropout": Dimension(low=0, high=1)}) is None


def test_a_chain_of_conditions_follows_its_order(project: Path) -> None:
    space = {
        "train.cooldown": {"choices": [0.1, 0.2], "when": {"train.schedule": "wsd"}},
        "train.schedule": {"choices": ["wsd", "linear"], "when": {"train.optimizer": "muon"}},
        "train.optimizer": "adamw,muon",
    }
    every = combinations(tiny_sweep(space, sampler="grid").space)
    assert every is not None
    assert [len(values) for values in every] == [1, 3, 2, 3]
