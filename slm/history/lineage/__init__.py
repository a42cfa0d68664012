"""What a run was made from: the chain from the dataset to the evaluation, each link checked.

The records of the stages hold the hashes. Here they are put in a row, and every link is compared
with the files, the code and the machine that are here now. No server is asked: what the registry
knows of a version is added by `slm.registry.chain`.
"""

from slm.history.lineage.chain import lineage
from slm.history.lineage.current import ARITHMETIC, WRITER, code_status, machine_differences
from slm.history.lineage.link import Lineage, Link, State

__all__ = [
    "ARITHMETIC",
    "WRITER",
    "Lineage",
    "Link",
    "State",
    "code_status",
    "lineage",
    "machine_differences",
]
