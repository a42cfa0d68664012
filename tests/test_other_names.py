"""Settings that do not exist: the names of other tools first, likeness after them, strictly."""

import pytest

from slm.errors import UserError
from slm.other_names import OTHER_NAMES, nearest
from slm.recipes import dotted_keys, explain, parse_overrides, sections

KEYS = list(dotted_keys())


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("optimizer.lr", "train.learning_rate"),
        ("min_lr", "train.final_lr"),
        ("batch_size", "train.tokens_per_step"),
        ("train.batch-size", "train.tokens_per_step"),
        ("train.bs", "train.tokens_per_step"),
        ("model.block_size", "model.seq_len"),
        ("model.context_length", "model.seq_len"),
        ("d_model", "model.n_embd"),
        ("model.hidden_size", "model.n_embd"),
        ("n_layers", "model.n_layer"),
        ("model.n_heads", "model.n_head"),
        ("max_iters", "train.max_steps"),
        ("train.gpu", "train.device"),
        ("epochs", "train.epochs"),
        ("train.dropout", "model.dropout"),
        ("warmup_steps", "train.warmup"),
        ("train.max_step", "train.max_steps"),
        ("trian.max_steps", "train.max_steps"),
        ("train.Max_Steps", "train.max_steps"),
        ("model.vocab_size", "data.vocab_size"),
        ("train.seed_", "train.seed"),
        ("data.clean.min_char", "data.clean.min_chars"),
        ("data.min_chars", "data.clean.min_chars"),
    ],
)
def test_the_setting_that_is_meant(key: str, meant: str) -> None:
    assert nearest(key, KEYS) == [meant]


@pytest.mark.parametrize(
    "key",
    ["train.foo", "model.sequence", "rate", "amount", "model.attention", "x" * 500, "train.", ""],
)
def test_nothing_is_suggested_where_nothing_is_like_it(key: str) -> None:
    assert not nearest(key, KEYS)


def test_several_settings_of_one_name_are_all_suggested() -> None:
    assert set(nearest("seed", KEYS)) == {"data.seed", "train.seed", "report.seed"}
    assert nearest("report.sede", KEYS) == []


def test_every_other_name_leads_to_a_setting_and_is_none_itself() -> None:
    assert set(OTHER_NAMES.values()) <= set(KEYS)
    own = {key.rpartition(".")[2] for key in KEYS}
    assert not own & set(OTHER_NAMES)
    for name, key in OTHER_NAMES.items():
        assert nearest(name, KEYS) == [key]


def test_the_message_has_what_is_easily_misunderstood() -> None:
    messages = {}
    for name in ("train.lr", "batch_size", "train.foo", "foo", "trian"):
        with pytest.raises(UserError) as refused:
            explain(name)
        messages[name] = str(refused.value)
    assert messages["train.lr"].startswith(
        "unknown setting 'train.lr': did you mean 'train.learning_rate'? With train.optimizer=muon"
    )
    assert "train.muon_learning_rate" in messages["train.lr"]
    assert "'train.tokens_per_step'? It counts tokens" in messages["batch_size"]
    assert "train has beta1, beta2" in messages["train.foo"]
    assert messages["foo"].endswith("`slm recipes --explain` lists all settings")
    assert messages["trian"].endswith("did you mean 'train'?")
    assert "train" in sections()


def test_the_rate_of_adamw_under_muon_is_explained() -> None:
    (rate,) = explain("train.learning_rate")
    assert "where optimizer is muon, of AdamW's part alone" in rate.text
    assert parse_overrides(["train.learning_rate=1"])
