"""Keys: every setting has its place, and those of the shipped recipes never change by accident."""

from typing import Any

import pytest

from slm import keys
from slm.config import PipelineConfig
from slm.evaluation.identity import EVALUATE_VERSION
from slm.recipes import load_recipe
from slm.records import FileEntry, Source
from slm.report.identity import REPORT_VERSION
from slm.source.download import download_key
from slm.storage import sha256_json
from slm.tokens.encode import encode_key
from slm.training.identity import TRAIN_VERSION, run_keys

# Of inputs that are made up. A key here changes only with its recipe, or with the version of its
# stage: then every result of that stage is rebuilt, everywhere.
GOLDEN = {
    "quickstart": {
        "download": "f1112a0ba12f41271b70e575aedda442db3936057faa334222ef7a8f6fe0503f",
        "encode": "c652f91f354d799039562afa6d8e879f84990112b81969de9379093a4c5c9a18",
        "train": "143632fb680eb9fdba68e14da954f7242cce326234077f5ba90f7451c6a73294",
        "config_sha256": "3c9a8b7529294de87aba0d1b0a9c9f796193c49501cbad80b6a0eea176bd96fc",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "290639308be1febac67a5cc330d7a6fafaeccb2c9d2ef21d4b9a42bc03e83701",
    },
    "tinystories": {
        "download": "e00b0e48bd7a07426be1ba43cbf2a315da900ef8a3dc4f74d2af0443c95c4cb8",
        "encode": "a540890113d14766aca268fb99a51b8d492c64b8c091b38382e80d08630e94e9",
        "train": "6a9cc0e241c79216845245d5769267499618928349706e6b392078bb7023e0f2",
        "config_sha256": "030fc1e41b25ffb3ebe694e8be517509c6c2195701d1f0f9a14688a9c4479a3a",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "593044f338475b65bd4af8e25c597c082f47a98c5d0894395d12d43155a5a1f6",
    },
    "tinystories-gpt2": {
        "download": "e00b0e48bd7a07426be1ba43cbf2a315da900ef8a3dc4f74d2af0443c95c4cb8",
        "encode": "0486eb0e7182f49787a63f2127bb31bc45f1c286dfa6234171de01b74dfc5922",
        "train": "15a80da4befed8377da8a2bdb8e1fc9c9e47bc8b03edb164424f50504e4d2811",
        "config_sha256": "c7c54b1cdb790966ea9e3045340a8b9d5c75a2f4bf76fe0d612376eb024bd2be",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "593044f338475b65bd4af8e25c597c082f47a98c5d0894395d12d43155a5a1f6",
    },
    "tinystories-sample": {
        "download": "83802b22d6feb0046304fe876eaabc33dc182f1183cc7ad96e3b4ac574c045d6",
        "encode": "ba862794f12094d59c96cad7a0864054d306b5912ffbdb9eb73b56cec798bedc",
        "train": "66844b1da175f1796b098f7188270723ed056d8c6b889e1145c380a28b8cad41",
        "config_sha256": "d1fb38e7eb2b6ffa4af220bc73c154fc502ec4574af15a69d3d96bc77eb42f07",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "593044f338475b65bd4af8e25c597c082f47a98c5d0894395d12d43155a5a1f6",
    },
    "gpt2-124m": {
        "download": "96c6a617ec15d0523828583daa4703c2838aa2feee1c55c1f684e3d839286f3f",
        "encode": "ba342ec133b8d662091ff19ac16f39f04831281365483bb1d9f2eb3142a6ec40",
        "train": "c0f494a6ad40db493e15890423dca46d25fc6a83664ce772ea663eed26885584",
        "config_sha256": "ded447c651a2ae3891a7464d0e56da3cb251f0cb8a8f90392103a4813930647f",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "636c28dfe46cdfe27be28c1939ee26fbc73825cd07a80693edbc75a590a5ba82",
    },
    "files": {
        "download": "83802b22d6feb0046304fe876eaabc33dc182f1183cc7ad96e3b4ac574c045d6",
        "encode": "6e1835c337aaefef7642b343d8498ffae5c41c12fcfcd8acca5d478fbc5aff2a",
        "train": "66844b1da175f1796b098f7188270723ed056d8c6b889e1145c380a28b8cad41",
        "config_sha256": "d1fb38e7eb2b6ffa4af220bc73c154fc502ec4574af15a69d3d96bc77eb42f07",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "636c28dfe46cdfe27be28c1939ee26fbc73825cd07a80693edbc75a590a5ba82",
    },
    "finetune": {
        "download": "83802b22d6feb0046304fe876eaabc33dc182f1183cc7ad96e3b4ac574c045d6",
        "encode": "f87bfd9943580584d8250be6b9136bf905b24ca83ca74c564a232f1331159e96",
        "train": "92ad46ddf547782983d9df9acd1d1d5f3c9aaa00d6de086bcf0eff1d782175db",
        "config_sha256": "e66cbdeff968e46ae3cabf643a335e6680ea746308c68a42ad760e1cff3fae07",
        "evaluate": "f12d956b8071f2dbb51f8d27333f7ed01872a71c866db50faf3823b0dfe0468e",
        "report": "636c28dfe46cdfe27be28c1939ee26fbc73825cd07a80693edbc75a590a5ba82",
    },
}
LEFT_TO_THE_COMMAND_LINE = {
    "tinystories-sample": {"data.path": "."},
    "files": {"data.path": "."},
    "finetune": {"data.path": "."},
}


