"""The public surface: a short list of names, imported when they are used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import copy_run

import slm
from slm.progress import automatic
from slm.records import Evaluation

NAMES = [
    "load_recipe", "download", "initial_model", "make_tokenizer", "encode", "encode_part", "mix",
    "train", "resume", "watch", "stop", "finish", "train_longer", "evaluate", "benchmark",
    "write_report", "report_index", "register", "promote", "run", "sweep", "plan_sweep",
    "choose_winner", "promote_winner", "ladder", "init", "plan", "compare", "batch_rows",
    "find_text", "data_card", "push", "pull", "open_run", "lineage", "load_model", "sample",
    "export", "verify_published", "serve", "doctor", "launch_slurm", "launch_kubernetes",
    "PipelineConfig", "DataRoot", "RunFolder", "SlmError", "UserError",
]  # fmt: skip


def test_the_names_are_these() -> None:
    assert slm.__all__ == NAMES
    assert set(NAMES) <= set(dir(slm))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_explains_itself(name: str) -> None:
    value = getattr(slm, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_no_function_has_the_name_of_a_package() -> None:
    packages = {path.parent.name for path in Path(slm.__file__).parent.glob("*/__init__.py")}
    assert not packages & set(NAMES)


def test_the_stub_has_the_same_names_from_the_same_modules() -> None:
    """`__init__.pyi` gives editors and type checkers what `__getattr__` finds."""
    tree = ast.parse(Path(slm.__file__).with_suffix(".pyi").read_text())
    stub = {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert stub == {name: getattr(slm, name).__module__ for name in NAMES}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = slm.trian  # type: ignore[attr-defined]


def test_the_help_shows_how_to_train_and_sample() -> None:
    """In about ten lines, and they are those of docs/python.md."""
    done = subprocess.run(
        [sys.executable, "-c", "import slm; help(slm)"], capture_output=True, text=True, check=True
    )
    for call in ("slm.train(config, shards)", 'slm.load_model("models:/slm@champion")'):
        assert call in done.stdout


def test_a_stage_that_gets_another_record_than_it_needs_says_where_that_comes_from(
    tmp_path: Path,
) -> None:
    run = slm.open_run(copy_run(tmp_path))
    config, record, source, shards = run.config, run.record, run.source, run.shards
    assert record is not None
    calls = {
        "Shards instead of Source": lambda: slm.encode(config, shards, root=tmp_path),
        "Source instead of Shards": lambda: slm.train(config, source, root=tmp_path),
        "RunFolder instead of Run": lambda: slm.evaluate(config, run, shards),
        "Run instead of Evaluation": lambda: slm.write_report(config, record, record, shards),
        "NoneType instead of Run": lambda: slm.register(config, None, run.evaluation, None, shards),
    }
    before = sorted(tmp_path.rglob("*"))
    for message, call in calls.items():
        with pytest.raises(slm.UserError, match=f"^{message}: slm"):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_one_import_loads_and_samples(data_root: Path) -> None:
    run = copy_run(data_root)
    settings: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 4}
    (expected,) = slm.sample(slm.load_model(run), "Once", **settings)
    for model in (run.name, run, slm.open_run(run), slm.open_run(run).record):
        assert model
        (text,) = slm.sample(model, "Once", **settings)
        assert text.completion == expected.completion


def test_the_repr_of_what_a_notebook_shows_has_two_lines(project: Path, data_root: Path) -> None:
    run = slm.open_run(copy_run(data_root))
    data = run.config.data.model_copy(update={"path": "x" * 999})
    evaluated = Evaluation(
        key="k", run=run.name, checkpoint="step_000004", weights_sha256="5" * 64, documents=3,
        tokens=9, bytes=40, val_loss=5.25, val_bpb=2.5, details={"scores": list(range(1000))},
    )  # fmt: skip
    shown = (
        run.config, run.config.train, run.config.report, run.record, run.plan, run.best,
        run.shards, run.source, evaluated, slm.load_model(run), slm.load_recipe("tiny"),
        run.config.model_copy(update={"data": data}),
    )  # fmt: skip
    for each in shown:
        assert type(each).__name__ in repr(each)
        assert str(each) == repr(each)
        assert len(repr(each).splitlines()) <= 2, each
        assert max(map(len, repr(each).splitlines())) <= 100, each
    assert "val_bpb=2.5" in repr(evaluated)
    assert run.name in repr(run.record)
    assert repr(run.config.evaluate) == "EvaluateConfig()"


@pytest.mark.parametrize(
    "name", ["download", "encode", "train", "evaluate", "write_report", "promote"]
)
def test_what_takes_long_shows_its_progress_in_a_notebook_by_default(name: str) -> None:
    default = inspect.signature(getattr(slm, name)).parameters["progress"].default
    assert default is automatic
