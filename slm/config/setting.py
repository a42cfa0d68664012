"""A setting, a section of them, and the kinds of values that several settings have."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from slm.figures import two_lines

MAX_SEED = 2**63 - 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "at most 64 letters, digits, '_', '.' and '-', the first a letter or a digit"
SEED_ERROR = "seed"  # pydantic's type of the error
SEED_RULE = "a seed is a whole number from 0 to 2**63 - 1"

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weights = Literal["float32", "int8"]  # that a model is sampled with
T = TypeVar("T")


def _check_seed(seed: int, info: ValidationInfo) -> int:
    """Refuse what is no seed, except in the config of a run that exists already."""
    if not 0 <= seed <= MAX_SEED and not (info.context or {}).get("stored"):
        raise PydanticCustomError(SEED_ERROR, SEED_RULE)
    return seed


Seed = Annotated[int, AfterValidator(_check_seed)]


def setting(default: T, text: str, **limits: Any) -> T:
    """A setting's default, the text that explains it, and the limits of its value."""
    field: T = Field(default, description=text, **limits)
    return field


class Section(BaseModel):
    """A part of the config: frozen, and without room for a misspelt key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    def __repr__(self) -> str:
        """Two lines of what differs from the defaults; `flat()` has every setting."""
        stated = self.model_dump(mode="json", exclude_defaults=True)
        values = {
            f"{name}.{key}" if isinstance(value, dict) else name: inner
            for name, value in stated.items()
            for key, inner in (value.items() if isinstance(value, dict) else [(name, value)])
        }
        return two_lines(type(self).__name__, values)

    __str__ = __repr__

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key, such as `train.max_steps`, as JSON values."""
        values = self.model_dump(mode="json")
        settings: dict[str, Any] = {}
        for name, value in values.items():
            section = getattr(self, name)
            if isinstance(section, Section):
                settings |= {f"{name}.{key}": v for key, v in section.flat().items()}
            else:
                settings[name] = value
        return settings
