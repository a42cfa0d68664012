"""Versions: the same chain gives the same version, which works on its own, wherever it is."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    add_report,
    empty_store,
    finish_run,
    killed_after,
    start_run,
    step_events,
    write_journal,
)
from tiny_run import flip_byte, shards_of

import slm.evaluation.evaluate
import slm.source.download
import slm.tokens.encode
import slm.training.launch
from slm import retention, storage
from slm.config import DataConfig, PipelineConfig, RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.model.sample import generate
from slm.model.saved import load_model
from slm.recipes import load_recipe
from slm.records import Evaluation, Run, Version
from slm.registry import packing, register, versions
from slm.registry.chain import version_lineage
from slm.registry.tags import REQUIRED
from slm.registry.versions import find_version, resolve
from slm.report.prompts import example_prompt
from slm.run_folder import RunFolder
from slm.tracking import mirror
from slm.tracking.server import as_default, connect, default_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
LENIENT = RegistryConfig(max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with an empty store, at a path with a space."""
    return empty_store(tmp_path / "my data")


def make_run(root: Path, key: str = "ab" * 32, trained: int = 0) -> tuple[Run, Evaluation]:
    path = start_run(root, key=key)
    write_journal(path, step_events(1, 60))
    run = finish_run(path, key=key, trained=trained)
    return run, add_evaluation(run)


def registered(root: Path, key: str = "ab" * 32, trained: int = 0) -> Version:
    run, evaluation = make_run(root, key, trained)
    return register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)


def client(root: Path) -> "MlflowClient":
    return connect(default_uri(root))


def aliases(root: Path) -> dict[str, str]:
    held = client(root).get_registered_model("slm").aliases
    return {alias: str(version) for alias, version in held.items()}


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (DataConfig(), "slm"),
        (DataConfig(source="hub", path="roneneldan/TinyStories"), "TinyStories"),
        (DataConfig(source="hub", path="wikitext"), "wikitext"),
        (DataConfig(source="files", path="/home/me/articles.jsonl.zst"), "articles"),
        (DataConfig(source="files", path="notes/*.txt"), "notes"),
        (DataConfig(source="files", path="my texts, v1.2/"), "my-texts-v1.2"),
        (DataConfig(source="files", path="*.txt"), "tiny"),
        (DataConfig(source="files", path=".."), "tiny"),
        (DataConfig(source="files", path="数据.csv"), "tiny"),
        (DataConfig(source="files", path="x" * 90), "x" * 64),
    ],
)
def test_a_model_has_the_name_of_its_data(data: DataConfig, name: str) -> None:
    config = CONFIG.model_copy(update={"data": data})
    assert config.model_name == name
    assert RegistryConfig(model=name).model == name  # a valid one
    other = config.model_copy(update={"registry": RegistryConfig(model="other")})
    assert other.model_name == "other"


def test_own_data_does_not_compete_with_the_recipes() -> None:
    names = {
        recipe: load_recipe(recipe, changes, path=PIPELINES).model_name
        for recipe, changes in {
            "quickstart": {},
            "tinystories": {},
            "tinystories-gpt2": {},
            "tinystories-sample": {"data.path": "book.txt"},
        }.items()
    }
    assert names == {
        "quickstart": "slm",
        "tinystories": "tinystories",
        "tinystories-gpt2": "tinystories",
        "tinystories-sample": "book",
    }


# ---- versions ---------------------------------------------------------------------------------


def test_the_example_of_a_served_model_begins_as_held_out_documents_do(root: Path) -> None:
    run = RunFolder.of(make_run(root)[0])
    registered_again = register.register(
        CONFIG, run.record, run.evaluation, None, run.shards, root=root
    )
    assert registered_again.version == "1"
    [example] = (root / "mlflow" / "artifacts").rglob("input_example.json")
    assert run.best is not None
    prompt = example_prompt(run.best.path)
    assert prompt
    assert json.dumps(prompt) in example.read_text()


