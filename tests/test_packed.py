import pytest
import torch

from slm.config import ModelConfig
from slm.model import GPT
from slm.packed import packed


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_packed_weights_give_the_same_products_and_leave_no_trace(architecture: str) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=2, n_head=4, n_embd=48, seq_len=16)
    config = ModelConfig.model_validate(shape.model_dump() | {"architecture": architecture})
    model = GPT(config, 301).eval()
    ids = torch.randint(0, 301, (3, 16))
    with torch.inference_mode():
        plain = model.logits(model(ids))
        with packed(model):
            torch.testing.assert_close(model.logits(model(ids)), plain, rtol=1e-5, atol=1e-5)
            assert "logits" in vars(model) or not torch.backends.mkldnn.is_available()
        assert torch.equal(model.logits(model(ids)), plain)
    assert "logits" not in vars(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_precisions_stay_as_they_are() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, seq_len=8), 50).bfloat16()
    with packed(model):
        assert "logits" not in vars(model)
