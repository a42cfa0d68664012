"""Reproduce: the right verdict for what is the same, near, different, or gone."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_run import CLEAN, DIRTY, code, copy_run, flip_byte, make_run

import slm.training.identity
import slm.training.loop
from slm import storage
from slm.config import PipelineConfig
from slm.errors import SlmError, TrainingError, UserError
from slm.history.lineage import ARITHMETIC, Link, lineage, machine_differences
from slm.machine import cpu_name
from slm.records import Source
from slm.reproduction.rebuild import WEIGHTS_TOLERANCE
from slm.reproduction.reproduce import Reproduction, reproduce
from slm.run_folder import RunFolder
from slm.training import supervisor
from slm.training.optim import set_learning_rate


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of its own."""
    return copy_run(tmp_path / "data")


def rebuilt_folders(run: Path) -> list[Path]:
    return list((run.parents[1] / "reproduced").glob("*"))


def test_the_same_again_is_bit_identical(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "bit-identical"
    assert reproduction.level == "C"
    assert reproduction.first_difference is None
    names = {row.name for row in reproduction.compared}
    assert names >= {
        "source/train_00000.parquet", "source key", "shards/train_00000.bin", "tokenizer",
        "run key", "run.val_bpb", "checkpoints/step_000004/model.safetensors",
        "checkpoints/step_000004/optimizer.safetensors", "evaluation/evaluation.json",
    }  # fmt: skip
    assert all(row.same for row in reproduction.compared)
    assert (
        reproduction.sentence == f"bit-identical in all of {len(reproduction.compared)} comparisons"
    )
    assert rebuilt_folders(run) == []
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_what_is_gone_but_can_be_rebuilt_is_rebuilt_and_kept_on_demand(run: Path) -> None:
    root = run.parents[1]
    for folder in (root / "sources", root / "shards", run / "evaluation", run / "checkpoints"):
        shutil.rmtree(folder)
    reproduction = reproduce(RunFolder(run), keep=True)
    assert reproduction.verdict == "bit-identical"
    names = {row.name for row in reproduction.compared}
    assert "checkpoints/step_000004/model.safetensors" in names  # the run's record has its hash
    assert "source/train_00000.parquet" not in names  # no hash of it is left
    assert "evaluation/evaluation.json" not in names
    assert [str(path) for path in rebuilt_folders(run)] == [reproduction.folder]
    assert list(Path(str(reproduction.folder)).glob("runs/*/record.json"))


def assert_cannot(reproduction: Reproduction, what: str, why: str) -> None:
    assert reproduction.verdict == "cannot"
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == what
    assert reproduction.compared == ()
    assert why in reproduction.sentence


def test_a_changed_byte_of_the_source_is_named(run: Path) -> None:
    file = next(run.parents[1].glob("sources/*/train_00000.parquet"))
    flip_byte(file)
    assert_cannot(reproduce(RunFolder(run)), "source", "train_00000.parquet")
    assert rebuilt_folders(run) == []


def test_a_changed_byte_of_the_dataset_is_named(run: Path) -> None:
    file = Path(RunFolder(run).config.data.path)
    before = file.read_bytes()
    try:
        flip_byte(file, place=20)
        assert_cannot(reproduce(RunFolder(run)), "dataset", "documents.jsonl: sha256")
        file.unlink()
        assert_cannot(reproduce(RunFolder(run)), "dataset", "does not exist")
    finally:
        file.write_bytes(before)


def test_a_changed_value_of_the_config_is_named(run: Path) -> None:
    described = json.loads((run / "config.json").read_bytes())
    described["config"]["train"]["learning_rate"] *= 2
    (run / "config.json").write_text(json.dumps(described))
    reproduction = reproduce(RunFolder(run))
    assert reproduction.missing
    assert "config.json is not what was trained by" in reproduction.sentence
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what in ("cleaning", "config")


OTHER_COMMIT = {**CLEAN, "commit": "e" * 40}


@pytest.mark.parametrize("now", [OTHER_COMMIT, {**OTHER_COMMIT, **DIRTY}, DIRTY])
def test_code_at_another_commit_is_a_note_while_its_stages_are_the_same(
    run: Path, now: dict[str, Any]
) -> None:
    with code(now):
        reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "bit-identical"
    assert any("the code now" in note or "the code is now" in note for note in reproduction.notes)


@pytest.mark.parametrize("shards_are_gone", [False, True])
def test_another_version_of_training_cannot_and_the_commit_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, shards_are_gone: bool
) -> None:
    version = slm.training.identity.TRAIN_VERSION
    monkeypatch.setattr("slm.reproduction.obstacles.TRAIN_VERSION", version + 1)
    monkeypatch.setattr(
        supervisor, "supervise", lambda *_: pytest.fail("trained by another version")
    )
    if shards_are_gone:
        shutil.rmtree(run.parents[1] / "shards")
    with code(OTHER_COMMIT):
        reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "cannot"
    assert reproduction.missing == (
        f"{run.name} was made by version {version} of training, here is {version + 1}: "
        f"git checkout {CLEAN['commit']}",
    )