def test_a_version_carries_its_whole_chain(root: Path) -> None:
    run, evaluation = make_run(root)
    version = register.register(CONFIG, run, evaluation, add_report(run), shards_of(run), root=root)
    assert (version.model, version.version, version.aliases) == ("slm", "1", ["challenger"])
    tags = client(root).get_model_version("slm", "1").tags
    assert {f"slm.{link}" for link in REQUIRED} <= set(tags)
    assert tags["slm.dataset"] == "stories"
    assert tags["slm.dataset_revision"] == "r1"
    assert tags["slm.code_commit"] == "c" * 40
    assert tags["slm.run_id"] == version.run_id
    weights = run.checkpoint("best") / "model.safetensors"
    assert tags["slm.weights_sha256"] == storage.sha256_file(weights)
    assert tags["slm.report_sha256"]


def test_registering_again_sends_nothing_and_changes_nothing(root: Path) -> None:
    run, evaluation = make_run(root)
    first = register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "sync", lambda *_, **__: pytest.fail("the run was sent again"))
        second = register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    assert second.reused
    assert second.version == first.version
    (run.path / "registered.json").unlink()
    third = register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    assert (third.version, third.aliases) == ("1", ["challenger"])
    assert len(client(root).search_model_versions("name = 'slm'")) == 1


def test_a_version_that_the_store_lost_is_registered_anew(root: Path) -> None:
    run, evaluation = make_run(root)
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    client(root).delete_registered_model("slm")
    again = register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    assert not again.reused
    assert aliases(root) == {"challenger": again.version}


def test_a_data_folder_that_moved_keeps_its_version(root: Path) -> None:
    run, evaluation = make_run(root)
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    moved = root.rename(root.parent / "moved")
    run, evaluation = (
        record.model_copy(update={"path": moved / record.path.relative_to(root)})
        for record in (run, evaluation)
    )
    again = register.register(CONFIG, run, evaluation, None, shards_of(run), root=moved)
    assert (again.version, again.reused) == ("1", True)


def test_a_chain_that_has_changed_is_not_reused(root: Path) -> None:
    run, evaluation = make_run(root)
    shards = shards_of(run)
    register.register(CONFIG, run, evaluation, None, shards, root=root)
    client(root).set_model_version_tag("slm", "1", "slm.dataset_revision", "another")
    again = register.register(CONFIG, run, evaluation, None, shards, root=root)
    assert (again.version, again.reused) == ("1", False)
    assert client(root).get_model_version("slm", "1").tags["slm.dataset_revision"] == "r1"
    assert register.register(CONFIG, run, evaluation, None, shards, root=root).reused


def test_two_names_for_one_run_keep_a_note_each(root: Path) -> None:
    """`slm run X --set registry.model=foo` and `slm register RUN`, in turn."""
    run, evaluation = make_run(root)
    shards = shards_of(run)
    renamed = CONFIG.model_copy(update={"registry": RegistryConfig(model="foo")})
    for reused in (False, True):
        for config in (renamed, CONFIG):
            version = register.register(config, run, evaluation, None, shards, root=root)
            assert (version.uri, version.reused) == (f"models:/{config.model_name}/1", reused)
    names = [path.name for path in register.registered_notes(run.path)]
    assert len(names) == 2
    assert "registered.json" in names
    own = Version.model_validate_json((run.path / "registered.json").read_bytes())
    assert own.model == "slm"


def test_two_stores_for_one_run_keep_a_note_each(root: Path, tmp_path: Path) -> None:
    run, evaluation = make_run(root)
    other = default_uri(empty_store(tmp_path / "another store"))
    elsewhere = CONFIG.model_copy(update={"registry": RegistryConfig(tracking_uri=other)})
    for reused in (False, True):
        for config in (elsewhere, CONFIG):
            version = register.register(config, run, evaluation, None, shards_of(run), root=root)
            assert (version.uri, version.reused) == ("models:/slm/1", reused)
    notes = [Version.model_validate_json(p.read_bytes()) for p in run.path.glob("registered*.json")]
    # Its own store moves with the data folder.
    assert {note.tracking_uri for note in notes} == {other, "sqlite:///mlflow/mlflow.db"}


