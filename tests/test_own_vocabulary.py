"""A vocabulary of one's own through the pipeline: plan, run, lineage, store, gc, rebuilding."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import slm
from slm.extras import is_installed
from slm.history.lineage import lineage
from slm.orchestration.outline import Until, run_pipeline, stages_of
from slm.recipes import load_recipe
from slm.reproduction.reproduce import reproduce
from slm.retention import collect, survey
from slm.run_folder import DataRoot, RunFolder
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.tokens.tokenizer.patterns import PATTERNS

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


def test_the_stage_is_planned_run_reused_and_in_the_lineage(own: dict[str, Any]) -> None:
    assert actions(own) == [(stage, "to run") for stage in FIRST_STAGES]
    made = run(own)
    folder = RunFolder(Path(made["run"]))
    assert Path(made["tokenizer"]).parent == folder.root.path / "tokenizers"
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


def test_it_is_rebuilt_with_the_run(own: dict[str, Any]) -> None:
    made = run(own)
    result = reproduce(RunFolder(Path(made["run"])))
    assert result.first_difference is None
    assert result.verdict == "bit-identical"


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
    command = [sys.executable, "-m", "slm.cli.main", "tokenizer", "tiny", "--json", *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["vocab_size"], shown["pattern"]) == (600, "qwen35")
    refused = subprocess.run(command[:5], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "has GPT-2's vocabulary" in refused.stderr


def test_without_the_setting_there_is_no_such_stage(project: Path) -> None:
    assert "tokenizer" not in stages_of(load_recipe("tiny"))
    with pytest.raises(slm.UserError, match="the vocabulary is GPT-2's"):
        run({}, "tokenizer")