def test_another_version_of_encoding_cannot_and_the_commit_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm.tokens.encode.ENCODE_VERSION", 99)
    with code(OTHER_COMMIT):
        reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "cannot"
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == "shards"
    assert f"git checkout {CLEAN['commit']}" in reproduction.sentence


def test_code_that_was_dirty_cannot(run: Path) -> None:
    record = RunFolder(run).record
    assert record is not None
    storage.write_record(
        run, record.model_copy(update={"environment": {**record.environment, **DIRTY}})
    )
    assert_cannot(reproduce(RunFolder(run)), "code", "in no commit")


def test_a_registry_that_cannot_be_reached_is_no_obstacle(run: Path) -> None:
    chain = lineage(RunFolder(run))
    note = "the registry could not be reached"
    version = Link(name="version", value="models:/m/1", state="not checked", notes=(note,))
    reproduction = reproduce(
        RunFolder(run), chain=chain.model_copy(update={"links": (*chain.links, version)})
    )
    assert reproduction.verdict == "bit-identical"
    assert note in reproduction.notes


def test_an_unfinished_run_is_bad_input(run: Path) -> None:
    (run / "record.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        reproduce(RunFolder(run))


def other_rate(change: float) -> Any:
    """Sets a learning rate that differs at the third step, as the journal does not show."""
    steps = itertools.count(1)

    def set_rate(optimizers: Any, factor: float) -> None:
        set_learning_rate(optimizers, factor * (change if next(steps) == 3 else 1))

    return set_rate


def test_other_weights_are_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slm.training.loop, "set_learning_rate", other_rate(1.001))
    near = reproduce(RunFolder(run))
    assert near.verdict == "within tolerance"
    assert 0 < (near.weights_difference or 0) < 1e-2
    assert near.first_difference is not None
    assert near.first_difference.step == 4  # the loss of step 3 was taken before its update
    assert near.first_difference.what == "train_loss"
    assert near.first_difference.tensor == "embed.weight"
    assert "step 4" in near.sentence

    monkeypatch.setattr(slm.training.loop, "set_learning_rate", other_rate(300.0))
    far = reproduce(RunFolder(run))
    assert far.verdict == "diverged"
    assert far.first_difference is not None
    assert far.first_difference.step == 4
    assert far.sentence.startswith("diverged at step 4, first in embed.weight (weights by")
    assert (far.weights_difference or 0) > 1e-2


def with_environment(run: Path, **facts: Any) -> Path:
    """The run as if it had been trained on another machine, or by another torch."""
    record = RunFolder(run).record
    assert record is not None
    environment = {**record.environment, **facts}
    storage.write_record(run, record.model_copy(update={"environment": environment}))
    return run


