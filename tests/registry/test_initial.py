"""`train.init_from`: what it names, the config that follows, and a training that starts there."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import Fault, Hub, serve_this_process
from run_folders import empty_store
from tiny_model import BYTES, tiny_model
from tiny_run import CLEAN, add_documents, code, copy_run, shards_of, tiny_config

import slm
from slm import retention, storage
from slm.config import DataConfig, ModelConfig, PipelineConfig, TrainConfig
from slm.errors import CorruptionError, Interrupted, SlmError, UserError
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import lineage
from slm.model import pretrained
from slm.model.saved import MODEL, load_model
from slm.orchestration import stages
from slm.planning.plan import plan_config
from slm.records import Parent, Run, Shards
from slm.registry import assessment, register
from slm.registry.exporting import export
from slm.registry.initial import agreed, initial_model, open_parent, resolve
from slm.registry.tags import chain_tags, ingredients
from slm.report import cards
from slm.reproduction.reproduce import reproduce
from slm.run_folder import RunFolder
from slm.tracking.entities import run_tags
from slm.tracking.server import connect, default_uri
from slm.training import launch
from slm.training.loop import train
from slm.training.session import initial_weights


@pytest.fixture
def base(data_root: Path) -> RunFolder:
    """A finished run, of a model that later ones start from."""
    return RunFolder(copy_run(data_root))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Documents of one's own."""
    return add_documents(tmp_path / "own" / "texts.jsonl", 11, 60)


def starting(
    init_from: object, path: Path = Path("texts.jsonl"), **settings: Any
) -> PipelineConfig:
    """A config of two steps that leaves the shape to the weights."""
    model = settings.pop("model", {})
    data = {"source": "files", "path": str(path), "val_fraction": 0.2, **settings.pop("data", {})}
    training = {"max_steps": 2, "tokens_per_step": 96, "evaluate_every": 1, "checkpoint_every": 1}
    return PipelineConfig(
        recipe="own",
        data=DataConfig(**data),
        model=ModelConfig(**model),
        train=TrainConfig(init_from=str(init_from), **{**training, **settings}),
    )


def as_version(run: RunFolder) -> None:
    """Register a run as the champion, models:/slm/1."""
    empty_store(run.root.path)
    record, evaluation = run.record, run.evaluation
    assert record is not None
    assert evaluation is not None
    register.register(run.config, record, evaluation, None, shards_of(record), root=run.root.path)
    client = connect(default_uri(run.root.path))
    client.set_registered_model_alias("slm", "champion", "1")


def opened(config: PipelineConfig) -> Parent:
    _, parent = initial_model(config)
    assert parent is not None
    return parent


# ---- what it names ------------------------------------------------------------------------------


def test_a_run_its_version_and_its_export_are_the_same_start(
    base: RunFolder, tmp_path: Path
) -> None:
    """One content, one key: what has been trained from one of them is reused for the others."""
    as_version(base)
    best = base.best
    assert best is not None
    export(best.path, tmp_path / "out")
    names = {
        base.name: f"{base.name}/{best.name}",
        base.name[-12:-4]: f"{base.name}/{best.name}",
        str(base.path): f"{base.name}/{best.name}",
        str(best.path): f"{base.name}/{best.name}",
        "models:/slm/1": "models:/slm/1",
        "models:/slm@champion": "models:/slm/1",
        f"hf:{tmp_path / 'out'}": f"hf:{tmp_path / 'out'}",
    }
    parents = {text: opened(starting(text)) for text in names}
    assert {text: parent.model for text, parent in parents.items()} == names
    assert len({parent.key for parent in parents.values()}) == 1
    assert {parent.weights_sha256 for parent in parents.values()} == {best.weights_sha256}
    imported = parents[f"hf:{tmp_path / 'out'}"]
    assert imported.origin["model.safetensors"] == storage.sha256_file(tmp_path / "out" / MODEL)
    assert imported.origin.keys() == {"config.json", "tokenizer.json", "model.safetensors"}


