import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import BYTES, SEQ_LEN, tiny_model

import slm
import slm.model.decode
from slm.errors import UserError
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.next_token import SamplingSettings, sample_tokens
from slm.model.sample import generate, row_seeds
from slm.model.saved import LoadedModel

PROMPTS = ["A little girl", "", "x", "went to the woods"]


@pytest.fixture(params=["gpt2", "qwen3"])
def model(request: pytest.FixtureRequest) -> GPT:
    return tiny_model(request.param)


def without_cache(model: GPT, prompt: str, new_tokens: int) -> str:
    """Greedy text by whole passes over the context, halved when it is full."""
    ids = [BYTES.eot, *BYTES.encode(prompt)]
    window = list(ids)
    with torch.inference_mode():
        for _ in range(new_tokens):
            token = int(model.logits(model(torch.tensor([window]))[0, -1]).argmax())
            if token == BYTES.eot:
                break
            ids.append(token)
            window = [*window, token] if len(window) < SEQ_LEN else ids[-(SEQ_LEN // 2) :]
    return bytes(ids[1 + len(prompt) :]).decode(errors="replace")


# ---- what a text depends on -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_greedy_is_the_same_alone_in_a_batch_and_without_cache(
    architecture: str, seed: int
) -> None:
    model = tiny_model(architecture, seed)
    together = generate(model, BYTES, PROMPTS, max_new_tokens=70, temperature=0)
    for prompt, sample in zip(PROMPTS, together, strict=True):
        assert generate(model, BYTES, [prompt], max_new_tokens=70, temperature=0)[0].completion == (
            sample.completion
        )
        expected = without_cache(model, prompt, 70)
        assert expected.rstrip("\ufffd") == sample.completion.rstrip("\ufffd")
    assert max(s.tokens for s in together) > SEQ_LEN  # beyond the context


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9},
        {"temperature": 1.0, "top_k": 20},
        {"top_p": 0.9},
        {"min_p": 0.05, "repetition_penalty": 1.3},
        {"top_k": 30, "top_p": 0.8},
    ],
)
def test_a_seed_gives_one_text_alone_and_in_a_batch(model: GPT, settings: dict[str, float]) -> None:
    seeds = [3, 4, 5, 6]
    together = generate(model, BYTES, PROMPTS, max_new_tokens=60, seed=seeds, **settings)  # type: ignore[arg-type]
    for prompt, seed, sample in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = generate(model, BYTES, [prompt], max_new_tokens=60, seed=seed, **settings)  # type: ignore[arg-type]
        assert (alone.completion, alone.tokens) == (sample.completion, sample.tokens)
    other_seed = generate(model, BYTES, PROMPTS, max_new_tokens=60, seed=7, **settings)  # type: ignore[arg-type]
    assert [s.completion for s in other_seed] != [s.completion for s in together]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 5}, {"top_k": 400}])
