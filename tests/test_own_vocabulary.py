"""A vocabulary of one's own through the pipeline: plan, run, lineage, store, gc, rebuilding."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.extras import is_installed
from slm.history.lineage import lineage
from slm.orchestration.outline import Until, run_pipeline, stages_of
from slm.orchestration.sweep_outline import prepare, with_inputs
from slm.planning.sweep import plan_of_sweep
from slm.recipes import load_recipe, load_with_origins
from slm.records import Shards, Vocabulary
from slm.reproduction.reproduce import reproduce
from slm.retention import collect, survey
from slm.run_folder import DataRoot, RunFolder
from slm.storage import R
from slm.sweeps.definition import define_sweep
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.tokens.tokenizer.patterns import PATTERNS
from slm.training.needs import measure

PATH = "data.tokenizer.path"
FIRST_STAGES = ("download", "tokenizer", "encode", "train")


@pytest.fixture
def own(project: Path) -> dict[str, Any]:
    """The settings of a given vocabulary, of another pattern than GPT-2's; or of a trained one."""
    if is_installed("rustbpe"):
        return {"data.tokenizer.train": "bpe", "data.tokenizer.vocab_size": 600,
                "data.tokenizer.pattern": "qwen35"}  # fmt: skip
    path = project / "tokenizer.json"
    Tokenizer(gpt2(project).tokens[:599], PATTERNS["qwen35"]).save_hugging_face(path)
    return {"data.tokenizer.path": str(path)}


def run(own: dict[str, Any], until: Until = "evaluate") -> dict[str, Any]:
    return run_pipeline(load_recipe("tiny", own), until)


def actions(own: dict[str, Any]) -> list[tuple[str, str]]:
    plan = slm.plan("tiny", own)
    return [(s.stage, s.action) for s in plan.stages if s.stage in FIRST_STAGES]


def test_the_stage_is_planned_run_and_reused(own: dict[str, Any]) -> None:
    assert actions(own) == [(stage, "to run") for stage in FIRST_STAGES]
    assert run(own, "tokenizer")["reused"] == []
    made = run(own, "encode")
    assert made["reused"] == ["download", "tokenizer"]
    assert Path(made["tokenizer"]).parent == DataRoot().path / "tokenizers"
    assert [action for _, action in actions(own)] == ["reused", "reused", "reused", "to run"]
    changed = slm.plan("tiny", {**own, "data.tokenizer.special_tokens": ["<|a|>"]})
    assert changed["tokenizer"].changed["data.tokenizer.special_tokens"] == ([], ["<|a|>"])
    assert changed["encode"].action == "to run"
    [made_here] = survey(DataRoot().path, (), grace=0.0).going[:1]
    assert made_here.path.parent.name == "shards"  # which no run needs, nor its vocabulary


@pytest.mark.slow
def test_a_run_is_reused_and_has_it_in_its_lineage(own: dict[str, Any]) -> None:
    made = run(own)
    folder = RunFolder(Path(made["run"]))
    assert actions(own) == [(stage, "reused") for stage in FIRST_STAGES]
    assert set(FIRST_STAGES) <= set(run(own)["reused"])
    shards = folder.shards
    assert shards is not None
    assert (shards.vocab_size, shards.eot) == (600, 599)
    vocabulary = folder.root.vocabulary_of(shards)
    assert vocabulary is not None
    assert vocabulary.pattern == "qwen35"
    link = lineage(folder)["tokenizer"]
    assert (link.digest, link.state) == (vocabulary.tokenizer_sha256, "unchanged")
    assert link.made_from == (("source", "cleaning") if vocabulary.kind == "trained" else ())
    assert "600 tokens, " in link.value
    text = slm.sample(slm.load_model(str(folder.path)), "Once", max_new_tokens=5, seed=1)[0]
    assert text.prompt == "Once"
    changed = slm.plan("tiny", {**own, "data.tokenizer.special_tokens": ["<|a|>"]})
    assert changed["encode"].changed["data.tokenizer.special_tokens"] == ([], ["<|a|>"])
    assert changed["tokenizer"].changed == changed["encode"].changed


def test_the_flow_has_a_task_of_it() -> None:
    from slm.orchestration import stages, tasks

    assert tasks.tokenizer.name == "tokenizer"
    assert tasks.tokenizer.fn is stages.tokenizer


@pytest.mark.slow
def test_gc_keeps_it_with_what_has_it(own: dict[str, Any]) -> None:
    made = run(own, "train")
    root = DataRoot()
    paths = {Path(made[name]) for name in ("source", "tokenizer", "shards")}
    staying = {item.path for item in survey(root.path, (), grace=0.0).staying}
    assert paths <= staying
    going = survey(root.path, (), grace=0.0, keep_runs=0)
    assert paths <= {item.path for item in going.going}
    collect(going)
    assert not any(path.exists() for path in paths)


@pytest.mark.slow
def test_a_store_carries_it(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(own, "train")
    store = f"file://{tmp_path / 'store'}"
    pushed = slm.push(Path(made["run"]).name, store)
    assert f"tokenizer/{Path(made['tokenizer']).name}" in pushed.results
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "elsewhere"))
    pulled = slm.pull(Path(made["run"]).name, store)
    assert f"tokenizers/{Path(made['tokenizer']).name}" in pulled.pulled
    assert actions(own)[1:] == [(stage, "reused") for stage in FIRST_STAGES[1:]]


