"""Where everything is: a data folder, a run's folder in it, and how each part is read.

    data/
      sources/<name>-<key>/       documents as parquet          DataRoot.source(key)
      tokenizers/<name>-<key>/    vocabularies of one's own     DataRoot.vocabulary(key)
      shards/<name>-<key>/        token shards                  DataRoot.shards(key)
      runs/<name>-<key>/          one training each             DataRoot.run(reference)
        config.json               what was asked for            RunFolder.config
        plan.json                 what was fixed before step 1  RunFolder.plan
        decision.json             the end that the clock chose  RunFolder.decision
        metrics.jsonl             one line per step             RunFolder.journal
        checkpoints/step_000500/  weights, optimizer state      RunFolder.checkpoint(name)
        parent/                   the model it continued from   RunFolder.parent
        record.json               its results, once finished    RunFolder.record
        evaluation/, report/      of the best checkpoint        RunFolder.evaluation, .report
        benchmarks/               its scores on tasks           RunFolder.benchmarks
        selection-<key>/          the best by another cadence   training.selection
      sweeps/<name>-<key>/        trials of one recipe          DataRoot.sweep(reference)

The name is the recipe's, or the setting `name`. The key alone says what a result is: one of the
same key under another name is the same result.

Nothing here opens weights, and nothing is kept in memory: every access reads the files as they
are now.
"""

from slm.run_folder.data_root import DataRoot
from slm.run_folder.journal import parse_entry
from slm.run_folder.names import (
    BENCHMARKS,
    CHECKPOINTS,
    CONFIG,
    DECISION,
    EVALUATION,
    JOURNAL,
    KEY_DIGITS,
    KINDS,
    LOCK,
    LOCK_PATIENCE_SECONDS,
    LOG,
    MIN_DIGITS,
    PARENT,
    PLAN,
    REPORT,
    SELECTION,
    SWEEP,
    checkpoint_folders,
    checkpoint_name,
)
from slm.run_folder.run import RunFolder, Settings, run_of_checkpoint

__all__ = [
    "BENCHMARKS",
    "CHECKPOINTS",
    "CONFIG",
    "DECISION",
    "EVALUATION",
    "JOURNAL",
    "KEY_DIGITS",
    "KINDS",
    "LOCK",
    "LOCK_PATIENCE_SECONDS",
    "LOG",
    "MIN_DIGITS",
    "PARENT",
    "PLAN",
    "REPORT",
    "SELECTION",
    "SWEEP",
    "DataRoot",
    "RunFolder",
    "Settings",
    "checkpoint_folders",
    "checkpoint_name",
    "parse_entry",
    "run_of_checkpoint",
]