def recipe(name: str) -> PipelineConfig:
    return load_recipe(name, LEFT_TO_THE_COMMAND_LINE.get(name))


def made_keys(config: PipelineConfig) -> dict[str, str]:
    inputs: Any = {
        "stories": {"stories": 1},
        "files": {"files": {"a.parquet": "3" * 64}, "splits": {"train": ["a.parquet"]}},
        "hub": None,
    }[config.data.source]
    commit = {"revision": "4" * 40} if config.data.source == "hub" else {}
    files = {"train_00000.parquet": FileEntry(bytes=1, sha256="2" * 64)}
    source = Source(key="1" * 64, dataset="d", revision="r", splits={}, files=files)
    scored = {"weights": "6" * 64, "shards": "7" * 64}
    reported = ["8" * 64, "9" * 64, "a" * 64]
    make = keys.stage_key
    return {
        "download": download_key(config, inputs, **commit),
        "encode": encode_key(config, source, None),
        "train": make("train", TRAIN_VERSION, keys.stage_fields("train", config), "5" * 64),
        "config_sha256": keys.config_sha256(config),
        "evaluate": make(
            "evaluate", EVALUATE_VERSION, keys.stage_fields("evaluate", config), scored
        ),
        "report": make("report", REPORT_VERSION, keys.stage_fields("report", config), reported),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_the_keys_of_the_shipped_recipes(name: str) -> None:
    assert made_keys(recipe(name)) == GOLDEN[name]


def test_every_setting_is_in_a_key_or_in_none_on_purpose() -> None:
    """A setting that is added belongs into `keys.ADDED`, or into `keys.UNHASHED`."""
    listed = [
        *dict.fromkeys(name for names in keys.DOWNLOAD_SETTINGS.values() for name in names),
        *(name for names in keys.SETTINGS.values() for name in names),
        *keys.UNHASHED,
        *keys.ADDED,
        *keys.BY_CONTENT,
    ]
    assert sorted(listed) == sorted(recipe("quickstart").flat())


def test_a_setting_that_is_added_changes_no_key_at_its_old_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = recipe("quickstart")
    before = made_keys(config)
    monkeypatch.setattr(keys, "UNHASHED", ())
    monkeypatch.setattr(keys, "ADDED", {"train.keep_checkpoints": ("train", 2)})
    assert config.train.keep_checkpoints == 2
    assert made_keys(config) == before
    other = load_recipe("quickstart", {"train.keep_checkpoints": 3})
    changed = made_keys(other)
    assert {stage for stage in before if changed[stage] != before[stage]} == {
        "train",
        "config_sha256",
    }


@pytest.mark.parametrize(
    ("setting", "value", "stages"),
    [
        ("data.seed", 2, {"download"}),
        ("data.workers", 3, set()),
        ("data.runner", "dask", set()),
        ("data.runner_address", "tcp://host:8786", set()),
        ("name", "mine", set()),
        ("data.clean.min_chars", 5, {"encode"}),
        ("train.learning_rate", 0.5, {"train", "config_sha256"}),
        ("train.checkpoint_every", 7, set()),
        ("train.keep_checkpoints", 7, set()),
        ("train.evaluate_every", 7, {"select"}),
        ("train.evaluate_documents", 7, {"select"}),
        ("evaluate.documents", 3, {"evaluate"}),
        ("report.seed", 3, {"report"}),
        ("report.prompts", ["Once"], {"report"}),
        ("report.prompts", None, {"report"}),
        ("registry.margin", 0.5, set()),
        ("registry.benchmarks", {"stories": 0.01}, set()),
    ],
)
def test_a_setting_changes_the_key_of_its_stage_alone(
    setting: str, value: object, stages: set[str]
) -> None:
    def all_keys(settings: dict[str, object]) -> dict[str, str]:
        config = load_recipe("quickstart", settings)
        select = keys.stage_key("select", 1, keys.stage_fields("select", config))
        return {**made_keys(config), "select": select}

    before, after = all_keys({}), all_keys({setting: value})
    assert {stage for stage in before if before[stage] != after[stage]} == stages


CADENCE = {
    "train.evaluate_every": 7, "train.evaluate_documents": 8, "train.checkpoint_every": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_what_changes_no_weight_is_in_no_key_of_a_shipped_recipe(name: str) -> None:
    """Whatever value the recipe was shipped with: its key is made with that for good."""
    other = load_recipe(name, {**LEFT_TO_THE_COMMAND_LINE.get(name, {}), **CADENCE})
    assert made_keys(other) == GOLDEN[name]


def test_the_fields_of_a_time_when_the_cadence_was_in_the_key() -> None:
    config = load_recipe("tinystories", CADENCE)
    now, former = keys.train_fields(config)
    assert now == keys.stage_fields("train", config)
    differing = {name for name in now["train"] if now["train"][name] != former["train"][name]}
    assert {f"train.{name}" for name in differing} == keys.FORMER.keys()
    assert {name: former["train"][name.removeprefix("train.")] for name in CADENCE} == CADENCE
    assert now["model"] == former["model"]
    shipped = keys.train_fields(load_recipe("tinystories"))
    assert shipped[0] == shipped[1]
    assert (
        keys.config_hashes(config)[0]
        == keys.config_sha256(config)
        == GOLDEN["tinystories"]["config_sha256"]
    )


def test_a_run_of_a_number_of_processes_has_the_key_of_any_other() -> None:
    """What changes bits is in it; a checkpoint whose hash has the number of then is resumed."""
    config = load_recipe("tinystories")
    key = keys.config_sha256(config)
    two, four = (load_recipe("tinystories", {"train.processes": n}) for n in (2, 4))
    assert keys.config_sha256(two) == keys.config_sha256(four) == key
    others = ({"train.parallel": "ddp"}, {"train.parallel": "fsdp"}, {"train.micro_batches": 4})
    assert len({key, *(keys.config_sha256(load_recipe("tinystories", o)) for o in others)}) == 4
    fields = keys.stage_fields("train", two)
    of_then = sha256_json({**fields, "train": {**fields["train"], "processes": 2}})
    assert of_then != key
    assert of_then in keys.config_hashes(two)
    assert of_then not in keys.config_hashes(four)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_key_of_a_run_has_the_processes_that_its_sums_follow(parallel: str) -> None:
    """A checkpoint's hash has not: any number may resume the run that exists."""

    def run_key(**settings: object) -> str:
        train = {f"train.{name}": value for name, value in settings.items()}
        return run_keys(load_recipe("tinystories", train), "5" * 64)[0]

    alone = run_key(parallel=parallel)
    assert run_key(parallel=parallel, processes=1) == alone
    two = run_key(parallel=parallel, processes=2)
    nodes = run_key(parallel=parallel, **{"launch.nnodes": "2"})
    assert len({alone, two, nodes, run_key(parallel=parallel, processes=3)}) == 4
    assert run_key(processes=2) == run_key(**{"launch.nnodes": "2"}) == run_key()
    configs = [
        load_recipe("tinystories", {"train.parallel": parallel, "train.processes": count})
        for count in (1, 2)
    ]
    assert len({keys.config_sha256(config) for config in configs}) == 1


def test_a_checkpoint_of_any_parallel_is_resumed_and_of_other_micro_batches_is_not() -> None:
    by = {name: load_recipe("tinystories", {"train.parallel": name}) for name in ("ddp", "elastic")}
    assert keys.config_sha256(by["ddp"]) in keys.resumable_hashes(by["elastic"])
    assert keys.config_sha256(by["elastic"]) in keys.resumable_hashes(by["ddp"])
    assert keys.config_sha256(by["ddp"]) not in keys.config_hashes(by["elastic"])
    other = load_recipe("tinystories", {"train.micro_batches": 4})
    assert keys.config_sha256(other) not in keys.resumable_hashes(by["elastic"])