def test_a_run_with_a_version_under_another_name_is_not_deleted(root: Path) -> None:
    run, evaluation = make_run(root)
    renamed = CONFIG.model_copy(update={"registry": RegistryConfig(model="foo")})
    register.register(renamed, run, evaluation, None, shards_of(run), root=root)
    assert not (run.path / "registered.json").exists()
    survey = retention.survey(root, [], keep_runs=0, grace=-60)
    kept = {item.path: item.reason for item in survey.staying}
    assert kept[run.path] == "a version was made from it"


def test_the_newest_version_challenges_and_none_is_champion_without_the_gate(root: Path) -> None:
    registered(root)
    assert registered(root, key="cd" * 32, trained=3).aliases == ["challenger"]
    assert aliases(root) == {"challenger": "2"}


def test_a_version_that_was_assessed_challenges_no_more(root: Path) -> None:
    run, evaluation = make_run(root)
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    client(root).set_model_version_tag("slm", "1", "slm.verdict", "{}")
    registered(root, key="cd" * 32, trained=3)
    (run.path / "registered.json").unlink()
    assert register.register(CONFIG, run, evaluation, None, shards_of(run), root=root).aliases == []
    assert aliases(root) == {"challenger": "2"}


def test_weights_that_were_exchanged_are_not_registered(root: Path) -> None:
    run, evaluation = make_run(root)
    weights = run.checkpoint("best") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"model\.safetensors"):
        register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    other = evaluation.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(CorruptionError, match="exchanged"):
        register.register(CONFIG, run, other, None, shards_of(run), root=root)


def test_weights_that_were_exchanged_within_a_command_are_not_registered(root: Path) -> None:
    """It hashes what it registers, whatever was hashed before; size and time are as they were."""
    run, evaluation = make_run(root)
    weights = run.checkpoint("best") / "model.safetensors"
    with storage.hashing_once():
        storage.sha256_file(weights)
        before = weights.stat()
        flip_byte(weights)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(CorruptionError, match=r"model\.safetensors"):
            register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)


REGISTER_CALLS = [
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
]


@pytest.mark.slow
def test_a_registration_killed_after_any_call_is_completed_by_the_next(tmp_path: Path) -> None:
    for calls in range(1, 30):
        root = empty_store(tmp_path / str(calls))
        run, evaluation = make_run(root)
        work = lambda: register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)  # noqa: B023
        killed = killed_after(calls, REGISTER_CALLS, work)
        version = work()
        server = client(root)
        assert (version.version, aliases(root)) == ("1", {"challenger": "1"})
        assert len(server.search_model_versions("name = 'slm'")) == 1
        models = server.search_logged_models([server.get_run(version.run_id).info.experiment_id])
        assert sorted(m.name for m in models) == ["model", "step_000050", "step_000060"]
        assert {m.status for m in models} == {"READY"}
        if not killed:
            break
    assert calls > 10


# ---- serving ----------------------------------------------------------------------------------


def test_a_version_writes_what_slm_sample_writes(root: Path) -> None:
    run, evaluation = make_run(root, trained=30)
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    import mlflow

    prompts, settings = ["One day", "Tom"], {"max_new_tokens": 12, "seed": 3}
    with as_default(client(root)):
        served = mlflow.pyfunc.load_model("models:/slm@challenger")
    model, tokenizer = load_model(run.checkpoint("best"))
    samples = generate(model, tokenizer, prompts, temperature=0.8, top_k=50, **settings)
    assert served.predict(prompts, params=settings) == [s.completion for s in samples]
    assert served.predict(prompts, params=settings) != served.predict(
        prompts, params={**settings, "seed": 4}
    )
    assert set(served.metadata.get_params_schema().to_dict()[0]) >= {"name", "default"}
    names = [param.name for param in served.metadata.get_params_schema().params]
    assert names == list(packing.PARAMS)


def test_a_version_holds_no_pickle_and_no_slm(root: Path) -> None:
    registered(root)
    folder = Path(next((root / "mlflow" / "artifacts" / "models").iterdir()) / "artifacts")
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".py", ".json", ".yaml", ".txt", ".safetensors", ".tiktoken"}
    code = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    assert "from slm." not in code
    assert "import slm" not in code
    required = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in required)
    assert {line.partition("==")[0] for line in required} == set(packing.REQUIREMENTS)