def test_what_is_no_start(base: RunFolder, tmp_path: Path) -> None:
    export(base.best.path, tmp_path / "out")  # type: ignore[union-attr]
    (tmp_path / "empty").mkdir()
    as_version(base)
    unfinished = Path(shutil.copytree(base.path, base.path.with_name("half-0123456789ab")))
    (unfinished / storage.RECORD).unlink()
    for text, message in (
        ("basse", "train.init_from=basse: unknown run 'basse'.*hf:FOLDER or hf:ORG/NAME"),
        ("latest", "would be the latest then: give a name"),
        ("half-0123456789ab", "is not finished: `slm train half-0123456789ab`"),
        (f"{tmp_path}/out", f"of Hugging Face: hf:{tmp_path}/out"),
        (f"hf:{tmp_path}/none", "there is no such folder"),
        (f"hf:{tmp_path}/empty", "has no "),
        (f"hf:{base.best.path}", "is a model of our own: leave out hf:"),  # type: ignore[union-attr]
        ("hf:a/b/c", "is neither hf:ORG/NAME"),
        ("models:/slm@champoin", "train.init_from=models:/slm@champoin: model 'slm'"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(starting(text))
    weights = base.best.path / MODEL  # type: ignore[union-attr]
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match=r"model\.safetensors"):
        resolve(starting(base.name))


def test_an_encode_or_a_training_without_its_model_is_refused(base: RunFolder, texts: Path) -> None:
    config = starting(base.name, texts)
    source = slm.download(config)
    with pytest.raises(UserError, match=r"parent=parent"):
        slm.encode(config, source)
    shards = base.shards
    assert shards is not None
    with pytest.raises(UserError, match=r"slm\.initial_model"):
        slm.train(config, shards)
    assert len(base.root.runs()) == 1


# ---- the config ---------------------------------------------------------------------------------


def shaped(config: PipelineConfig) -> PipelineConfig:
    start = resolve(config)
    assert start is not None
    return agreed(config, start)


def test_what_the_config_leaves_out_comes_with_the_weights(base: RunFolder) -> None:
    ours = base.config
    config = shaped(starting(base.name, model={"dropout": 0.1}))
    assert config.model == ours.model.model_copy(update={"dropout": 0.1})
    assert config.data.vocab_size == ours.data.vocab_size == 512
    shorter = shaped(starting(base.name, model={"seq_len": 16}))
    assert (shorter.model.seq_len, shorter.model.n_embd) == (16, 32)
    stated = {"architecture": "qwen3", "n_kv_head": 2, "n_inner": 96}  # as null means
    assert shaped(starting(base.name, model=stated)).model.n_inner == 96
    unchanged = tiny_config(Path("x"))
    assert initial_model(unchanged) == (unchanged, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": {"n_layer": 3, "n_embd": 60}},
            r"model\.n_layer=3, model\.n_embd=60, and .* has n_layer=1, n_embd=32: leave them out "
            r"of the recipe, or --set model\.n_layer=1 --set model\.n_embd=32",
        ),
        ({"model": {"architecture": "gpt2"}}, r"model\.architecture=gpt2, .* architecture=qwen3"),
        ({"model": {"n_kv_head": 1, "architecture": "qwen3"}}, r"n_kv_head=null"),
        ({"model": {"n_inner": 64}}, r"model\.n_inner=64"),
        ({"model": {"rope_theta": 5.0}}, r"model\.rope_theta=5\.0"),
        ({"data": {"vocab_size": 300}}, r"data\.vocab_size=300, .* has vocab_size=512"),
        ({"tokens_per_step": 100}, r"tokens_per_step=100 is not a multiple of model\.seq_len=32"),
    ],
)
def test_another_shape_is_one_error_with_both_values(
    base: RunFolder, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        shaped(starting(base.name, **settings))


def test_a_shorter_context_takes_the_first_positions(tmp_path: Path, data_root: Path) -> None:
    gpt2, folder = tiny_model("gpt2"), tmp_path / "checkpoint"
    folder.mkdir()
    pretrained.save(gpt2, BYTES, folder)
    export(folder, tmp_path / "out")
    parent = opened(starting(f"hf:{tmp_path / 'out'}", tokens_per_step=120))
    shape = gpt2.config.model_copy(update={"seq_len": 8})
    model = slm.model.gpt.GPT(shape, BYTES.n_vocab)
    model.load_state_dict(initial_weights(parent, model))
    ids = torch.randint(0, 257, (2, 8))
    assert torch.equal(model.eval()(ids), gpt2(ids))
    with pytest.raises(UserError, match=r"model\.seq_len=25, .* has seq_len=24"):
        shaped(starting(f"hf:{tmp_path / 'out'}", model={"seq_len": 25}, tokens_per_step=100))


# ---- training -----------------------------------------------------------------------------------


def trained(config: PipelineConfig) -> tuple[PipelineConfig, Run, Shards]:
    config, parent = initial_model(config)
    shards = slm.encode(config, slm.download(config), parent=parent)
    with code(CLEAN):
        run = launch.train(config, shards, parent=parent)
    return config, run, shards


def test_a_model_that_was_exported_and_imported_is_trained_on(
    base: RunFolder, texts: Path, tmp_path: Path
) -> None:
    """It begins with its weights and its vocabulary, and needs nothing but its own folder later."""
    out = tmp_path / "out"
    export(base.best.path, out)  # type: ignore[union-attr]
    config, run, shards = trained(starting(f"hf:{out}", texts))
    folder = RunFolder.of(run)
    assert shards.tokenizer_sha256 == base.best.tokenizer_sha256  # type: ignore[union-attr]
    first = next(e for e in folder.journal if e["event"] == "step")
    assert abs(first["train_loss"] - base.record.val_loss) < 0.5  # type: ignore[union-attr]
    assert folder.checkpoint("step_000001").parent_sha256 == base.best.weights_sha256  # type: ignore[union-attr]
    assert trained(starting(f"hf:{out}", texts))[1].reused
    assert trained(starting(base.name, texts))[1].key == run.key  # the same weights

    shutil.rmtree(out)
    shutil.rmtree(base.path)
    shutil.rmtree(base.root.path / "imported")
    evaluate(config, run, shards)
    link = lineage(folder)["parent"]
    assert link.state == "unchanged"
    assert link.value.startswith(f"initialised from hf:{out}, model.safetensors sha256 ")
    assert "parent" in lineage(folder)["run"].made_from
    with code(CLEAN):
        assert reproduce(folder).verdict == "bit-identical"
    tags = chain_tags(ingredients(config, run, folder.best, folder.evaluation, None, shards))  # type: ignore[arg-type]
    assert tags["init_from"] == tags["parent"] == f"hf:{out}"
    assert tags["parent_sha256"] == folder.settings.parent_key
    shutil.rmtree(folder.path / "parent")
    gone = reproduce(folder)
    assert (gone.verdict, gone.first_difference.what) == ("cannot", "parent")  # type: ignore[union-attr]


def test_a_killed_training_resumes_from_its_checkpoint_and_not_from_the_model(
    base: RunFolder, texts: Path
) -> None:
    whole = trained(starting(base.name, texts))[1]
    expected = whole.weights_sha256
    shutil.rmtree(whole.path)
    config, parent = initial_model(starting(base.name, texts))
    shards = slm.encode(config, slm.download(config), parent=parent)
    run = launch.prepare(config, shards, parent=parent)
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(stops))
    shutil.rmtree(base.path)
    with code(CLEAN):
        assert slm.resume(run).weights_sha256 == expected