def test_another_torch_is_named_and_is_judged_by_its_result(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = f"torch is {torch.__version__}, was 2.9.0: other bits are expected"
    with_environment(run, torch="2.9.0")
    same = reproduce(RunFolder(run))
    assert same.verdict == "bit-identical"  # which is no wonder: it is the same one
    assert expected.partition(":")[0] in same.notes

    monkeypatch.setattr(slm.training.loop, "set_learning_rate", other_rate(40.0))
    monkeypatch.setattr("slm.reproduction.rebuild.BPB_TOLERANCE", 0.5)
    monkeypatch.setattr("slm.reproduction.comparing.RELATIVE_TOLERANCE", 0.0)
    monkeypatch.setattr("slm.reproduction.comparing.LOSS_TOLERANCE", 0.0)
    near = reproduce(RunFolder(run))
    assert near.verdict == "within tolerance"
    assert near.weights_difference is not None
    assert near.weights_difference > WEIGHTS_TOLERANCE
    assert near.sentence.endswith(f"; {expected}")

    with_environment(run, torch=torch.__version__)
    monkeypatch.setattr(slm.training.loop, "set_learning_rate", other_rate(40.0))
    assert reproduce(RunFolder(run)).verdict == "diverged"  # the same torch has no such excuse

    with_environment(run, torch="2.9.0")
    monkeypatch.setattr("slm.reproduction.rebuild.BPB_TOLERANCE", 1e-9)
    monkeypatch.setattr(slm.training.loop, "set_learning_rate", other_rate(40.0))
    far = reproduce(RunFolder(run))
    assert far.verdict == "diverged"
    assert far.sentence.endswith(f"; {expected}, but not by so much")


@pytest.mark.parametrize(
    ("then", "named"),
    [
        ({"cpu_kind": "GenuineAlien (avx512f)"}, ", was GenuineAlien (avx512f)"),
        ({"cpu": "Alien 3000 × 64", "cpu_kind": None}, ", was Alien 3000"),  # of an older slm
        ({"cpu": f"{cpu_name().partition(' × ')[0]} × 64", "cpu_kind": None}, None),
    ],
)
def test_another_kind_of_cpu_is_named(run: Path, then: dict[str, Any], named: str | None) -> None:
    """With one instruction set, MKL computes other bits on AMD's CPUs than on Intel's."""
    record = RunFolder(run).record
    assert record is not None
    environment = {**record.environment, **then}
    facts = {name: value for name, value in environment.items() if value is not None}
    differences = machine_differences(facts, ARITHMETIC)
    assert len(differences) == (named is not None)
    assert all(each.startswith("cpu_kind is ") for each in differences)
    assert not named or differences[0].endswith(named)


def rewrite_source(root: Path, change: Callable[[list[str]], list[str]] = list) -> None:
    """Write the files of a source as another pyarrow might; its record has their new hashes."""
    folder = next(root.glob("sources/*/record.json")).parent
    source = storage.read_record(folder, Source)
    assert source is not None
    for name in source.files:
        table = pq.read_table(folder / name)
        texts = pa.table({"text": change(table["text"].to_pylist())}, schema=table.schema)
        pq.write_table(texts, folder / name, compression="none")
    files = storage.describe_files(folder, [folder / name for name in source.files])
    storage.write_record(folder, source.model_copy(update={"files": files}))


@pytest.mark.parametrize("is_gone", [False, True])
def test_another_pyarrow_writes_other_files_of_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """The shards are made from the recorded files, so theirs is the same key."""
    root = copy_run(tmp_path / "other")
    config = RunFolder(root).config
    root = root.parents[1]
    for kind in ("shards", "runs"):
        shutil.rmtree(root / kind)
    rewrite_source(root)
    made = RunFolder.of(make_run(root, config))
    with_environment(made.path, pyarrow="20.0.0")
    monkeypatch.setattr(
        "slm.reproduction.rebuild.written_by",
        lambda source: "pyarrow 20" if source.path.parents[1] == root else "pyarrow 25",
    )
    if is_gone:
        shutil.rmtree(root / "sources")
        reproduction = reproduce(made)
        assert reproduction.verdict == "cannot"
        assert "pyarrow is" in reproduction.sentence
        assert "was 20.0.0, which writes other files" in reproduction.sentence
        return
    reproduction = reproduce(made)
    assert reproduction.verdict == "bit-identical", reproduction.sentence
    names = {row.name for row in reproduction.compared}
    assert {"source, documents of train", "source key", "source.revision"} <= names
    assert any("the documents were compared" in note for note in reproduction.notes)

    rewrite_source(root, lambda texts: [*texts[:-1], texts[-1] + "!"])
    reproduction = reproduce(made)
    assert reproduction.verdict == "diverged"
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == "source, documents of train"


def test_data_that_differs_ends_it_before_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = lineage(RunFolder(run))
    links = tuple(
        link.model_copy(update={"files": {"train_00000.bin": "0" * 64}})
        if link.name == "shards"
        else link
        for link in chain.links
    )
    monkeypatch.setattr(supervisor, "supervise", lambda *_: pytest.fail("trained on other data"))
    reproduction = reproduce(RunFolder(run), chain=chain.model_copy(update={"links": links}))
    assert reproduction.verdict == "diverged"
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == "shards/train_00000.bin"
    assert reproduction.first_difference.step == 0
    assert "step" not in reproduction.sentence


def test_a_training_that_fails_is_no_verdict_on_the_bits(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TrainingError("out of memory")

    monkeypatch.setattr(supervisor, "supervise", fail)
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "cannot"
    assert reproduction.missing == ("out of memory",)
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == "training"
    assert rebuilt_folders(run) == []


def test_a_revision_of_the_hub_is_downloaded_by_its_commit(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gone(config: PipelineConfig, **_: Any) -> None:
        asked.append(config.data.revision)
        raise SlmError("no such commit on the hub")

    monkeypatch.setattr("slm.reproduction.rebuild.download", gone)
    chain = lineage(RunFolder(run))
    described = json.loads((run / "config.json").read_bytes())
    described["config"]["data"] |= {"source": "hub", "path": "a/b", "revision": "main"}
    (run / "config.json").write_text(json.dumps(described))
    reproduction = reproduce(RunFolder(run), chain=chain)
    assert_cannot(reproduction, "source", "no such commit on the hub")
    assert asked == [chain["dataset"].digest]

    links = [link.model_copy(update={"digest": None}) for link in chain.links]
    reproduction = reproduce(RunFolder(run), chain=chain.model_copy(update={"links": tuple(links)}))
    assert_cannot(reproduction, "dataset", "not known any more")
    assert len(asked) == 1


def test_more_gpus_than_there_are_cannot(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    plan = json.loads((run / "plan.json").read_bytes())
    chain = lineage(RunFolder(run))
    journal = (run / "metrics.jsonl").read_text()
    assert '"processes": 1' in journal
    (run / "metrics.jsonl").write_text(journal.replace('"processes": 1', '"processes": 8'))
    forged = {**plan, "device": "cuda", "parallel": "ddp"}
    (run / "plan.json").write_text(json.dumps(forged))
    reproduction = reproduce(RunFolder(run), chain=chain)
    assert_cannot(reproduction, "environment", "1 GPUs here, 8 needed")
