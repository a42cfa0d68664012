"""A random model of two layers whose tokens are bytes, to sample from in tests."""

import torch

from slm.config import ModelConfig
from slm.model.gpt import GPT
from slm.tokens.tokenizer.bpe import Tokenizer

BYTES = Tokenizer([bytes([i]) for i in range(256)])
SEQ_LEN = 24


def tiny_model(architecture: str, seed: int = 0, scale: float = 8.0) -> GPT:
    """A random model whose logits are far apart, so that its texts vary with their prompts."""
    torch.manual_seed(seed)
    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_layer=2,
        n_head=4,
        n_kv_head=2 if architecture == "qwen3" else None,
        n_embd=32,
        seq_len=SEQ_LEN,
        dropout=0.5,
    )
    model = GPT(config, BYTES.n_vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    return model.eval()
