"""The one config object with its defaults, one file a section, and the folders of a project.

Recipes, which state only what differs from the defaults, are read by `slm.recipes`.
"""

from slm.config.data import GPT2_VOCAB_SIZE, SOURCE_NAME_RULE, DataConfig, Phase
from slm.config.documents import CleanConfig, SourceConfig, TextConfig
from slm.config.evaluate import BenchmarkConfig, EvaluateConfig
from slm.config.folders import PIPELINES, checkout, data_root, project_root
from slm.config.launch import ENDPOINT, LaunchConfig, node_range
from slm.config.model import ModelConfig
from slm.config.pipeline import DEFAULT_RECIPE, PipelineConfig, data_name
from slm.config.registry import RegistryConfig
from slm.config.report import ReportConfig
from slm.config.retrain import RetrainConfig
from slm.config.setting import (
    MAX_SEED,
    NAME,
    NAME_RULE,
    SEED_ERROR,
    SEED_RULE,
    PositiveInt,
    Section,
    Seed,
    Weights,
)
from slm.config.tokenizer import TokenizerConfig
from slm.config.train import LIMITS, TrainConfig

__all__ = [
    "DEFAULT_RECIPE",
    "ENDPOINT",
    "GPT2_VOCAB_SIZE",
    "LIMITS",
    "MAX_SEED",
    "NAME",
    "NAME_RULE",
    "PIPELINES",
    "SEED_ERROR",
    "SEED_RULE",
    "SOURCE_NAME_RULE",
    "BenchmarkConfig",
    "CleanConfig",
    "DataConfig",
    "EvaluateConfig",
    "LaunchConfig",
    "ModelConfig",
    "Phase",
    "PipelineConfig",
    "PositiveInt",
    "RegistryConfig",
    "ReportConfig",
    "RetrainConfig",
    "Section",
    "Seed",
    "SourceConfig",
    "TextConfig",
    "TokenizerConfig",
    "TrainConfig",
    "Weights",
    "checkout",
    "data_name",
    "data_root",
    "node_range",
    "project_root",
]
