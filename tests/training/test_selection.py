"""Settings that change no weight: no run is trained again for them, and none is mistaken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import CLEAN, code

from slm import keys
from slm.config import PipelineConfig
from slm.errors import Interrupted, UserError
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.records import Run, Selection, Shards
from slm.reproduction.reproduce import reproduce
from slm.retention import survey
from slm.run_folder import CHECKPOINTS, SELECTION, DataRoot, RunFolder, Settings
from slm.source.download import download
from slm.storage import content_hash, read_record
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.identity import run_keys
from slm.training.loop import train

Config = Callable[..., PipelineConfig]

# At a rate that is far too high and rises, so does the held-out loss: the best of each cadence is
# the first that it scores.
SETTINGS = {
    "train.max_steps": 12,
    "train.learning_rate": 6.0,
    "train.weight_decay": 0.0,
    "train.warmup": 1.0,
    "train.evaluate_every": 3,
    "train.evaluate_documents": 4,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 100,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
}


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(**SETTINGS)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose source and shards all roots share."""
    return tmp_path_factory.mktemp("encoded")


@pytest.fixture
def shards(config: PipelineConfig, encoded: Path) -> Shards:
    return encode(config, download(config, root=encoded), root=encoded)


@pytest.fixture
def new_root(shards: Shards, encoded: Path, tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        for kind in ("sources", "shards"):
            shutil.copytree(encoded / kind, root / kind)
        return root

    return made


def changed(config: PipelineConfig, **fields: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


def trained(config: PipelineConfig, shards: Shards, root: Path, **settings: object) -> Run:
    """By `launch.train`, which trains in this process."""
    with code(CLEAN):
        return launch.train(changed(config, **settings), in_root(shards, root), root=root)


def in_root(shards: Shards, root: Path) -> Shards:
    return shards.model_copy(update={"path": root / "shards" / shards.name})


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("a step was trained")

        monkeypatch.setattr("slm.training.loop.train_step", refuse)

    return forbid


def scores(run: Run) -> dict[str, float]:
    entries = (e for e in RunFolder.of(run).journal if e["event"] == "evaluate")
    return {str(entry["step"]): entry["val_bpb"] for entry in entries}


# ---- what chooses nothing ---------------------------------------------------------------------


def test_how_often_is_saved_is_no_reason_to_train_again(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    no_training: Callable[[], None],
) -> None:
    root = new_root("a")
    first = trained(config, shards, root)
    no_training()
    for settings in ({"checkpoint_every": 7}, {"keep_checkpoints": 1}, {"checkpoint_every": 2}):
        again = trained(config, shards, root, **settings)
        assert again == first.model_copy(update={"reused": True})
        assert again.path == first.path
    assert not list(first.path.glob(f"{SELECTION}-*"))


def test_how_often_is_saved_may_change_when_a_run_resumes(
    config: PipelineConfig, shards: Shards, new_root: Callable[[str], Path]
) -> None:
    root = new_root("a")
    whole = trained(config, shards, new_root("b"))
    run = launch.prepare(config, in_root(shards, root), root=root)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) == 4)
    again = trained(config, shards, root, checkpoint_every=6, keep_checkpoints=1)
    assert again.path == run.path
    assert again.weights_sha256 == whole.weights_sha256
    assert again.best == whole.best
    assert run.config.train.checkpoint_every == 6
    assert 10 not in [step for step, _ in run.checkpoints]


# ---- another cadence --------------------------------------------------------------------------


