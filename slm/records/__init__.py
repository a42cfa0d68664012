"""What passes between stages: small frozen records with paths, counts and hashes. Never tensors.

Source  → download: parquet files, one row a document
Vocabulary → tokenizer: a trained or given one, where the config has any
Shards  → encode: token shards of each split, and the tokenizer; of a mixture → mix
Run     → train: the run folder, finished; a Parent is the model that it started from, if any
Checkpoint, Selection, Evaluation, Benchmarks, Report → one folder each inside the run's
Export  → export: a model in the format of other programs
Version → register: a model version in the MLflow registry
"""

from slm.records.data import (
    EXCLUDED,
    ROWS,
    ShardCount,
    Shards,
    ShardsPart,
    ShardSplit,
    Source,
    SourcePart,
    SourceSplit,
    Vocabulary,
)
from slm.records.plan import Decision, Derivation, JournalEntry, Plan, bpb_by_source, source_bpb
from slm.records.record import FileEntry, Frozen, Made, Record, check_input
from slm.records.report import Report
from slm.records.run import Checkpoint, Imported, Parent, Run, Selection
from slm.records.scores import (
    Benchmarks,
    Evaluation,
    GroupScore,
    SourceDifference,
    TaskDifference,
    TaskScore,
    task_scores,
)
from slm.records.version import LATEST, Export, Version, model_uri, names_version, parse_version

__all__ = [
    "EXCLUDED",
    "LATEST",
    "ROWS",
    "Benchmarks",
    "Checkpoint",
    "Decision",
    "Derivation",
    "Evaluation",
    "Export",
    "FileEntry",
    "Frozen",
    "GroupScore",
    "Imported",
    "JournalEntry",
    "Made",
    "Parent",
    "Plan",
    "Record",
    "Report",
    "Run",
    "Selection",
    "ShardCount",
    "ShardSplit",
    "Shards",
    "ShardsPart",
    "Source",
    "SourceDifference",
    "SourcePart",
    "SourceSplit",
    "TaskDifference",
    "TaskScore",
    "Version",
    "Vocabulary",
    "bpb_by_source",
    "check_input",
    "model_uri",
    "names_version",
    "parse_version",
    "source_bpb",
    "task_scores",
]