# ---- plans --------------------------------------------------------------------------------------


def test_a_plan_names_the_version_and_what_changed(base: RunFolder, texts: Path) -> None:
    as_version(base)
    config = starting("models:/slm@champion", texts)
    before = plan_config(config)
    assert next((s.stage, s.action) for s in before.stages) == ("init_from", "reused")
    assert before["init_from"].result == "models:/slm/1"
    assert before["train"].action == "to run"
    _, run, _ = trained(config)
    after = plan_config(config)
    assert [after[name].action for name in ("encode", "train")] == ["reused", "reused"]
    assert after["train"].key == run.key
    check_cards(config, run)
    assert [plan_config(config, verify=True)[n].key for n in ("init_from", "train")] == [
        RunFolder.of(run).settings.parent_key,
        run.key,
    ]
    other = plan_config(starting(base.name, texts))
    assert other["train"].action == "reused"
    from_seed = config.train.model_copy(update={"init_from": None, "tokens_per_step": 256})
    seed = plan_config(config.model_copy(update={"train": from_seed}))
    assert seed["encode"].changed["train.init_from"] == ("models:/slm@champion", None)


def check_cards(config: PipelineConfig, run: Run) -> None:
    """The report names the version, and its command starts from that, whatever the alias is."""
    best = RunFolder.of(run).best
    assert best is not None
    card = dict(cards.model_card(config, run, best, 512))
    assert (card["started from"], card["width"]) == ("models:/slm/1", "32")
    (command,) = [line for line in cards.commands(config, run) if line.startswith("slm run")]
    assert 'train.init_from="models:/slm/1"' in command
    assert "model.n_embd" not in command
    tags = run_tags(run)
    assert tags["slm.parent"] == "models:/slm/1"
    commit = "hf:org/base@" + "4" * 40
    pinned = {"hf:org/base@main": False, "run/step_000002": False, "models:/slm@champion": False}
    assert {name: cards.is_pinned(name) for name in pinned} == pinned
    assert cards.is_pinned(commit)


