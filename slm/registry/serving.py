"""What serves a registered model: MLflow runs this file to load a version ("models from code").

A version carries copies of this file and of the modules that it needs, as a package whose name is
made from their hash. So it needs no `slm` to be installed, keeps its behaviour when `slm` changes,
and can be loaded together with other versions in one process. Its weights are safetensors; nothing
is unpickled.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Generator(PythonModel):  # type: ignore[misc]
    """Prompts in, completions out."""

    def load_context(self, context: Any) -> None:
        from slm.model.saved import load_model

        self.model, self.tokenizer = load_model(Path(context.artifacts["model"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any]) -> list[str]:
        """One completion per prompt. `params` are arguments of `slm.model.sample.generate`.

        The prompts are a frame of one column: with a hint of `list[str]` MLflow drops the `params`.
        """
        from slm.model.sample import generate

        prompts = [str(prompt) for prompt in model_input.iloc[:, 0]]
        samples = generate(self.model, self.tokenizer, prompts, **params)
        return [sample.completion for sample in samples]


set_model(Generator())
