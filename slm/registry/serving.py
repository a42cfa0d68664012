"""What serves a registered model: MLflow runs this file to load a version ("models from code").

A version carries copies of this file and of the modules that it needs, as a package whose name is
made from their hash. So it needs no `slm` to be installed, keeps its behaviour when `slm` changes,
and can be loaded together with other versions in one process. Its weights are safetensors; nothing
is unpickled.

What is no prompt or no param is refused: over HTTP by status 400 and one sentence.
"""

import ast
import logging
import re
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

DROPPED = re.compile(  # MLflow's warning about params that are not in a model's signature
    r"Unrecognized params (\[.*\]) are ignored for inference\. Supported params are: (\{.*?\})\.",
    re.DOTALL,
)
SEND = 'send {"inputs": [TEXT, …], "params": {…}}'


class BadRequest(MlflowException):  # type: ignore[misc]
    """A request that the model refuses; its message stays the sentence that it was raised with.

    MLflow's scoring server would put the whole input in front.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or "message" not in vars(self):
            super().__setattr__(name, value)


class Generator(PythonModel):  # type: ignore[misc]
    """Prompts in, completions out."""

    def load_context(self, context: Any) -> None:
        from slm.model.sample import generate
        from slm.model.saved import load_model

        self.model, self.tokenizer = load_model(Path(context.artifacts["model"]).parent)
        settings = signature(generate).parameters.values()
        keywords = {p.name for p in settings if p.kind is Parameter.KEYWORD_ONLY}
        refuse_dropped_params(keywords - {"on_text"})

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any]) -> list[str]:
        """One completion per prompt. `params` are arguments of `slm.model.sample.generate`.

        The input may be all that `prompts` takes; its hint is one that MLflow does not check. With
        a hint of `list[str]` it drops the `params`, and with a schema it makes the text "None" of a
        null.
        """
        from slm.errors import UserError
        from slm.model.sample import generate

        texts = prompts(model_input)
        try:
            samples = generate(self.model, self.tokenizer, texts, **params)
        except UserError as error:
            raise BadRequest.invalid_parameter_value(str(error)) from error
        return [sample.completion for sample in samples]


# ---- prompts ----------------------------------------------------------------------------------


def prompts(given: Any) -> list[str]:
    """The texts of an input: a text, several, or a table of one column.

    Raises BadRequest for all else.

    >>> prompts({"prompt": ["One day", "Tom"]})
    ['One day', 'Tom']
    """
    if isinstance(given, list) and any(isinstance(row, dict) for row in given):
        given = pd.DataFrame(given)  # the cells of which are arrays of no dimension
    if isinstance(given, pd.DataFrame | dict):
        _check_columns([str(name) for name in given])
        given = given.iloc[:, 0] if isinstance(given, pd.DataFrame) else next(iter(given.values()))
    values = np.atleast_1d(np.asarray(given, dtype=object))  # (N,) or (N, columns)
    if values.ndim == 2:
        _check_columns([str(i) for i in range(values.shape[1])])
        values = values[:, 0]
    return [_text(value, number) for number, value in enumerate(values, 1)]


def _text(value: Any, number: int) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if value is None or (isinstance(value, float) and np.isnan(value)):
        raise BadRequest.invalid_parameter_value(f"prompt {number} is null: {SEND}")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadRequest.invalid_parameter_value(
            f"prompt {number} is no text, but of the type {kind}: {SEND}"
        )
    return str(value)


def _check_columns(names: list[str]) -> None:
    if "messages" in names:
        raise BadRequest.invalid_parameter_value(
            f"messages are for a chat model, and this model continues texts: {SEND}"
        )
    if len(names) != 1:
        shown = ", ".join(names) or "none"
        raise BadRequest.invalid_parameter_value(
            f"the input must be one column, the prompts, not {len(names)} ({shown}): {SEND}"
        )


# ---- params -----------------------------------------------------------------------------------


def refuse_dropped_params(names: set[str]) -> None:
    """Make an error of MLflow's warning that it drops params, for models with the params `names`.

    MLflow drops what the signature does not name before the model is called, and reports it in its
    log alone. So a filter of that log is what sees the names. Other models are left alone.
    """
    from slm.errors import unknown

    def refuse(record: logging.LogRecord) -> bool:
        match = DROPPED.match(record.getMessage())
        if match and ast.literal_eval(match[2]) == names:
            first = min(ast.literal_eval(match[1]))
            raise BadRequest.invalid_parameter_value(str(unknown("param", first, names)))
        return record.levelno >= logging.getLogger("mlflow").getEffectiveLevel()

    logger = logging.getLogger("mlflow.models.utils")
    logger.setLevel(min(logging.WARNING, logger.getEffectiveLevel()))
    logger.addFilter(refuse)


set_model(Generator())
