"""The size dial: what it derives, what wins over it, and that it is no setting of any key."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from slm.config import ModelConfig, PipelineConfig
from slm.errors import UserError
from slm.keys import run_fields
from slm.recipes import load_recipe, load_with_origins, parse_overrides
from slm.records import Run, ShardSplit
from slm.report.cards import commands
from slm.reproduction.reproduce import reproduce
from slm.retraining.continued import continued
from slm.run_folder import RunFolder
from slm.size import (
    DERIVED,
    FITTED,
    MAX_PASSES,
    batch_for,
    batch_of_steps,
    non_embedding,
    parse_size,
    rates_for,
    tokens_for,
)
from slm.training.derive import train_longer
from slm.training.needs import measure, planned_steps

SIZES = [f"{n}K" for n in (30, 60, 100, 160, 250, 400, 640)] + [
    f"{n}M" for n in (1, 1.6, 2.5, 4, 6.4, 10, 25, 60, 124, 350, 1000)
]
RECIPES = """
recipes:
  dialled:
    size: 1M
    model: {architecture: qwen3, seq_len: 256}
  shaped:
    size: 1M
    model: {architecture: qwen3, n_embd: 192, seq_len: 256}
    train: {learning_rate: 5.0e-3, max_tokens: 500_000}
"""


@pytest.fixture
def dial(tmp_path: Path) -> Callable[..., PipelineConfig]:
    """`dial("dialled", **{"size": "2M"})` → the config of a recipe of `RECIPES`."""
    path = tmp_path / "pipelines.yaml"
    path.write_text(RECIPES)

    def load(recipe: str = "dialled", **overrides: Any) -> PipelineConfig:
        return load_recipe(recipe, overrides, path=path)

    return load


# ---- the rules --------------------------------------------------------------------------------


def test_sizes_are_read_as_people_write_them() -> None:
    texts = ("300K", "10M", "1.5M", "0.1B", "10m", "124 M", "250000", "1e6", 300_000, 2.5e5)
    assert [parse_size(text) for text in texts] == [
        300_000, 10**7, 1_500_000, 10**8, 10**7, 124 * 10**6, 250_000, 10**6, 300_000, 250_000,
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_shape_is_near_its_size_and_grows_with_it(
    architecture: str, dial: Callable[..., PipelineConfig]
) -> None:
    models = [dial(size=size, **{"model.architecture": architecture}).model for size in SIZES]
    sizes = [non_embedding(model) for model in models]
    for size, text, model in zip(sizes, SIZES, models, strict=True):
        asked = parse_size(text)
        within = 0.35 if asked < 1e5 else 0.22 if asked < 1e6 else 0.12
        assert abs(size / asked - 1) < within, text
        assert model.n_embd % 16 == 0
        assert 32 <= model.n_embd // model.n_head <= 112
    assert sizes == sorted(sizes)


def test_the_rules_are_monotone() -> None:
    sizes = [parse_size(size) for size in SIZES]
    tokens = [tokens_for(size) for size in sizes]
    assert tokens == sorted(tokens)
    batches = [batch_for(each, 256) for each in tokens]
    assert batches == sorted(batches)
    for optimizer in ("adamw", "muon"):
        rates = [rates_for(size, tokens_for(size), optimizer) for size in sizes]
        assert rates == sorted(rates, reverse=True)


def test_the_batch_of_given_steps_is_that_of_their_tokens() -> None:
    for steps in (50, 400, 3000, 20_000):
        batch = batch_of_steps(steps, 256)
        assert batch_for(steps * batch, 256) in (batch // 2, batch, 2 * batch)


# ---- in a recipe and on the command line ------------------------------------------------------


def test_the_key_is_that_of_the_same_settings_written_out(
    dial: Callable[..., PipelineConfig],
) -> None:
    config = dial()
    keys = (*DERIVED, "train.max_tokens", "train.max_passes")
    written = dial(size=None, **{key: config.flat()[key] for key in keys})
    assert (config.size, written.size) == ("1M", None)
    assert run_fields(config) == run_fields(written)


def test_what_is_stated_wins(dial: Callable[..., PipelineConfig]) -> None:
    config = dial("shaped", **{"train.tokens_per_step": 4096})
    assert (config.model.n_embd, config.train.learning_rate) == (192, 5e-3)
    assert (config.train.max_tokens, config.train.max_passes) == (500_000, None)
    assert config.train.tokens_per_step == 4096
    assert abs(non_embedding(config.model) / 1e6 - 1) < 0.25  # by the number of blocks alone


def test_a_size_from_outside_replaces_the_shape_and_the_rates_of_a_recipe(
    dial: Callable[..., PipelineConfig],
) -> None:
    config = dial("shaped", size="4M")
    assert abs(non_embedding(config.model) / 4e6 - 1) < 0.12
    assert config.train.learning_rate == rates_for(4_000_000, 500_000).adamw
    assert config.train.max_tokens == 500_000  # the recipe's limit
    assert dial("shaped", size="4M", **{"model.n_layer": 3}).model.n_layer == 3
    assert dial("shaped", depth=3).model.n_embd == 192
    assert dial("shaped", depth=3).size is None


def test_a_recipe_keeps_its_optimizer_and_gets_the_rate_for_it() -> None:
    train = load_recipe("tinystories-gpt2", {"size": "3M"}).train
    assert (train.optimizer, train.schedule) == ("adamw", "cosine")
    assert train.learning_rate == pytest.approx(1.16e-3, rel=0.05)  # Kaplan et al. 2020


def test_a_recipe_limited_in_seconds_keeps_its_batch() -> None:
    stated = {"data.path": "."}
    own = load_recipe("tinystories-sample", stated)
    config = load_recipe("tinystories-sample", {**stated, "size": "10M"})
    assert config.train.max_seconds == own.train.max_seconds
    assert config.train.tokens_per_step == own.train.tokens_per_step
    assert config.train.learning_rate == own.train.learning_rate


def test_the_tokens_follow_from_the_size_and_are_bounded_by_the_data(
    dial: Callable[..., PipelineConfig],
) -> None:
    config = dial()
    size = non_embedding(config.model)
    batch = config.train.tokens_per_step
    assert 0 <= (config.train.max_tokens or 0) - tokens_for(size) < batch
    unknown, much, little = (
        ShardSplit(files=[], documents=1, tokens=tokens, bytes=1) for tokens in (0, 10**9, 10**5)
    )
    whole = -(-tokens_for(size) // batch)
    assert [planned_steps(config, data) for data in (unknown, much)] == [whole, whole]
    assert planned_steps(config, little) == MAX_PASSES * 10**5 // batch


def test_parameters_and_flops_of_the_vocabulary_are_counted_apart(
    dial: Callable[..., PipelineConfig],
) -> None:
    small = measure(dial(**{"data.vocab_size": 1000}))
    large = measure(dial(**{"data.vocab_size": 4000}))
    assert large.non_embedding == small.non_embedding
    assert large.vocabulary == 4 * small.vocabulary
    assert large.vocabulary_flops_per_token == 4 * small.vocabulary_flops_per_token
    assert large.flops_per_token - large.vocabulary_flops_per_token == (
        small.flops_per_token - small.vocabulary_flops_per_token
    )


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(RECIPES)
    config, origins = load_with_origins("shaped", {"model.n_layer": 3}, path=path)
    flat = config.flat()
    assert all(flat[origin.key] == origin.value for origin in origins)
    sources = {origin.key: origin.source for origin in origins}
    assert (sources["size"], sources["model.n_layer"]) == ("recipe", "--set")
    assert (sources["model.n_embd"], sources["model.n_head"]) == ("recipe", "derived")
    assert sources["data.vocab_size"] == "default"
    assert load_with_origins("quickstart")[1] == []


def test_what_is_beyond_the_fitted_sizes_is_called_extrapolated(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(RECIPES)
    for size, beyond in (("1M", False), ("100M", True)):
        _, origins = load_with_origins("dialled", {"size": size}, path=path)
        [tokens] = [origin for origin in origins if origin.key == "train.max_tokens"]
        assert ("extrapolated" in tokens.why) == beyond
    assert FITTED[0] < 1e6 < FITTED[1]


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"size": "10"}, "size=10 is fewer than 25,000 parameters"),
        ({"size": "-1M"}, "size=-1M is not a size: give parameters"),
        ({"size": "big"}, "size=big is not a size"),
        ({"size": "9e99"}, "is more than 1,000,000,000,000 parameters"),
        ({"size": True}, "size=True is not a size"),
        ({"depth": 0}, "depth=0 is not a number of blocks from 1 to 256"),
        ({"depth": 1000}, "depth=1000 is not a number of blocks"),
        ({"size": "1M", "depth": 4}, "size=1M and depth=4: each gives the shape; keep one"),
        ({"size": "1M", "train.init_from": "models:/slm@champion"}, "comes with the weights"),
        ({"model.n_embd": 100, "model.n_head": 3}, "model.n_embd=100 is not a multiple of"),
        ({"model.n_embd": 97}, "no heads of an even width fit model.n_embd=97:"),
        (
            {"model.n_embd": 128, "model.n_kv_head": 3},
            "fit model.n_embd=128 and model.n_kv_head=3:",
        ),
        ({"model.n_layer": "many"}, "model.n_layer='many' is not valid"),
        ({"model": 5}, "model"),
        ({"train.max_seconds": 9, "train.max_passes": 4}, "train.max_passes=4 bounds"),
        ({"size": None}, "it has no section `train`"),
    ],
)
def test_what_is_refused(
    overrides: dict[str, Any], message: str, dial: Callable[..., PipelineConfig]
) -> None:
    with pytest.raises(UserError) as refused:
        dial(**overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_that_are_stated_give_a_width_that_they_divide(
    dial: Callable[..., PipelineConfig],
) -> None:
    model: ModelConfig = dial(**{"model.n_head": 7}).model
    assert model.n_head == 7
    assert abs(non_embedding(model) / 1e6 - 1) < 0.25


# ---- a run ------------------------------------------------------------------------------------

SIZED = """
recipes:
  sized:
    size: 30K
    data: {source: files, path: documents.jsonl, vocab_size: 512, val_fraction: 0.2}
    model: {architecture: qwen3, seq_len: 32, n_head: 2}
    train:
      {schedule: wsd, max_steps: 8, max_passes: 0.012, tokens_per_step: 32, evaluate_every: 4,
       checkpoint_every: 4}
