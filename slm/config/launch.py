"""Settings of several machines that train one run together."""

import re
from typing import Any

from pydantic import field_validator

from slm.config.setting import Section, setting

ENDPOINT = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*)(:[0-9]{1,5})?"  # HOST:PORT


class LaunchConfig(Section):
    """Several machines (nodes) that train one run together, each by the same command.

    No result depends on it where `train.parallel` is elastic.
    """

    nnodes: str | None = setting(
        None,
        "Machines that train one run together: a number, or MIN:MAX, between which they may come "
        "and go; null: the variable PET_NNODES, else this machine alone.",
    )
    rdzv_endpoint: str | None = setting(
        None,
        "Where they meet: HOST:PORT of one of them, and after a comma that of others, should it be "
        "lost; null: PET_RDZV_ENDPOINT, else MASTER_ADDR and MASTER_PORT.",
        pattern=f"^{ENDPOINT}(,{ENDPOINT})*$",
    )
    max_restarts: int = setting(
        10,
        "How often training restarts from its last checkpoint after a process or a machine was "
        "lost.",
        ge=0,
    )
    lost_seconds: float = setting(
        60.0, "Seconds without a sign of life after which a machine is taken as lost.", ge=5
    )

    @field_validator("nnodes", mode="before")
    @classmethod
    def _node_counts(cls, value: Any) -> Any:
        if value is None:
            return None
        if node_range(str(value)) is None:
            raise ValueError(
                f"train.launch.nnodes={value}: give a number of machines, such as 2, or the fewest "
                "and the most, such as 1:4"
            )
        return str(value)


def node_range(text: str) -> tuple[int, int] | None:
    """The fewest and the most machines of `2` or `1:4`; None where it is neither."""
    numbers = re.fullmatch(r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?", text)
    if numbers is None:
        return None
    fewest, most = int(numbers[1]), int(numbers[2] or numbers[1])
    return (fewest, most) if fewest <= most else None
