"""Settings of a vocabulary other than GPT-2's."""

from typing import Literal, Self

from pydantic import model_validator

from slm.config.setting import PositiveInt, Section, setting


class TokenizerConfig(Section):
    """A vocabulary of one's own in place of GPT-2's: trained on the train split, or given."""

    train: Literal["bpe"] | None = setting(
        None, "bpe: train a byte-level BPE on the documents of train; null: none is trained."
    )
    path: str | None = setting(
        None,
        "A given tokenizer: a tokenizer.json of Hugging Face or a .tiktoken file, or "
        "hf:ORG/NAME[@REVISION] on the hub; in a recipe relative to the folder of its "
        "pipelines.yaml. It has to be byte-level BPE.",
        min_length=1,
    )
    vocab_size: int = setting(
        8192, "Tokens of a trained vocabulary, end-of-text and special_tokens among them.", ge=257
    )
    documents: PositiveInt | None = setting(
        None, "Documents of train, the first ones, that it is trained on; null: all."
    )
    pattern: Literal["gpt2", "llama3", "qwen2", "qwen35"] = setting(
        "gpt2",
        "How text is split into words: as GPT-2, Llama 3 (digits in threes), Qwen 2 (single "
        "digits) or Qwen 3.5 (single digits, combining marks within words, as many scripts need "
        "it). Of a trained vocabulary, or of a .tiktoken file, which has none.",
    )
    special_tokens: tuple[str, ...] = setting(
        (), "Texts that are one token each wherever they are, such as <|user|>."
    )

    @property
    def is_set(self) -> bool:
        """Whether there is a vocabulary to make: else it is GPT-2's."""
        return self.train is not None or self.path is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.train and self.path:
            raise ValueError(
                "data.tokenizer.train and data.tokenizer.path exclude each other: train a "
                "vocabulary, or give one"
            )
        stated = sorted(self.model_fields_set - {"train", "path"})
        if not self.is_set and stated and self != TokenizerConfig():
            raise ValueError(
                f"data.tokenizer.{stated[0]} is set, but there is no vocabulary to make: set "
                "data.tokenizer.train=bpe, or data.tokenizer.path"
            )
        return self

    @model_validator(mode="after")
    def _special_tokens_are_distinct(self) -> Self:
        special = ("<|endoftext|>", *self.special_tokens)
        for i, text in enumerate(special):
            others = [other for j, other in enumerate(special) if j != i and text in other]
            if not text or others:
                raise ValueError(
                    f"data.tokenizer.special_tokens: {text!r} is "
                    + (f"part of {others[0]!r}: each has to be a text of its own" if text
                       else "empty")
                )  # fmt: skip
        if self.train and self.vocab_size < 256 + len(special):
            raise ValueError(
                f"data.tokenizer.vocab_size={self.vocab_size}: the 256 bytes, end-of-text and the "
                f"special tokens alone are {256 + len(special)}"
            )
        return self
