"""The rules for settings: what they give is valid, and moves with data and machine."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import DataConfig, PipelineConfig
from slm.evaluation.intervals import MIN_DOCUMENTS
from slm.project import fit
from slm.project.files import pipelines_yaml
from slm.project.fit import Machine
from slm.project.start import GATE_DOCUMENTS
from slm.project.survey import Figures, Survey
from slm.recipes import load_recipe
from slm.training.forecast import MAX_CONTEXT, MAX_EPOCHS
from slm.training.preflight import measure

AMX = Machine("amx", 240e9, "2 cores with AMX")
PLAIN = Machine("cpu", 130e9, "2 cores without AMX")
GPU = Machine("gpu", 200e12, "a GPU")
MACHINES = (AMX, PLAIN, GPU)
DATA = DataConfig(source="files", path="x.jsonl")


def survey_of(documents: int, mean: int, spread: float = 2.0) -> Survey:
    train = Figures(documents, documents * mean, True)
    return Survey("jsonl", {"train": train}, mean, int(spread * mean), mean, 4.0)


def settings_of(survey: Survey, machine: Machine) -> dict[str, Any]:
    return {choice.key: choice.value for choice in fit.fit(survey, DATA, machine)}


def parameters(chosen: dict[str, Any]) -> int:
    return chosen["model.n_embd"] ** 2 * chosen["model.n_layer"]


@settings(max_examples=20, deadline=None)
@given(
    documents=st.integers(1, 10**8),
    mean=st.integers(1, 10**6),
    spread=st.floats(1, 30),
    machine=st.sampled_from(MACHINES),
)
def test_every_recipe_is_valid(
    tmp_path_factory: pytest.TempPathFactory,
    documents: int,
    mean: int,
    spread: float,
    machine: Machine,
) -> None:
    choices = [
        fit.Choice("data.source", "files", ""),
        fit.Choice("data.path", "/in/x.jsonl", ""),
        *fit.fit(survey_of(documents, mean, spread), DATA, machine),
    ]
    path = tmp_path_factory.mktemp("fit") / "pipelines.yaml"
    path.write_text(pipelines_yaml("x", "The documents", ["a note"], choices), "utf-8")
    config = load_recipe("x", path=path)
    stated = config.model_dump(mode="json", exclude_unset=True)
    for choice in choices:
        section, _, key = choice.key.partition(".")
        assert stated[section][key] == choice.value
    assert config.train.tokens_per_step % config.model.seq_len == 0


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.kind)
def test_more_data_never_makes_a_smaller_model(machine: Machine) -> None:
    made = [settings_of(survey_of(10**power, 1000), machine) for power in range(1, 9)]
    for smaller, larger in pairwise(made):
        assert smaller["data.vocab_size"] <= larger["data.vocab_size"]
        assert parameters(smaller) <= parameters(larger)
        assert smaller["train.max_seconds"] <= larger["train.max_seconds"] or (
            parameters(smaller) < parameters(larger)
        )
    assert parameters(made[0]) < parameters(made[-1])


@pytest.mark.parametrize("documents", [100, 5_000, 1_000_000])
def test_a_faster_machine_never_makes_a_smaller_model(documents: int) -> None:
    made = [parameters(settings_of(survey_of(documents, 1000), m)) for m in (PLAIN, AMX, GPU)]
    assert made == sorted(made)


def test_the_same_data_on_the_same_kind_of_machine_gives_the_same_recipe() -> None:
    survey = survey_of(5000, 800)
    assert fit.fit(survey, DATA, AMX) == fit.fit(survey, DATA, AMX)
    assert fit.this_machine() == fit.this_machine()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.kind)
@pytest.mark.parametrize("documents", [20_000, 1_000_000])
def test_slm_check_has_nothing_to_say(machine: Machine, documents: int) -> None:
    """Enough tokens per parameter, not too many epochs, a context that documents reach."""
    survey = survey_of(documents, 800)
    chosen = settings_of(survey, machine)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in chosen.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    needs = measure(PipelineConfig.model_validate({"recipe": "x", **sections}))
    of_train = survey.train.bytes / 4.0
    vocab, context = chosen["data.vocab_size"], chosen["model.seq_len"]
    size = fit.size_for(of_train, vocab, context, machine)
    assert size.parameters == needs.parameters
    assert needs.parameters <= size.tokens <= MAX_EPOCHS * of_train
    assert size.seconds <= chosen["train.max_seconds"] + 10
    assert chosen["model.seq_len"] <= MAX_CONTEXT * survey.mean / 4.0


@pytest.mark.parametrize("documents", [100, 150, 400, 3000, 9_000])
def test_enough_is_held_out_for_the_gate(documents: int) -> None:
    fraction = settings_of(survey_of(documents, 500), AMX)["data.val_fraction"]
    assert fraction <= 0.2
    assert fraction * documents >= MIN_DOCUMENTS == GATE_DOCUMENTS


def test_the_default_fraction_is_kept_where_it_is_enough() -> None:
    assert "data.val_fraction" not in settings_of(survey_of(20_000, 500), AMX)
    assert "data.val_fraction" not in settings_of(survey_of(5, 500), AMX)


def test_tinystories_gets_about_the_shipped_recipe() -> None:
    """4.0 MB on two cores with AMX: `tinystories-sample`, one width smaller."""
    survey = Survey("parquet", {"train": Figures(5000, 4_005_549, True)}, 724, 1445, 801.0, 4.04)
    chosen = settings_of(survey, AMX)
    shipped = load_recipe("tinystories-sample", {"data.path": "x"}, path=ROOT / "pipelines.yaml")
    assert chosen["data.vocab_size"] == shipped.data.vocab_size
    assert chosen["model.seq_len"] == shipped.model.seq_len
    assert chosen["train.tokens_per_step"] == shipped.train.tokens_per_step
    assert chosen["model.n_embd"] in (192, 256)


ROOT = Path(__file__).resolve().parents[2]