SHIPPED = {
    "__init__.py", "errors.py", "figures.py",
    "config/__init__.py", "config/data.py", "config/documents.py", "config/evaluate.py",
    "config/folders.py", "config/launch.py", "config/model.py", "config/pipeline.py",
    "config/registry.py", "config/report.py", "config/retrain.py", "config/setting.py",
    "config/tokenizer.py", "config/train.py",
    "records/__init__.py", "records/data.py", "records/plan.py", "records/record.py",
    "records/report.py", "records/run.py", "records/scores.py", "records/version.py",
    "storage/__init__.py", "storage/faults.py", "storage/files.py", "storage/folders.py",
    "storage/hashes.py", "storage/locks.py", "storage/record.py", "storage/stage.py",
    "model/__init__.py", "model/batch.py", "model/decode.py", "model/fused.py", "model/gpt.py",
    "model/int8.py", "model/next_token.py", "model/sample.py", "model/saved.py",
    "tokens/__init__.py", "tokens/permutation.py", "tokens/tokenizer/__init__.py",
    "tokens/tokenizer/bpe.py", "tokens/tokenizer/gpt2_files.py", "tokens/tokenizer/lookup.py",
    "tokens/tokenizer/patterns.py", "tokens/tokenizer/pretokenize.py",
    "tokens/tokenizer/pretokenize_newer.py",
}  # fmt: skip


def test_a_version_ships_the_modules_that_sampling_needs_and_no_other(tmp_path: Path) -> None:
    script, package = packing.ship_code(tmp_path)
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert (modules, script.name) == (SHIPPED, "serving.py")
    assert (package / "__init__.py").read_text() == ""


