"""`slm.lineage`: what a run or a model version was made of."""

from pathlib import Path
from typing import TYPE_CHECKING

import slm.history.lineage
from slm.history.lineage import Lineage
from slm.records import names_version
from slm.registry.opening import open_run, reference_to
from slm.run_folder import RunFolder

if TYPE_CHECKING:
    from slm.registry.opening import Given


def lineage(model: "Given", *, root: Path | None = None) -> Lineage:
    """What a model was made of, from the dataset on, each link checked against what is here now.

    >>> for link in slm.lineage("slm@champion").links:
    ...     print(link.name, link.value, link.digest, link.state)

    Args:
        model: a run, as of `slm.open_run`, or a model version.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where there is no such run or version.
    """
    return chain_and_run(model, root)[0]


def chain_and_run(model: "Given", root: Path | None = None) -> tuple[Lineage, RunFolder]:
    """The checked chain of a version or a run, and the run's folder, which may be gone."""
    reference = reference_to(model)
    if names_version(reference):
        from slm.registry.chain import version_lineage
        from slm.registry.versions import open_version

        version = open_version(reference, root)
        return version_lineage(version.uri, root), version.run(root)
    run = open_run(reference, root)
    return slm.history.lineage.lineage(run), run
