"""Settings of the model: its shape."""

from typing import Literal, Self

from pydantic import model_validator

from slm.config.setting import PositiveFloat, PositiveInt, Section, setting


class ModelConfig(Section):
    """The shape of the GPT. The vocabulary's size comes from the tokenizer of the shards."""

    architecture: Literal["gpt2", "qwen3"] = setting(
        "gpt2",
        "gpt2: learned positions, LayerNorm, GELU. qwen3: rotary positions, RMSNorm, SwiGLU, "
        "normalised queries and keys.",
    )
    n_layer: PositiveInt = setting(6, "Transformer blocks.")
    n_head: PositiveInt = setting(6, "Attention heads per block.")
    n_kv_head: PositiveInt | None = setting(
        None, "Key and value heads (grouped-query attention; qwen3 only); null: n_head."
    )
    n_embd: PositiveInt = setting(384, "Width of the residual stream.")
    n_inner: PositiveInt | None = setting(
        None, "Hidden width of the MLP; null: the architecture's usual one."
    )
    seq_len: PositiveInt = setting(128, "Context length in tokens.")
    dropout: float = setting(0.0, "Dropout probability in training.", ge=0, le=0.9)
    rope_theta: PositiveFloat = setting(10_000.0, "Base of the rotary frequencies (qwen3 only).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_embd % self.n_head:
            pairs = 2 * self.n_head  # rotary positions need an even head width
            width = pairs * max(1, round(self.n_embd / pairs))
            at_most = min(self.n_head, self.n_embd, 1024)
            heads = next(n for n in range(at_most, 0, -1) if self.n_embd % n == 0)
            raise ValueError(
                f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}: set "
                f"model.n_head={heads}, or model.n_embd={width}"
            )
        if self.n_head % (self.n_kv_head or self.n_head):
            raise ValueError(
                f"model.n_head={self.n_head} is not a multiple of model.n_kv_head={self.n_kv_head}"
            )
        if self.n_kv_head not in (None, self.n_head) and self.architecture == "gpt2":
            raise ValueError("model.n_kv_head is for qwen3; gpt2 has as many as model.n_head")
        if self.architecture == "qwen3" and self.n_embd // self.n_head % 2:
            raise ValueError(
                "rotary positions need an even head width: model.n_embd / model.n_head"
            )
        return self