def test_screening_the_output_layer_changes_no_text(
    model: GPT, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Decoder(model)
    monkeypatch.setattr(slm.model.decode, "MIN_SCREENED_BYTES", 0)
    screened = Decoder(model)
    if screened.screen is None:
        pytest.skip("this CPU has no bf16")
    assert whole.screen is None
    for seed, prompt in enumerate(PROMPTS):
        given = {"max_new_tokens": 60, "seed": seed, **settings}
        expected = generate(whole, BYTES, [prompt], **given)[0].completion  # type: ignore[arg-type]
        assert generate(screened, BYTES, [prompt], **given)[0].completion == expected  # type: ignore[arg-type]


def test_one_seed_gives_every_row_a_text_of_its_own(model: GPT) -> None:
    """The first row has the seed itself, so that its text is that of the prompt alone."""
    same = generate(model, BYTES, ["x"] * 5, max_new_tokens=30, seed=9)
    assert len({s.completion for s in same}) == 5
    (alone,) = generate(model, BYTES, ["x"], max_new_tokens=30, seed=9)
    assert (alone.completion, alone.seed) == (same[0].completion, 9)
    (third,) = generate(model, BYTES, ["x"], max_new_tokens=30, seed=same[2].seed)
    assert third.completion == same[2].completion


def test_a_row_keeps_its_seed_whatever_follows_it() -> None:
    assert row_seeds(5, 3) == row_seeds(5, 9)[:3]
    assert row_seeds(5, 3) == [5, 8046330058975633055, 4611597087732477038]
    assert row_seeds(range(2, 4), 2) == [2, 3]
    assert len({*row_seeds(0, 50), *row_seeds(1, 50)}) == 100
    assert all(0 <= seed < 2**63 for seed in row_seeds(2**63 - 1, 50))


def test_one_text_is_one_prompt(model: GPT) -> None:
    (sample,) = generate(model, BYTES, "Once", max_new_tokens=5)
    assert sample == replace(
        generate(model, BYTES, ["Once"], max_new_tokens=5)[0], seconds=sample.seconds
    )
    loaded = LoadedModel(model, BYTES)
    assert [s.prompt for s in slm.sample(loaded, "Once", max_new_tokens=1)] == ["Once"]
    prompts = (text for text in ("a", "b"))
    assert [s.prompt for s in slm.sample(loaded, prompts, max_new_tokens=1)] == ["a", "b"]


def test_neither_the_global_generator_nor_the_mode_is_touched(model: GPT) -> None:
    model.train()
    before = torch.get_rng_state()
    first = generate(model, BYTES, PROMPTS, max_new_tokens=20)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    second = generate(model.eval(), BYTES, PROMPTS, max_new_tokens=20)
    assert [s.completion for s in first] == [s.completion for s in second]  # no dropout
    assert not model.training


# ---- where a text ends ------------------------------------------------------------------------


def test_a_text_ends_at_end_of_text_and_leaves_the_others_alone() -> None:
    model = tiny_model("qwen3")
    samples = generate(model, BYTES, PROMPTS * 8, max_new_tokens=200, seed=range(32))
    ended = [s for s in samples if s.ended]
    assert ended
    assert all(s.tokens < 200 for s in ended)
    assert all(s.tokens == 200 for s in samples if not s.ended)


def test_a_text_ends_before_a_stop_string(model: GPT) -> None:
    (whole,) = generate(model, BYTES, ["a"], max_new_tokens=50, seed=1)
    stop = whole.completion[7:9]
    (cut,) = generate(model, BYTES, ["a"], max_new_tokens=50, seed=1, stop=["never there", stop])
    assert cut.ended
    assert cut.completion == whole.completion[: whole.completion.index(stop)]


def test_no_tokens_and_no_prompts(model: GPT) -> None:
    (sample,) = generate(model, BYTES, ["a"], max_new_tokens=0)
    assert (sample.completion, sample.tokens, sample.ended) == ("", 0, False)
    assert generate(model, BYTES, []) == []


def test_a_prompt_may_fill_the_context_but_not_exceed_it(model: GPT) -> None:
    prompt = "p" * (SEQ_LEN - 1)
    (sample,) = generate(model, BYTES, [prompt], max_new_tokens=5, temperature=0)
    assert sample.completion == without_cache(model, prompt, 5)
    with pytest.raises(UserError, match=f"{SEQ_LEN} tokens.*room for {SEQ_LEN - 1}"):
        generate(model, BYTES, ["fine", prompt + "p"])


# ---- streaming --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("e", "abc")])
def test_streaming_gives_the_same_text_in_whole_characters(
    model: GPT, stop: tuple[str, ...]
) -> None:
    pieces: dict[int, list[str]] = {i: [] for i in range(len(PROMPTS))}
    samples = generate(
        model,
        BYTES,
        PROMPTS,
        max_new_tokens=60,
        seed=2,
        stop=stop,
        on_text=lambda row, text: pieces[row].append(text),
    )
    for row, sample in enumerate(samples):
        assert "".join(pieces[row]) == sample.completion
        assert all(pieces[row])


def test_a_character_of_several_tokens_is_streamed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "né ✓ 🦊!".encode()
    forced = iter(expected)
    monkeypatch.setattr("slm.model.batch.sample_tokens", lambda *_: torch.tensor([next(forced)]))
    pieces: list[str] = []
    (sample,) = generate(
        tiny_model("gpt2"),
        BYTES,
        ["a"],
        max_new_tokens=len(expected),
        on_text=lambda _, text: pieces.append(text),
    )
    assert pieces == list("né ✓ 🦊!")
    assert sample.completion == "né ✓ 🦊!"


# ---- sampling a token ---------------------------------------------------------------------------


def frequencies(
    logits: list[float], settings: SamplingSettings, penalised: Sequence[int] = ()
) -> list[float]:
    """How often each token is sampled, over evenly spread uniform numbers."""
    n = 10_000
    mask = torch.zeros(n, len(logits), dtype=torch.bool)
    mask[:, list(penalised)] = True
    rows = torch.tensor(logits).expand(n, -1)
    tokens = sample_tokens(
        rows, settings, [(i + 0.5) / n for i in range(n)], mask if penalised else None
    )
    counts = Counter(tokens.tolist())
    return [counts[i] / n for i in range(len(logits))]


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(x) for x in logits]
    return [w / sum(weights) for w in weights]