def test_another_cadence_chooses_what_its_own_training_would(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the saved checkpoints, with the very losses, and without a step."""
    cadences = [
        {"evaluate_every": 1},
        {"evaluate_every": 2, "evaluate_documents": 1},
        {"evaluate_every": 5, "evaluate_documents": 100},
        {"evaluate_every": 6},
        {"evaluate_every": 50, "evaluate_documents": 2},
    ]
    root = new_root("own")
    first = trained(config, shards, root)
    record = (first.path / "record.json").read_bytes()
    best = {first.best}
    for number, cadence in enumerate(cadences):
        fresh = trained(config, shards, new_root(f"fresh {number}"), **cadence)
        assert fresh.weights_sha256 == first.weights_sha256
        assert fresh.key == first.key
        with monkeypatch.context() as patch:
            patch.setattr("slm.training.loop.train_step", None)
            chosen = trained(config, shards, root, **cadence)
        assert chosen.path == first.path
        assert chosen.best == fresh.best
        fields = keys.stage_fields("select", changed(config, **cadence))
        kept = [read_record(folder, Selection) for folder in first.path.glob(f"{SELECTION}-*")]
        made = [each for each in kept if each and fields.items() <= each.model_dump().items()]
        assert [each.val_bpb for each in made] == [scores(fresh)]
        best.add(chosen.best)
    assert len(best) > 2, "the cadences agree, so the test shows nothing"
    assert (first.path / "record.json").read_bytes() == record
    assert trained(config, shards, root).best == first.best


def test_a_selection_is_made_once(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = new_root("a")
    trained(config, shards, root)
    chosen = trained(config, shards, root, evaluate_every=1)
    monkeypatch.setattr("slm.evaluation.scoring.score", None)
    assert trained(config, shards, root, evaluate_every=1).best == chosen.best


def test_losses_of_the_journal_are_not_scored_again(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a cadence scores fewer of the same steps, on the same documents."""
    root = new_root("a")
    fine = trained(config, shards, root, evaluate_every=1, keep_checkpoints=1, checkpoint_every=100)
    steps = [step for step, _ in RunFolder.of(fine).checkpoints]
    known = scores(fine)
    monkeypatch.setattr("slm.evaluation.scoring.score", None)
    for every in (2, 3, 4, 6, 12, 13):
        scored = sorted({*range(every, 12, every), 12})
        best = min(scored, key=lambda step: known[str(step)])
        if best in steps:
            chosen = trained(config, shards, root, evaluate_every=every)
            assert chosen.best == f"step_{best:06d}"
        else:
            with pytest.raises(UserError, match=rf"of 1 more steps \({best}\)"):
                trained(config, shards, root, evaluate_every=every)


def test_more_documents_than_there_are_choose_nothing_else(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    no_training: Callable[[], None],
) -> None:
    root, count = new_root("a"), shards.splits["val"].documents
    first = trained(config, shards, root, evaluate_documents=count, keep_checkpoints=1)
    no_training()
    again = trained(config, shards, root, evaluate_documents=count + 1)
    assert again.best == first.best
    assert not list(first.path.glob(f"{SELECTION}-*"))


@pytest.mark.parametrize("settings", [{"evaluate_every": 2}, {"evaluate_documents": 3}])
def test_a_cadence_whose_checkpoints_were_not_kept_is_refused(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    no_training: Callable[[], None],
    settings: dict[str, int],
) -> None:
    """Never in silence with the result of the old one: the message names what it would need."""
    root = new_root("a")
    first = trained(config, shards, root, keep_checkpoints=1, checkpoint_every=100)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    no_training()
    (name, value), *_ = settings.items()
    with pytest.raises(UserError) as raised:
        trained(config, shards, root, **settings)
    message = str(raised.value)
    assert "was chosen by train.evaluate_every=3 and train.evaluate_documents=4" in message
    assert f"train.{name}={value}" in message
    assert "more steps" in message
    assert "--set train.evaluate_every=3 --set train.evaluate_documents=4" in message
    assert before.keys() <= set(first.path.rglob("*"))
    assert not list(first.path.glob(f"{SELECTION}-*"))
    assert trained(config, shards, root).best == first.best


def test_an_unfinished_run_keeps_the_cadence_that_it_has_chosen_by(
    config: PipelineConfig, shards: Shards, new_root: Callable[[str], Path]
) -> None:
    root = new_root("a")
    run = launch.prepare(config, in_root(shards, root), root=root)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) == 1)
    assert [step for step, _ in run.checkpoints] == [1, 2]
    coarse = launch.prepare(changed(config, evaluate_every=4), in_root(shards, root), root=root)
    assert coarse == run
    launch.renew_settings(run, changed(config, evaluate_every=4))  # nothing is scored yet
    assert run.config.train.evaluate_every == 4
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) == 5)
    with pytest.raises(UserError, match=r"is not finished, and chooses .*evaluate_every=4.*--set"):
        trained(config, shards, root)
    again = trained(config, shards, root, evaluate_every=4)
    assert again.best == trained(config, shards, new_root("b"), evaluate_every=4).best


# ---- what is made of it -----------------------------------------------------------------------


