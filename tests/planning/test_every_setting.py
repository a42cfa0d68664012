"""For every edit of one setting of every shipped recipe, the plan names that setting."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from finished import finish
from pydantic import ValidationError

from slm import keys, storage
from slm.config import GPT2_VOCAB_SIZE, LIMITS, PipelineConfig, Section, TextConfig
from slm.model.saved import MODEL_FILES
from slm.planning.plan import PipelinePlan, plan_config
from slm.planning.versions import with_settings
from slm.recipes import load_recipe, read_pipelines
from slm.records import Record

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
RECIPES = list(read_pipelines(PIPELINES)["recipes"])

# In no list of a key, and still read by the last stage: where a version goes.
MIXTURE = ("data.sources", "data.phases")
PLACES = {"registry.model", "registry.tracking_uri"}
OF_FILES = ("files", "tinystories-sample", "finetune")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of documents."""
    paths = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for path in paths:
        path.write_text(f'{{"text": "{path.stem}"}}\n')
    return paths


def leaves(section: type[Section] = PipelineConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key, with its annotation."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def choices(annotation: Any) -> Iterator[Any]:
    """The values that an annotation lists."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from choices(part)


def candidates(annotation: Any, value: Any) -> Iterator[Any]:
    """Values that differ from the one that a setting has, likely ones first."""
    yield from (choice for choice in choices(annotation) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value * 2, value + 1, value // 2, value / 2, value * 0.9, value + 0.01, 3, 0.5)
    elif isinstance(value, list):
        yield from ([*value, *value], value[:1], ["stories"], ["blimp"])
    elif isinstance(value, dict):
        yield {"stories": 0.5}
    else:
        yield from (2, 0.5, "other", ["other"], "http://127.0.0.1:1/v1", 1, 6, 8, 12, True)


def edits(
    config: PipelineConfig, key: str, annotation: Any, other_file: Path
) -> Iterator[PipelineConfig]:
    """The config with another value of a setting, and with what that cannot be without.

    Of the sources, with each other one.
    """
    flat, every = config.flat(), key == "data.source"
    paths = ("data.path", "data.tokenizer.path")
    own = [str(other_file)] if key in paths else candidates(annotation, flat[key])
    if key == "train.init_from":
        own = [str(save_model(other_file.parent / "model", config))]
    if key in ("data.clean.map", "data.clean.filter"):
        (file := other_file.with_name("own.py")).write_text("def keep(text): return True")
        own = [f"{file}:keep"]
    if key == "data.sources":
        own = [{"tales": {"source": "stories", "documents": 7}}]
    if key == "data.phases":
        own = [[{"until": 1, "weights": {"tales": 2}}]]
    needed: dict[str, Any] = {}
    if key == "data.columns" and flat["data.source"] == "stories":  # which have none
        needed = {"data.source": "files", "data.path": str(other_file)}
    count = 0
    for value in own:
        more = {**companions(key, value, other_file), **needed}
        try:
            other = with_settings(config, {**more, key: value})
        except ValidationError:
            continue
        if other.flat()[key] != flat[key]:
            count += 1
            yield other
            if not every:
                return
    assert count == (2 if every else 1), f"no other value of {key} is known: see `candidates`"


def save_model(folder: Path, config: PipelineConfig) -> Path:
    """A model of the config's shape, without content, that a training can start from."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "staging").mkdir(parents=True)
    shape = {"model": config.model.model_dump(), "vocab_size": config.data.vocab_size}
    for name in MODEL_FILES:
        (folder / "staging" / name).write_text(json.dumps(shape))
    storage.commit(folder / "staging", folder / "model", Record(key="1" * 64))
    return folder / "model"


def companions(key: str, value: Any, file: Path) -> dict[str, Any]:
    """What a value needs next to it: a source its documents, a grader its name."""
    if key == "report.judge_url":
        return {"report.judge_model": "a"}
    if key in MIXTURE:  # `data` then describes no text of its own
        texts = TextConfig().model_dump(mode="json")
        sources = {"tales": {"source": "stories", "documents": 7}}
        whole = {} if key == "data.sources" else {"data.sources": sources}
        return {f"data.{name}": value for name, value in texts.items()} | whole
    if key == "data.source":
        return {"data.documents": 7} if value == "stories" else {"data.path": str(file)}
    if key.startswith("data.tokenizer."):  # which excludes another vocabulary
        train = {} if key.endswith((".train", ".path")) else {"data.tokenizer.train": "bpe"}
        return {"data.vocab_size": GPT2_VOCAB_SIZE, "train.init_from": None, **train}
    if key.removeprefix("train.") in LIMITS:  # a limit replaces the recipe's own
        return {f"train.{limit}": None for limit in LIMITS}
    return {}


def is_read(key: str, config: PipelineConfig) -> bool:
    """Whether any key has a setting, by the lists of slm/keys.py."""
    if key in keys.UNHASHED or (key == "benchmark.baselines" and not config.benchmark.tasks):
        return False
    if key in keys.SETTINGS["benchmark"]:
        return bool(config.benchmark.tasks)
    of_download = {name for names in keys.DOWNLOAD_SETTINGS.values() for name in names}
    if key in of_download:
        return key in keys.DOWNLOAD_SETTINGS[config.data.source] or (
            key == "data.path" and config.data.source == "files"
        )
    return True


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_names_the_setting_that_was_edited(
    recipe: str, data_root: Path, files: tuple[Path, Path]
) -> None:
    given: dict[str, Any] = {"data.path": str(files[0])} if recipe in OF_FILES else {}
    if recipe == "finetune":  # its model is in no registry here
        given["train.init_from"] = None
    config = load_recipe(recipe, given, path=PIPELINES)
    finish(data_root, config)
    same = plan_config(config)
    assert [stage.action for stage in same.stages] == ["reused"] * (
        7 if config.benchmark.tasks else 6
    )
    assert not same.uncounted
    wrong = {}
    count = 0
    for key, annotation in leaves():
        for other in edits(config, key, annotation, files[1]):
            count += 1
            before, after = config.flat(), other.flat()
            pairs = {name: (old, after[name]) for name, old in before.items()}
            differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
            problem = explain_wrong(plan_config(other), key, differing, is_read(key, other))
            if problem:
                wrong[key] = problem
    assert count == len(config.flat()) + 1  # every setting, and each other source
    assert not wrong


def explain_wrong(
    plan: PipelinePlan, key: str, differing: dict[str, Any], read: bool
) -> str | None:
    """What is wrong with the explanation of an edit; None where it is right."""
    named = [(stage.stage, stage.changed) for stage in plan.stages if stage.changed]
    goes_elsewhere = plan.first is not None and plan.first.stage == "register"
    if key in MIXTURE:  # which has other stages: tests/test_mixture_results.py edits one
        expected = lambda: (
            plan.first is not None
            and plan.first.title == "download tales"
            and plan["mix"].action == "to run"
        )
    elif key in PLACES:
        expected: Callable[[], bool] = lambda: (
            plan.first is not None
            and plan.first.stage == "register"
            and [set(changed) for _, changed in named] == [{key}]
        )
    elif key == "recipe" or (key == "name" and goes_elsewhere):
        # A training has it in its key where `keys.FORMER_OF_RECIPES` does, a version always.
        expected = lambda: (
            plan.first is not None
            and plan.first.stage in ("train", "register")
            and all(changed == differing for _, changed in named)
            and named[0][0] == plan.first.stage
        )
    elif key.startswith("data.tokenizer."):  # a stage that the other config has not
        expected = lambda: (
            plan.first is not None
            and plan.first.stage == "tokenizer"
            and plan["encode"].changed == differing
            and not plan.uncounted
        )
    elif not read:
        expected = lambda: plan.first is None and not named and plan.uncounted == differing
    elif key in keys.SETTINGS["select"]:
        expected = lambda: named[:1] == [("train", differing)] and not plan.uncounted
    else:
        expected = lambda: (
            plan.first is not None
            and plan.first.changed == differing
            and named[0][0] == plan.first.stage
            and not plan.uncounted
        )
    if expected():
        return None
    return f"{differing}: {[(s.stage, s.action) for s in plan.stages]}, {named}, {plan.uncounted}"