def test_the_temperature_divides_the_logits() -> None:
    logits = [1.0, 0.0, -1.0, 0.5]
    assert frequencies(logits, SamplingSettings(temperature=0.7)) == pytest.approx(
        softmax([x / 0.7 for x in logits]), abs=2e-4
    )
    assert frequencies(logits, SamplingSettings(temperature=1e-30)) == [1, 0, 0, 0]
    assert frequencies(logits, SamplingSettings(temperature=0)) == [1, 0, 0, 0]


def test_top_k_top_p_and_min_p_keep_the_likeliest() -> None:
    logits = [math.log(p) for p in (0.1, 0.4, 0.05, 0.3, 0.15)]
    assert frequencies(logits, SamplingSettings(top_k=2)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7, 0], abs=2e-4
    )
    assert frequencies(logits, SamplingSettings(top_p=0.8)) == pytest.approx(
        [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], abs=2e-4
    )
    assert frequencies(logits, SamplingSettings(top_p=0.01)) == [0, 1, 0, 0, 0]
    assert frequencies(logits, SamplingSettings(min_p=0.5)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7, 0], abs=2e-4
    )
    assert frequencies(logits, SamplingSettings(top_k=3, top_p=0.5)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7, 0], abs=2e-4
    )


def test_top_p_reaches_beyond_the_first_candidates() -> None:
    settings = SamplingSettings(top_p=0.9)
    chosen = sample_tokens(torch.zeros(1, 5000), settings, [0.9999])
    assert 4400 < int(chosen) < 5000


def test_the_repetition_penalty_weakens_the_tokens_of_the_row() -> None:
    settings = SamplingSettings(repetition_penalty=2.0)
    assert frequencies([1.0, -1.0, 0.5], settings, penalised=[0, 1]) == pytest.approx(
        softmax([0.5, -2.0, 0.5]), abs=2e-4
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", None),
        ("temperature", True),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_k", "many"),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", [0.5]),
        ("min_p", -1.0),
        ("min_p", "small"),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", None),
        ("max_new_tokens", -1),
        ("max_new_tokens", 2.0),
        ("max_new_tokens", "10"),
        ("max_new_tokens", True),
        ("stop", [""]),
        ("stop", "The end"),
        ("stop", [1]),
        ("stop", None),
        ("seed", [1, 2]),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("seed", "1"),
        ("seed", None),
        ("seed", True),
        ("seed", [-1]),
        ("prompts", None),
        ("prompts", 7),
        ("prompts", ["a", None]),
        ("prompts", b"a"),
        ("prompts", {"a": 1}),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_refused(name: str, value: object) -> None:
    given = {"prompts": ["a"], name: value}
    with pytest.raises(UserError, match=name) as refusal:
        generate(tiny_model("gpt2"), BYTES, **given)  # type: ignore[arg-type]
    assert len(str(refusal.value)) < 150


def test_a_refused_value_is_shown_in_short() -> None:
    with pytest.raises(UserError) as refusal:
        generate(tiny_model("gpt2"), BYTES, ["a"], stop="x" * 10_000)
    assert len(str(refusal.value)) < 100


def test_settings_may_be_numpy_numbers(model: GPT) -> None:
    given = {"temperature": np.float32(0.5), "top_k": np.int64(5), "max_new_tokens": np.int32(3)}
    (sample,) = generate(model, BYTES, ["a"], seed=np.int64(3), **given)  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(sample)))["seed"] == 3


@pytest.mark.parametrize("model", [None, 7, BYTES])
def test_what_is_neither_a_name_nor_a_loaded_model_is_refused(model: object) -> None:
    with pytest.raises(UserError, match=r"slm\.load_model"):
        slm.sample(model, "Once")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["RUN", Path("RUN")])
def test_a_name_of_no_run_is_refused(name: str | Path, data_root: Path) -> None:
    with pytest.raises(UserError, match="no run 'RUN'"):
        slm.sample(name, "Once")


def test_a_misspelt_setting_is_refused_with_the_nearest() -> None:
    loaded = LoadedModel(tiny_model("gpt2"), BYTES)
    with pytest.raises(UserError, match="did you mean 'max_new_tokens'"):
        slm.sample(loaded, "Once", max_tokens=3)