@pytest.mark.slow
def test_it_is_rebuilt_with_the_run(own: dict[str, Any]) -> None:
    made = run(own)
    result = reproduce(RunFolder(Path(made["run"])))
    assert result.first_difference is None
    assert result.verdict == "bit-identical"


@pytest.mark.slow
def test_a_model_that_is_continued_keeps_its_vocabulary(own: dict[str, Any]) -> None:
    """As the scheduled flow does it: parent and config, and no stage for the vocabulary."""
    from slm.orchestration import stages

    config = load_recipe("tiny", own)
    first = run(own, "train")
    from slm.registry.initial import initial_model

    started, parent = initial_model(
        load_recipe("tiny", {"train.init_from": Path(first["run"]).name, "data.vocab_size": 50_257})
    )
    assert stages.vocabulary_of(config, _source(first), parent) is None
    shards = slm.encode(config, _source(first), parent=parent)
    assert shards.tokenizer_sha256 == parent.tokenizer_sha256
    assert not started.data.tokenizer.is_set


def _source(made: dict[str, Any]) -> slm.records.Source:
    source = slm.storage.read_record(Path(made["source"]), slm.records.Source)
    assert source is not None
    return source


def test_the_command_prints_what_it_made(own: dict[str, Any]) -> None:
    sets = [f"--set={name}={value}" for name, value in own.items()]
    done = CliRunner().invoke(app, ["tokenizer", "tiny", "--json", *sets])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["vocab_size"], shown["pattern"]) == (600, "qwen35")
    refused = CliRunner().invoke(app, ["tokenizer", "tiny"])
    assert refused.exit_code != 0
    assert "has GPT-2's vocabulary" in str(refused.exception)


def test_without_the_setting_there_is_no_such_stage(project: Path) -> None:
    assert "tokenizer" not in stages_of(load_recipe("tiny"))
    with pytest.raises(slm.UserError, match="the vocabulary is GPT-2's"):
        run({}, "tokenizer")


# ---- with sweeps, the dial and functions of one's own -----------------------------------------


@pytest.fixture
def two(project: Path) -> list[str]:
    """The files of two given tokenizers, of 600 and of 800 tokens."""
    paths = [project / f"{size}.json" for size in (600, 800)]
    for path in paths:
        Tokenizer(gpt2(project).tokens[: int(path.stem) - 1]).save_hugging_face(path)
    return [str(path) for path in paths]


def test_a_sweep_over_vocabularies_makes_each(two: list[str]) -> None:
    sweep = define_sweep("tiny", {PATH: two}, sampler="grid", trials=2)
    planned = plan_of_sweep(sweep)
    shared = [stage.stage for stage in planned.shared]
    assert shared == ["download", "tokenizer", "encode", "tokenizer", "encode"]
    prepare(sweep)
    sizes = {record.vocab_size for record in records("tokenizers", Vocabulary)}
    assert sizes == {600, 800}
    assert sizes < {record.vocab_size for record in records("shards", Shards)}  # and the recipe's
    planned = plan_of_sweep(sweep)
    assert [stage.action for stage in planned.shared] == ["reused"] * 5
    assert [trial.action for trial in planned.trials] == ["to run"] * 2


def test_another_file_of_a_sweeps_vocabulary_is_another_sweep(two: list[str]) -> None:
    sweep = define_sweep("tiny", {"train.learning_rate": "1e-3,2e-3"}, overrides={PATH: two[0]})
    first = with_inputs(sweep).key
    assert with_inputs(sweep).key == first != sweep.key
    Path(two[0]).write_bytes(Path(two[1]).read_bytes())
    assert with_inputs(sweep).key != first


@pytest.mark.slow
def test_the_trials_of_a_sweep_train_with_it(own: dict[str, Any]) -> None:
    result = slm.sweep(
        "tiny", {"train.learning_rate": [1e-3, 2e-3]}, sampler="grid", trials=2, overrides=own
    )
    assert [trial.state for trial in result.trials] == ["finished"] * 2
    runs = [DataRoot().run(seed.run) for trial in result.trials for seed in trial.seeds if seed.run]
    assert {run.shards.vocab_size for run in runs if run.shards} == {600}


def test_the_dial_counts_it(two: list[str]) -> None:
    given, origins = load_with_origins("tiny", {"size": "1M", PATH: two[1]})
    trained = load_recipe(
        "tiny", {"size": "1M", "data.tokenizer.train": "bpe", "data.tokenizer.vocab_size": 700}
    )
    assert {each.key for each in origins if "tokenizer" in each.key} == {PATH}
    for config, size in ((given, 800), (trained, 700)):
        needs = measure(config)
        assert needs.vocabulary == size * config.model.n_embd
        assert needs.non_embedding == measure(load_recipe("tiny", {"size": "1M"})).non_embedding
    Path(two[1]).unlink()
    assert measure(given).parameters > 0  # of a run from elsewhere, whose file is not here


def records(kind: str, record: type[R]) -> list[R]:
    folders = DataRoot().results(kind)
    return [each for folder in folders if (each := slm.storage.read_record(folder, record))]