def test_a_plan_of_a_folder_knows_it_after_the_first_import(
    base: RunFolder, texts: Path, tmp_path: Path
) -> None:
    export(base.best.path, tmp_path / "out")  # type: ignore[union-attr]
    config = starting(f"hf:{tmp_path / 'out'}", texts)
    before = plan_config(config)
    assert (before["init_from"].action, before["init_from"].key) == ("to run", None)
    assert before["train"].key is None
    assert not (base.root.path / "imported").exists()
    _, run, _ = trained(config)
    after = plan_config(config)
    assert (after["init_from"].action, after["init_from"].assumed) == ("reused", True)
    assert not plan_config(config, verify=True)["init_from"].assumed
    assert after["train"].key == run.key
    (tmp_path / "out" / "config.json").touch()
    assert plan_config(config)["init_from"].key is None


# ---- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve_this_process(tmp_path / "hf", monkeypatch) as server:
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_model_of_the_hub_is_pinned_to_its_commit(
    base: RunFolder, hub: Hub, tmp_path: Path, texts: Path
) -> None:
    export(base.best.path, tmp_path / "out")  # type: ignore[union-attr]
    commit = hub.add("org/base", {**files_of(tmp_path / "out"), "flax_model.msgpack": b"x"})
    start = resolve(starting("hf:org/base"))
    assert start is not None
    assert (start.model, start.parent) == (f"hf:org/base@{commit}", None)
    assert not hub.lines("model.safetensors")  # only small files before the machine was checked
    parent = open_parent(start)
    assert parent.weights_sha256 == base.best.weights_sha256  # type: ignore[union-attr]
    assert not hub.lines("flax")
    for path in (tmp_path / "hf" / "files").iterdir():
        if path.is_dir():
            shutil.rmtree(path)

    hub.requests.clear()
    pinned = starting(f"hf:org/base@{commit}", texts)
    assert opened(pinned).key == parent.key
    assert plan_config(pinned, root=base.root.path)["init_from"].assumed is False
    assert not hub.requests  # a commit needs no network
    branch = plan_config(starting("hf:org/base@main", texts))["init_from"]
    assert branch.assumed
    assert f"main is assumed to be commit {commit[:12]}" in branch.reasons[0]
    assert not hub.requests

    pretrained.save(tiny_model("gpt2"), BYTES, _new(tmp_path / "other"))
    export(tmp_path / "other", tmp_path / "next")
    moved = hub.add("org/base", files_of(tmp_path / "next"))
    newer = opened(starting("hf:org/base", tokens_per_step=120))
    assert (newer.model, newer.key == parent.key) == (f"hf:org/base@{moved}", False)
    assert opened(pinned).key == parent.key


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_the_hub_refuses_or_damages(base: RunFolder, hub: Hub, tmp_path: Path) -> None:
    export(base.best.path, tmp_path / "out")  # type: ignore[union-attr]
    hub.add("org/base", files_of(tmp_path / "out"))
    hub.add("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.add("org/closed", files_of(tmp_path / "out"), token="hf_secret")
    for text, message in (
        ("hf:org/none", "train.init_from=hf:org/none: .* has no such model"),
        ("hf:org/base@v9", "has no revision 'v9'"),
        ("hf:org/pickle", "as a pickle, pytorch_model.bin"),
        ("hf:org/closed", "is gated: ask for access at http://[^ ]*/org/closed,"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(starting(text))
    hub.faults.append(Fault("GET /org/base/resolve", "flip", times=1))
    assert opened(starting("hf:org/base")).weights_sha256 == base.best.weights_sha256  # type: ignore[union-attr]
    hub.faults.append(Fault("/api/models/org/base", "status", times=9))
    with pytest.raises(SlmError, match="answered 500"):
        resolve(starting("hf:org/base"))


# ---- around it ----------------------------------------------------------------------------------


def test_an_import_can_be_deleted_a_week_after_its_last_use(
    base: RunFolder, tmp_path: Path
) -> None:
    export(base.best.path, tmp_path / "out")  # type: ignore[union-attr]
    folder = opened(starting(f"hf:{tmp_path / 'out'}")).path

    def going() -> list[Path]:
        deletable = retention.survey(base.root.path, [], grace=0).going
        return [item.path for item in deletable if item.path == folder]

    assert going() == []
    for path in folder.iterdir():
        os.utime(path, (1.0, 1.0))
    assert going() == [folder]
    opened(starting(f"hf:{tmp_path / 'out'}"))
    assert going() == []
    for path in folder.iterdir():
        os.utime(path, (1.0, 1.0))
    retention.collect(retention.survey(base.root.path, [], grace=0))
    assert not folder.exists()


def test_the_gate_warns_of_held_out_documents_that_the_model_had_seen(
    base: RunFolder, texts: Path
) -> None:
    """Here the new held-out documents are among those that the base was trained on."""
    base_data = Path(base.config.data.path)
    config, run, shards = trained(starting(base.name, base_data, data={"val_fraction": 0.6}))
    known = assessment.seen_by_ancestors(RunFolder.of(run), shards, held_out(shards))
    assert len(known) == 1
    assert "held-out documents are in what" in known[0]
    assert base.name in known[0]
    _, other, own = trained(starting(base.name, texts))
    assert assessment.seen_by_ancestors(RunFolder.of(other), own, held_out(own)) == []
    shutil.rmtree(base.path)
    (unknown,) = assessment.seen_by_ancestors(RunFolder.of(other), own, held_out(own))
    assert "is not known here" in unknown
    assert assessment.seen_by_ancestors(base, own, []) == []
    del config


def held_out(shards: Shards) -> list[str]:
    from slm.tokens.shards.reading import documents
    from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    return [tokenizer.decode(ids.tolist()) for ids in documents(shards, "val")]


@pytest.mark.slow
def test_a_pipeline_starts_from_the_champion_and_its_report_names_it(
    base: RunFolder, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from slm.orchestration.outline import run_pipeline

    as_version(base)
    report = {"temperatures": (0.8,), "top_ks": (10,), "max_new_tokens": 8}
    config = starting("models:/slm@champion", texts)
    config = config.model_copy(
        update={"report": config.report.model_copy(update={**report, "prompts": ("Once",)})}
    )
    with code(CLEAN):
        made = run_pipeline(config, "register")
    assert made["init_from"] == "models:/slm/1"
    assert "init_from" in made["seconds"]
    page = (Path(made["report"]).parent / "report.md").read_text()
    page = page.replace("\\", "")
    assert "| started from | models:/slm/1 |" in page
    assert "initialised from models:/slm/1" in page
    assert "--set 'train.init_from=\"models:/slm/1\"'" in page
    run = RunFolder(Path(made["run"]))
    assert load_model(run.best.path).model.config.n_embd == 32  # type: ignore[union-attr]
    with code(CLEAN):
        assert run_pipeline(config, "register")["reused"] == [
            "download", "encode", "train", "evaluate", "report", "register",
        ]  # fmt: skip
    assert stages.starting_point(base.config) == (base.config, None)


def test_a_relative_folder_is_below_the_recipe(
    tmp_path: Path, load: Callable[..., PipelineConfig]
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").touch()
    assert load("hf:models/mine").train.init_from == f"hf:{tmp_path / 'models' / 'mine'}"
    assert load("models/mine").train.init_from == str(tmp_path / "models" / "mine")
    for name in ("models:/slm@champion", "hf:openai-community/gpt2", "a-run", "hf:/elsewhere"):
        assert load(name).train.init_from == name


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., PipelineConfig]:
    def call(init_from: str) -> PipelineConfig:
        path = tmp_path / "pipelines.yaml"
        path.write_text(f"recipes: {{a: {{train: {{max_steps: 1, init_from: '{init_from}'}}}}}}")
        return slm.load_recipe("a", path=path)

    return call
