"""Which evaluation a config asks for: its key, folder and file, without PyTorch."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slm import keys
from slm.config import PipelineConfig
from slm.records import Evaluation, Run
from slm.run_folder import EVALUATION, RunFolder

EVALUATE_VERSION = 3
XZ = "xz -9"  # the baseline that is given nothing but the held-out text
DETAILS = "evaluation.json"  # the score of every document, and the details of the record


def evaluate_key(
    config: PipelineConfig, weights_sha256: str, shards_key: str, version: int | None = None
) -> str:
    """The key of the evaluation of these weights on the val split of these shards.

    `version`: of the stage; None: today's.
    """
    inputs = {"weights": weights_sha256, "shards": shards_key}
    fields = keys.stage_fields("evaluate", config)
    return keys.stage_key("evaluate", version or EVALUATE_VERSION, fields, inputs)


def evaluation_folder(config: PipelineConfig, run: Run, key: str) -> Path:
    """Where the evaluation of a key belongs: the plain name is for the run's own settings."""
    home = RunFolder.of(run)
    recorded = home.record or run
    which = config.evaluate.checkpoint
    is_runs_own = recorded.checkpoint(which).name == run.checkpoint(which).name
    own = config.evaluate == home.config.evaluate and is_runs_own
    return home.result_folder(EVALUATION, None if own else key)


def text_fingerprint(evaluation: Evaluation) -> float | None:
    """What depends on the held-out text alone: its bits per byte by xz.

    Two texts whose documents have the same lengths differ in it. None where it was not measured.
    """
    baselines = (evaluation.details.get("beside") or {}).get("references", [])
    return next((float(row["bpb"]) for row in baselines if row["name"] == XZ), None)


def by_held_out_text(
    texts: Sequence[tuple[npt.NDArray[np.int64], float | None]],
) -> list[list[int]]:
    """Which evaluations are of the same text, the most first: as many documents of the same bytes,
    and the same fingerprint. One that has no fingerprint is taken by the bytes alone.

    Args:
        texts: of each evaluation the UTF-8 bytes of every document, and `text_fingerprint`.
    """
    by_sizes: dict[bytes, list[int]] = defaultdict(list)
    for i, (sizes, _) in enumerate(texts):
        by_sizes[sizes.tobytes()].append(i)
    groups: list[list[int]] = []
    for same_sizes in by_sizes.values():
        known = [texts[i][1] for i in same_sizes if texts[i][1] is not None]
        by_text: dict[float | None, list[int]] = defaultdict(list)
        for i in same_sizes:
            fingerprint = texts[i][1]
            by_text[known[0] if fingerprint is None and known else fingerprint].append(i)
        groups += by_text.values()
    return sorted(groups, key=lambda members: (-len(members), -len(texts[members[0]][0])))