def test_code_is_shipped_with_the_packages_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a module is imported; the names that `slm` offers lazily drag nothing in."""
    home = tmp_path / "slm"
    for name, source in {
        "__init__.py": "def __getattr__(name):\n    from slm import heavy\n",
        "heavy.py": "import torch\n",
        "errors.py": "class SlmError(Exception): pass\n",
        "model/__init__.py": '"""The model."""\n',
        "model/gpt.py": "def f():\n    from slm.errors import SlmError\n",
        "script.py": "from slm.model import gpt\n",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(source)
    monkeypatch.setattr(packing, "HOME", home)
    monkeypatch.setattr(packing, "SERVING", home / "script.py")
    script, package = packing.ship_code(tmp_path / "shipped")
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert modules == {"__init__.py", "errors.py", "model/__init__.py", "model/gpt.py"}
    assert script.read_text() == f"from {package.name}.model import gpt\n"
    code = (package / "model" / "gpt.py").read_text()
    assert code == f"def f():\n    from {package.name}.errors import SlmError\n"


def test_every_package_that_the_shipped_code_imports_is_required(tmp_path: Path) -> None:
    import ast

    _, package = packing.ship_code(tmp_path)
    imported = set()
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {package.name}
    brought = {
        "yaml": "pyyaml",
        "pandas": "mlflow",
        "pydantic_core": "pydantic",
        "pyarrow": "mlflow",
        "tiktoken_ext": "tiktoken",
    }
    assert {brought.get(name, name) for name in foreign} <= set(packing.REQUIREMENTS)


def test_versions_of_different_code_work_in_one_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(root)
    needed_modules = packing.needed_modules

    def changed(script: Path) -> dict[str, str]:
        sources = needed_modules(script)
        sample = "model/sample.py"
        marked = sources[sample].replace("row.prompt, row.text,", "row.prompt, 'changed',")
        assert marked != sources[sample]
        return {**sources, sample: marked}

    monkeypatch.setattr(packing, "needed_modules", changed)
    registered(root, key="cd" * 32, trained=3)
    import mlflow

    with as_default(client(root)):
        second = mlflow.pyfunc.load_model("models:/slm/2")
        first = mlflow.pyfunc.load_model("models:/slm/1")
    assert second.predict(["One day"]) == ["changed"]
    assert first.predict(["One day"]) != ["changed"]


# ---- finding ----------------------------------------------------------------------------------


def test_names_lead_to_model_folders(root: Path) -> None:
    run, evaluation = make_run(root)
    register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    best = run.checkpoint("best")
    for text in (str(run.path), run.name, "models:/slm@challenger", "models:/slm/1"):
        assert resolve(text, root) == best
    bytes_before = (best / "model.safetensors").read_bytes()
    (root / "runs").rename(root / "gone")
    copy = resolve("models:/slm@challenger", root)
    assert (copy / "model.safetensors").read_bytes() == bytes_before
    assert {"config.json", "tokenizer.tiktoken"} <= {path.name for path in copy.iterdir()}
    assert resolve("models:/slm/1", root) == copy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:/sml@challenger", "did you mean 'slm'"),
        ("models:/slm@challenge", "did you mean 'challenger'"),
        ("models:/slm/7", "valid: 1"),
        ("models:/slm/", "models:/NAME@ALIAS"),
        ("tiny-bababababab", "did you mean 'tiny-abababababab'"),
    ],
)
def test_what_does_not_exist_is_named(root: Path, text: str, message: str) -> None:
    registered(root)
    with pytest.raises(UserError, match=message):
        resolve(text, root)


def test_a_model_among_hundreds_is_found_and_asked_for_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(root)
    registered(root, key="cd" * 32, trained=3)
    server = client(root)
    for number in range(120):  # more than a page of them, all before ours
        server.create_registered_model(f"a{number:03}")
    assert find_version(server, "models:/slm@challenger").version == "2"
    champion, challenger = versions.champion_and_challenger(CONFIG, root)
    assert champion is None
    assert challenger is not None
    assert challenger.uri == "models:/slm/2"

    from mlflow import MlflowClient

    asked: list[str] = []
    get = MlflowClient.get_registered_model
    monkeypatch.setattr(
        MlflowClient, "get_registered_model", lambda c, n: asked.append(n) or get(c, n)
    )
    listed = {v.uri: v.aliases for v in versions.list_versions(root)}
    assert listed == {"models:/slm/1": (), "models:/slm/2": ("challenger",)}
    assert asked == ["slm"]


# ---- the registry's copy ----------------------------------------------------------------------


def test_a_copy_that_cannot_be_reached_is_not_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.artifacts
    import requests

    registered(root)

    def down(*_: object, **__: object) -> None:
        raise requests.ConnectionError("http://me:hunter2@127.0.0.1:9 does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "list_artifacts", down)
        link = version_lineage("models:/slm/1", root)["version"]
    assert link.state == "not checked"
    assert "127.0.0.1:9 does not answer" in link.notes[0]
    assert "hunter2" not in link.notes[0]

    assert version_lineage("models:/slm/1", root)["version"].state == "unchanged"
    weights = next((root / "mlflow" / "artifacts" / "models").rglob("model.safetensors"))
    weights.unlink()
    link = version_lineage("models:/slm/1", root)["version"]
    assert (link.state, link.notes[0].partition(" ")[0]) == ("gone", "model.safetensors")


# ---- the real thing ---------------------------------------------------------------------------


def test_a_real_run_is_mirrored_registered_and_served(
    tiny_config: Callable[..., PipelineConfig], root: Path
) -> None:
    config = tiny_config()
    shards = slm.tokens.encode.encode(
        config, slm.source.download.download(config, root=root), root=root
    )
    with mirror.mirror(slm.training.launch.prepare(config, shards, root=root)):
        run = slm.training.launch.train(config, shards, root=root)
    run_id = json.loads((run.path / "mlflow.json").read_text())["run_id"]
    losses = client(root).get_metric_history(run_id, "train_loss")
    assert [m.step for m in losses] == [1, 2, 3, 4]
    assert client(root).get_run(run_id).info.status == "FINISHED"

    evaluation = slm.evaluation.evaluate.evaluate(config, run, shards_of(run))
    version = register.register(config, run, evaluation, None, shards_of(run), root=root)
    assert version.run_id == run_id
    tags = client(root).get_model_version("slm", version.version).tags
    assert {f"slm.{link}" for link in REQUIRED} <= set(tags)
    assert resolve("models:/slm@challenger", root) == run.checkpoint("best")
