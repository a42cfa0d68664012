"""A checkpoint, packed and uploaded as an MLflow model of its own: weights, vocabulary and code.

The code is ours, copied under a package name made from its hash, so the model needs no `slm`, and
versions with different code can be loaded in one process. There is no pickle in it.
"""

import ast
import re
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.errors import CorruptionError
from slm.model.saved import MODEL_FILES
from slm.records import Checkpoint
from slm.report.prompts import example_prompt

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

PARAMS: dict[str, Any] = {  # what a served model takes, and the defaults of `slm sample`
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
    "max_new_tokens": 200,
    "seed": 1,
}
EXAMPLE = {"temperature": 0.8, "max_new_tokens": 40, "seed": 1}
HOME = Path(__file__).parents[1]  # the package `slm`
SERVING = Path(__file__).with_name("serving.py")
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "tiktoken", "torch")


def logged_model(
    client: "MlflowClient", run_id: str, checkpoint: Checkpoint, root: Path
) -> "LoggedModel":
    """The uploaded model of a checkpoint. An upload that was interrupted is repeated."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    tags = {"slm.weights_sha256": checkpoint.weights_sha256, "slm.step": str(checkpoint.step)}
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    same = (m for m in models if m.name == "model" and tags.items() <= m.tags.items())
    model = next(same, None) or client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run_id,
        tags=tags,
        model_type="pyfunc",
    )
    if model.status == "READY":
        return model
    if wrong := storage.mismatches(checkpoint.path, checkpoint.files):
        raise CorruptionError("; ".join(wrong))
    with TemporaryDirectory(dir=root / "mlflow") as temporary:
        packed = Path(temporary) / "model"
        pack(checkpoint.path, packed, model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, str(packed))
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
    return client.finalize_logged_model(model.model_id, "READY")


def pack(checkpoint: Path, target: Path, *, model_id: str, run_id: str) -> None:
    """Write an MLflow model that needs nothing but its requirements: weights, vocabulary, code."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    names = ("model", "config", "tokenizer")
    with TemporaryDirectory(dir=target.parent) as temporary:
        script, package = ship_code(Path(temporary))
        save_model(
            path=str(target),
            python_model=str(script),
            code_paths=[str(package)],
            artifacts={n: str(checkpoint / f) for n, f in zip(names, MODEL_FILES, strict=True)},
            input_example=([example_prompt(checkpoint)], EXAMPLE),
            signature=model_signature(),
            pip_requirements=[f"{n}=={installed(n).partition('+')[0]}" for n in REQUIREMENTS],
            mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
        )


def model_signature() -> "ModelSignature":
    """The params of a served model. It has no schema of inputs: `serving.py` checks them itself.

    With one, MLflow would make the text "None" of a null and drop columns before the model sees it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    types = {int: "long", float: "double", list: "string"}
    params = [
        ParamSpec(name, types[type(value)], value, shape=(-1,) if value == [] else None)
        for name, value in PARAMS.items()
    ]
    return ModelSignature(outputs=Schema([ColSpec("string")]), params=ParamSchema(params))


def ship_code(folder: Path) -> tuple[Path, Path]:
    """Write `serving.py` and, as a package of another name, the modules that it needs.

    The package is named by the hash of what is in it: versions with different code can be loaded in
    one process. Returns the paths of the script and of the package.
    """
    sources = needed_modules(SERVING)
    digest = storage.sha256_json(sources)
    package = folder / f"slm_{digest[:12]}"
    for name, source in sources.items():
        renamed = re.sub(
            r"^(\s*)(from|import) slm\b", rf"\1\2 {package.name}", source, flags=re.MULTILINE
        )
        path = folder / name if name == SERVING.name else package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed, "utf-8")
    return folder / SERVING.name, package


def needed_modules(script: Path) -> dict[str, str]:
    """The source of a script and of all modules of ours that it imports, by path in the package.

    The package's own `__init__.py` is shipped empty: the real one offers all of slm, by names that
    it imports when they are used.
    """
    sources = {script.name: script.read_text("utf-8"), "__init__.py": ""}
    pending = _imports(sources[script.name])
    while pending:
        module = pending.pop()
        path = HOME.joinpath(*module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(HOME).as_posix()
        if name in sources or not path.exists():  # an imported name may be no module
            continue
        sources[name] = path.read_text("utf-8")
        pending += [*_imports(sources[name]), module.rpartition(".")[0]]
    return dict(sorted(sources.items()))


def _imports(source: str) -> list[str]:
    """Every name that a module imports from `slm`; some of them are modules.

    `from slm.model import gpt` gives slm.model and slm.model.gpt.
    """
    return [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "slm"
        for name in (str(node.module), *(f"{node.module}.{n.name}" for n in node.names))
    ]
