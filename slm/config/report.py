"""Settings of the report: the samples that it shows, and what grades them."""

import re
from typing import Self

from pydantic import model_validator

from slm.config.setting import PositiveFloat, PositiveInt, Section, Seed, setting


class ReportConfig(Section):
    """The samples that the report shows: every prompt at every temperature and top_k."""

    prompts: tuple[str, ...] | None = setting(
        None, "Beginnings of the samples; null: the first words of held-out documents."
    )
    temperatures: tuple[PositiveFloat, ...] = setting((0.5, 0.8, 1.0), "Sampling temperatures.")
    top_ks: tuple[PositiveInt, ...] = setting((20, 50), "Values of top-k.")
    max_new_tokens: PositiveInt = setting(
        250, "Maximum number of new tokens per sample; most short stories are shorter."
    )
    seed: Seed = setting(1, "Random seed of the samples.")

    license: str | None = setting(
        None, "License in the model card; null: mit for the generated stories."
    )
    language: str = setting("en", "Language of the documents, for the model card.")

    judge_url: str | None = setting(
        None,
        "Address of an OpenAI-compatible API whose model grades the samples; null: none. Its key "
        "is read from SLM_JUDGE_API_KEY.",
    )
    judge_model: str = setting("", "Name of the grading model.")
    judge_seconds: PositiveFloat = setting(60.0, "Seconds to wait for one answer.")

    @model_validator(mode="after")
    def _judge_is_named(self) -> Self:
        if self.judge_url is None:
            return self
        if not re.match(r"https?://[^/\s@?#]+(/[^\s@?#]*)?$", self.judge_url):
            raise ValueError(
                "report.judge_url is no plain http address such as http://127.0.0.1:8000/v1: a key "
                "belongs into the variable SLM_JUDGE_API_KEY, which is kept nowhere"
            )
        if not self.judge_model:
            raise ValueError("report.judge_url is set, but not report.judge_model: name the model")
        return self