"""


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the recipe of `SIZED`."""
    folder = tmp_path_factory.mktemp("sized")
    (folder / "pipelines.yaml").write_text(SIZED)
    tiny_run.write_documents(folder / "documents.jsonl")
    config = load_recipe("sized", path=folder / "pipelines.yaml")
    with tiny_run.code(tiny_run.CLEAN):
        return tiny_run.make_run(folder / "data", config)


@pytest.mark.slow
def test_a_run_keeps_its_size_and_is_reproduced(sized: Run) -> None:
    run = RunFolder.of(sized)
    assert run.config.size == "30K"
    assert reproduce(run).verdict == "bit-identical"


def test_the_command_of_the_card_gives_the_same_run(
    sized: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunFolder.of(sized).config
    project = sized.path.parents[2]
    monkeypatch.chdir(project)
    for recipe in (SIZED, SIZED.replace("size: 30K", "size: 2M"), SIZED.replace("size: 30K", "")):
        (project / "pipelines.yaml").write_text(recipe)
        [command] = [line for line in commands(config, sized) if line.startswith("slm run")]
        changes = [part for part in shlex.split(command)[3:] if part != "--set"]
        repeated = load_recipe("sized", parse_overrides(changes))
        assert run_fields(repeated) == run_fields(config)


def test_a_longer_training_is_not_bounded_by_the_passes_of_the_first(sized: Run) -> None:
    with tiny_run.code(tiny_run.CLEAN):
        longer = train_longer(sized, 4)
    config = RunFolder.of(longer).config  # max_passes alone would end it at step 9
    assert (longer.step, config.size, config.train.max_passes) == (12, "30K", None)


def test_a_continued_champion_gets_its_part_of_the_passes(
    dial: Callable[..., PipelineConfig],
) -> None:
    config = dial()
    train = continued(config).train
    fraction = config.retrain.continue_fraction
    assert train.max_passes == fraction * MAX_PASSES
    assert train.max_tokens == round(fraction * (config.train.max_tokens or 0))