def test_the_results_of_another_cadence_are_next_to_the_runs_own(
    config: PipelineConfig, shards: Shards, new_root: Callable[[str], Path]
) -> None:
    root = new_root("a")
    first = trained(config, shards, root)
    own = evaluate(config, first, in_root(shards, root))
    assert own.path.name == "evaluation"
    every = next(
        n
        for n in (1, 2, 4, 5)
        if trained(config, shards, root, evaluate_every=n).best != first.best
    )
    other = changed(config, evaluate_every=every)
    chosen = trained(config, shards, root, evaluate_every=every)
    again = evaluate(other, chosen, in_root(shards, root))
    assert again.checkpoint == chosen.best != own.checkpoint
    assert again.path.name == f"evaluation-{again.key[:12]}"
    run = RunFolder.of(first)
    assert run.evaluation is not None
    assert run.evaluation.key == own.key
    chain = lineage(run, evaluation_key=again.key)
    assert chain["checkpoint"].value == chosen.best
    assert {chain[link].state for link in ("config", "run", "checkpoint", "evaluation")} == {
        "unchanged"
    }
    last = other.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"checkpoint": "last"})}
    )
    assert evaluate(last, chosen, in_root(shards, root)).checkpoint == first.last


def test_gc_keeps_what_was_selected(
    config: PipelineConfig, shards: Shards, new_root: Callable[[str], Path]
) -> None:
    root = new_root("a")
    first = trained(config, shards, root)
    chosen = {trained(config, shards, root, evaluate_every=n).best for n in (1, 2, 4, 5)}
    going = {
        item.path.name
        for item in survey(root, {first.name}, grace=-1).going
        if item.path.parent.name == CHECKPOINTS
    }
    everything = {path.name for _, path in RunFolder.of(first).checkpoints}
    assert going == everything - chosen - {first.best, first.last}


# ---- runs whose key has the cadence -----------------------------------------------------------


def former(config: PipelineConfig, shards: Shards, root: Path, **settings: object) -> RunFolder:
    """A run that was made while the cadence was in its key, and in the hash of its config."""
    config = changed(config, **settings)
    key = run_keys(config, content_hash(shards))[1]
    run = RunFolder(DataRoot(root).folder("runs", config.recipe, key))
    (run.path / CHECKPOINTS).mkdir(parents=True)
    run.write_settings(Settings(key, config, shards.key, None))
    return run


def train_as_formerly(run: RunFolder, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "config_sha256", lambda config: keys.config_hashes(config)[1])
        train(run, **options)


def test_a_run_whose_key_has_its_cadence_is_found_by_any(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    no_training: Callable[[], None],
) -> None:
    root = new_root("a")
    run = former(config, shards, root)
    with code(CLEAN):
        train_as_formerly(run)
    checkpoint = json.loads((run.path / CHECKPOINTS / "step_000012" / "record.json").read_bytes())
    assert checkpoint["config_sha256"] != keys.config_sha256(config)
    with code(CLEAN):
        assert lineage(run)["config"].state == "unchanged"
        assert reproduce(run).verdict == "bit-identical"
    no_training()
    assert run.record is not None
    for settings in ({}, {"checkpoint_every": 5}, {"keep_checkpoints": 1}):
        assert trained(config, shards, root, **settings).path == run.path
    assert trained(config, shards, root, evaluate_every=1).path == run.path
    assert len(list((root / "runs").glob("*-*"))) == 1


def test_of_several_such_runs_it_is_the_one_with_the_cadence(
    config: PipelineConfig,
    shards: Shards,
    new_root: Callable[[str], Path],
    no_training: Callable[[], None],
) -> None:
    root = new_root("a")
    runs = {every: former(config, shards, root, evaluate_every=every) for every in (3, 4, 5)}
    for run in runs.values():
        train_as_formerly(run)
    no_training()
    for every, run in runs.items():
        again = trained(config, shards, root, evaluate_every=every, checkpoint_every=9)
        assert again.path == run.path
    assert trained(config, shards, root, evaluate_every=6).path in {r.path for r in runs.values()}


def test_such_a_run_resumes_by_its_own_settings(
    config: PipelineConfig, shards: Shards, new_root: Callable[[str], Path]
) -> None:
    root = new_root("a")
    run = former(config, shards, root)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train_as_formerly(run, should_stop=lambda: next(steps) == 4)
    with pytest.raises(UserError, match="is not finished"):
        trained(config, shards, root, evaluate_every=4)
    again = trained(config, shards, root, checkpoint_every=6, keep_checkpoints=7)
    assert again.path == run.path
    assert again.weights_sha256 == trained(config, shards, new_root("b")).weights_sha256
    kept = run.config.train
    assert (kept.checkpoint_every, kept.keep_checkpoints) == (1, 7)
    assert lineage(run)["config"].state == "unchanged"
