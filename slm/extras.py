"""The libraries that not every installation has, each brought by an extra of the distribution."""

from importlib.util import find_spec

from slm.errors import UserError

DISTRIBUTION = "slm-pipeline"  # that brings the package `slm`
EXTRAS = {  # module → its extra
    "ftfy": "clean", "datasketch": "clean", "harper": "grammar", "s3fs": "s3",
    "gguf": "gguf", "rustbpe": "tokenizer", "lm_eval": "lm-eval",
    "prefect_dask": "dask", "prefect_ray": "ray", "ray": "ray", "optuna": "sweep",
}  # fmt: skip


def is_installed(module: str) -> bool:
    """Whether a module of `EXTRAS` can be imported; it is not loaded."""
    return find_spec(module) is not None


def remedy(module: str) -> str:
    """The command that brings a module of `EXTRAS`."""
    return f"pip install '{DISTRIBUTION}[{EXTRAS[module]}]'"


def require(module: str, feature: str) -> None:
    """Raises UserError, which names the extra, where a feature lacks its module."""
    if not is_installed(module):
        raise UserError(f"{feature} needs {module}, which is not installed: {remedy(module)}")
