"""Records of a model outside of its run: exported, and as a version in the registry."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from slm.errors import UserError, excerpt
from slm.records.record import Record


class Export(Record):
    """A model in the format of other programs: a Hugging Face folder, or one GGUF file.

    `files` has the files that were written; those of a GGUF export are next to each other.
    """

    to: Literal["hf", "gguf"]
    dtype: str  # f32, f16, bf16, q8_0
    claim: dict[str, str]  # what it is made from: weights_sha256, tokenizer_sha256, run, version …
    parity: dict[str, float] = Field(default_factory=dict)  # what comparing it with ours gave
    warnings: list[str] = Field(default_factory=list, exclude=True)  # readers that cannot load it
    pushed: str | None = Field(default=None, exclude=True)  # its address on the hub


def model_uri(name: str, version: str | None = None, *, alias: str | None = None) -> str:
    """How MLflow, and every command of ours, names a model, or a version by number or alias."""
    if alias:
        return f"models:/{name}@{alias}"
    return f"models:/{name}/{version}" if version else f"models:/{name}"


# A model alone, by an alias or a number; LATEST is its newest version.
_VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))?|([^/@:]+)@([^/@]+)")
LATEST = "latest"


def names_version(reference: str) -> bool:
    """Whether a reference is of a model version, such as `slm@champion`, and not of a run."""
    given = _VERSION.fullmatch(reference) is not None and not Path(reference).exists()
    return given or reference.startswith("models:")


def parse_version(reference: str) -> tuple[str, str | None]:
    """Name, and alias or number, of a reference to a model version; None where it has neither.

    >>> parse_version("models:/slm@champion"), parse_version("slm@champion")
    (("slm", "champion"), ("slm", "champion"))
    >>> parse_version("models:/slm/3"), parse_version("models:/slm")
    (("slm", "3"), ("slm", None))

    Raises UserError where it is none.
    """
    parsed = _VERSION.fullmatch(reference)
    if parsed is None:
        raise UserError(
            f"{excerpt(repr(reference))} is not models:/NAME, models:/NAME@ALIAS, NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    name, alias, number, bare, bare_alias = parsed.groups()
    return name or bare, alias or number or bare_alias


class Version(Record):
    """A model version in the registry, as `registered.json` in the run's folder remembers it."""

    model: str
    version: str
    aliases: list[str]
    run_id: str
    tracking_uri: str

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return model_uri(self.model, self.version)
