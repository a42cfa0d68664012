"""The head of a Hugging Face model card, as the hub reads it."""

from typing import Any

import yaml

from slm.config import PipelineConfig
from slm.records import Evaluation, Source


def front_matter(config: PipelineConfig, evaluation: Evaluation, source: Source | None) -> str:
    """The YAML between the two lines of dashes (huggingface.co/docs/hub/model-cards)."""
    generated = config.data.source == "stories"
    dataset = source.dataset if source else config.data.path or config.data.source
    metrics = [
        {"type": "bits_per_byte", "name": "bits a UTF-8 byte", "value": evaluation.val_bpb},
        {"type": "loss", "name": "nats a token", "value": evaluation.val_loss},
    ]
    result: dict[str, Any] = {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"type": dataset, "name": f"{dataset}, held-out documents", "split": "val"},
        "metrics": metrics,
    }
    fields: dict[str, Any] = {
        "language": config.report.language,
        "license": config.report.license or ("mit" if generated else "unknown"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["slm", "small-language-model", config.model.architecture],
        "metrics": ["bits_per_byte", "loss"],
        "model-index": [{"name": evaluation.run, "results": [result]}],
    }
    if config.data.source == "hub":
        fields["datasets"] = [dataset]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
