"""A registered model at work: MLflow runs this file to load a version ("models from code").

A version carries copies of this file and of the modules that it needs, as a package whose name is
made from their hash. So it needs no `slm` to be installed, keeps its behaviour when `slm` changes,
and may be loaded beside other versions in one process. Its weights are safetensors; nothing is
unpickled.
"""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Generator(PythonModel):  # type: ignore[misc]
    """Prompts in, completions out."""

    def load_context(self, context: Any) -> None:
        from slm.checkpoint import load_model  # here: MLflow reads this file before it is packed

        self.model, self.tokenizer = load_model(Path(context.artifacts["model"]).parent)

    def predict(self, context, model_input, params):  # type: ignore[no-untyped-def]
        """One completion a prompt. `params` are keyword arguments of `slm.sample.generate`.

        No type hints: with them, MLflow would not take `params`.
        """
        from slm.sample import generate

        prompts = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        samples = generate(self.model, self.tokenizer, [str(p) for p in prompts], **params)
        return [sample.completion for sample in samples]


set_model(Generator())
