"""`slm.sample`: texts of a model by its name, in one call."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.config import Weights
from slm.records import Run
from slm.registry.opening import load_model
from slm.run_folder import RunFolder

if TYPE_CHECKING:
    from slm.model.sample import Sample
    from slm.model.saved import LoadedModel


def sample(
    model: "LoadedModel | str | Path | RunFolder | Run",
    prompts: str | Iterable[str],
    *,
    weights: Weights = "float32",
    **settings: Any,
) -> "list[Sample]":
    """Texts that a model writes: one per prompt, in their order.

    >>> [text] = slm.sample("models:/slm@champion", "Once upon a time", temperature=0.8, seed=1)
    >>> print(text.prompt + text.completion)

    Args:
        model: what `slm.load_model` takes, which is loaded for this call; or what it returns, which
            saves loading it again at the next.
        prompts: one text, or several.
        weights: "int8" rounds them to eight bits and reads these: faster for one prompt on a CPU.
        settings: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `max_new_tokens`,
            `stop`, `seed`: see `slm.model.sample.generate`.

    Raises UserError where there is no such model, for settings that do not exist or are out of
    range, and for a prompt that does not fit the context.
    """
    import slm.model.sample

    loaded = load_model(model) if isinstance(model, str | Path | RunFolder | Run) else model
    return slm.model.sample.sample(loaded, prompts, weights=weights, **settings)
