"""The size dial: a model's shape and its training from one number, by rules.

`size: 10M` counts the parameters inside the blocks, as scaling laws do (Kaplan et al. 2020,
arXiv:2001.08361): then the shape does not depend on the vocabulary. `depth: 8` is 8 blocks of 8
times `ASPECT` wide. Both become plain settings before anything else reads them, so a run has the
key of the same settings written out, and what is stated wins over what would be derived.

docs/sizing.md has the figures of the rules, the runs that they rest on, and what is not shown.
Nothing here loads PyTorch.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from slm.config import GPT2_VOCAB_SIZE, LIMITS, ModelConfig, TokenizerConfig
from slm.errors import UserError, excerpt
from slm.figures import count
from slm.records import Frozen

Dial = Literal["size", "depth"]
DIALS: tuple[Dial, ...] = ("size", "depth")
EXAMPLE = "give parameters inside the blocks, such as 300K, 10M or 0.1B"
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?) *([kmb]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
MIN_SIZE, MAX_SIZE = 25_000, 10**12
MAX_DEPTH = 256
# What the rules rest on: parameters inside the blocks of the smallest and the largest model that
# was measured, and tokens of the shortest and the longest training.
FITTED, MEASURED = (106_496, 3_211_264), (65_536, 3_276_800)

# ---- the rules' figures -----------------------------------------------------------------------

# Width of a model by its blocks, as of the shipped recipes and of GPT-2 124M. Among shapes of
# nearly the size that is asked for, one of half or twice as wide counts as 5 % off.
ASPECT = 64
ASPECT_COST = 0.05
MIN_ASPECT, MAX_ASPECT = 24, 128
HEAD_WIDTH = 64

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, arXiv:2203.15556
MAX_PASSES = 4.0  # repeated data is worth little beyond: Muennighoff et al. 2023, arXiv:2305.16264

# Peak rates of Muon, whose updates have the same norm at any width, and of AdamW's part, embeddings
# and norms, for a training of a million tokens. That falls with the tokens, as AdamW's does in
# Bjorck et al. 2024 (arXiv:2409.19913); more than the largest rate that was measured is not taken.
MUON_RATE = 0.02
REST_RATE, REST_EXPONENT, MAX_REST_RATE = 1.6e-2, 0.25, 2.4e-2

# Tokens of a step, for a training of a million tokens, and how they grow with these, whatever the
# size of the model is: Bergsma et al. 2025, arXiv:2505.13738.
BATCH, BATCH_EXPONENT = 2048.0, 0.4


# ---- the size of a shape ----------------------------------------------------------------------


def kv_width(model: ModelConfig) -> int:
    """Width of the keys, and of the values, over all heads."""
    return model.n_embd // model.n_head * (model.n_kv_head or model.n_head)


def inner_width(model: ModelConfig) -> int:
    """Hidden width of the MLP: as configured, or the architecture's usual one."""
    if model.n_inner:
        return model.n_inner
    if model.architecture == "gpt2":
        return 4 * model.n_embd
    return 32 * math.ceil(model.n_embd * 8 / 3 / 32)


def block_matrices(model: ModelConfig) -> list[int]:
    """Parameters of each matrix of a block: queries, keys, values, output, and the MLP's."""
    width = model.n_embd
    attention = [width * width, width * kv_width(model), width * kv_width(model), width * width]
    matrices_of_mlp = 2 if model.architecture == "gpt2" else 3
    return attention + [width * inner_width(model)] * matrices_of_mlp


def non_embedding(model: ModelConfig) -> int:
    """What `size` counts: the parameters of the matrices inside the blocks."""
    return model.n_layer * sum(block_matrices(model))


# ---- the rules --------------------------------------------------------------------------------


def parse_size(value: Any) -> int:
    """`10M` → 10,000,000. Raises UserError for what is no size."""
    match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    number = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    shown = f"size={excerpt(str(value))}"
    if match is None:
        raise UserError(f"{shown} is not a size: {EXAMPLE}")
    if number < MIN_SIZE:
        raise UserError(f"{shown} is fewer than {MIN_SIZE:,} parameters: {EXAMPLE}")
    if number > MAX_SIZE:
        raise UserError(f"{shown} is more than {MAX_SIZE:,} parameters: {EXAMPLE}")
    return round(number)


def parse_depth(value: Any) -> int:
    """Blocks. Raises UserError for what is no such number."""
    depth = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and value.isdecimal():
        depth = int(value)
    if not 1 <= depth <= MAX_DEPTH:
        raise UserError(
            f"depth={excerpt(str(value))} is not a number of blocks from 1 to {MAX_DEPTH}: each "
            f"adds {ASPECT} to the width, so that depth=6 is {6 * ASPECT} wide"
        )
    return depth


def tokens_for(parameters: int) -> int:
    """The tokens by which a model is worth its compute, were all of them new.

    >>> tokens_for(1_000_000)
    20000000
    """
    return round(TOKENS_PER_PARAMETER * parameters)


def batch_for(tokens: int, seq_len: int) -> int:
    """Tokens of a step: whole rows, a power of two of them.

    >>> [batch_for(tokens, 256) for tokens in (100_000, 1_000_000, 100_000_000)]
    [1024, 2048, 16384]
    """
    return _whole_rows(BATCH * (tokens / 1e6) ** BATCH_EXPONENT, seq_len)


def batch_of_steps(steps: int, seq_len: int) -> int:
    """The same of a training whose steps are given, so that its tokens follow from the batch.

    b = BATCH (steps b / 1e6)^e, solved for b.
    """
    power = BATCH * (steps / 1e6) ** BATCH_EXPONENT
    return _whole_rows(math.pow(power, 1 / (1 - BATCH_EXPONENT)), seq_len)


def _whole_rows(tokens: float, seq_len: int) -> int:
    rows: int = 2 ** max(0, round(math.log2(tokens / seq_len)))
    return seq_len * rows


class Rates(NamedTuple):
    """Peak learning rates."""

    adamw: float
    muon: float


def rates_for(parameters: int, tokens: int, optimizer: str = "muon") -> Rates:
    """Peak rates of AdamW, or of its part, and of Muon, to two digits.

    Of AdamW alone by Kaplan et al. 2020 (arXiv:2001.08361, appendix D.6).

    >>> [rates_for(1_000_000, tokens).adamw for tokens in (10**5, 10**6, 10**7, 10**9)]
    [0.024, 0.016, 0.009, 0.0028]
    >>> rates_for(85_000_000, 10**9, "adamw")
    Rates(adamw=0.00069, muon=0.02)
    """
    if optimizer == "muon":
        rest = REST_RATE * (tokens / 1e6) ** -REST_EXPONENT
        return Rates(_two_digits(min(MAX_REST_RATE, rest)), MUON_RATE)
    return Rates(_two_digits(0.003239 - 0.0001395 * math.log(parameters)), MUON_RATE)


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def heads_for(width: int, multiple_of: int = 1) -> int | None:
    """The heads whose width is nearest to `HEAD_WIDTH`, and even; None where none divides.

    >>> [heads_for(width) for width in (64, 96, 160, 512, 100, 97)]
    [1, 2, 2, 8, 2, None]
    """
    even = [n for n in range(multiple_of, width + 1, multiple_of) if width % (2 * n) == 0]
    return min(even, key=lambda n: abs(math.log(width / n / HEAD_WIDTH)), default=None)


def widths() -> Iterator[int]:
    """Widths that fill the tiles of matrix units: steps of 16, later of 64, later of 128."""
    width = 32
    while width <= 64 * MAX_DEPTH:
        yield width
        width += 16 if width < 128 else 32 if width < 256 else 64 if width < 1024 else 128


# ---- from the dial to settings ----------------------------------------------------------------


class Origin(Frozen):
    """A setting that the dial could derive, and where its value came from."""

    key: str
    value: Any
    source: Literal["--set", "recipe", "derived", "default"]
    why: str = ""  # the rule that it was derived by


SHAPE = ("n_layer", "n_embd", "n_head")
READ = ("model.architecture", "model.seq_len")  # by the rules or their users, with the vocabulary
DERIVED = (
    *(f"model.{name}" for name in SHAPE),
    "train.tokens_per_step",
    "train.optimizer",
    "train.learning_rate",
    "train.muon_learning_rate",
    "train.schedule",
    "train.final_lr",
)  # and a limit, with train.max_passes
# Of a recipe that states its own shape: what a size on the command line is in place of.
OF_TOKENS = ("train.tokens_per_step", "train.learning_rate")  # that are not known beforehand
_OWN = ("train.optimizer", "train.schedule", "train.final_lr")  # that it keeps
_REPLACED = (*(k for k in DERIVED if k not in _OWN), "model.n_kv_head", "model.n_inner")


def resolve(
    recipe: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[Origin]]:
    """The fields of a recipe and the changes of `--set`, with what a dial in them derives.

    A dial on the command line is in place of the recipe's own shape, rates and batch; its limit
    stays, and where that is in seconds or epochs what follows from the tokens does too. Returns
    both, the derived settings among the recipe's, and where each came from; without a dial as they
    are.

    Raises UserError for a dial that is not valid, or next to `train.init_from`.
    """
    recipe, changes = dict(recipe), dict(changes)
    outside = any(changes.get(name) is not None for name in DIALS)
    given = changes if outside else {**recipe, **changes}
    dials: dict[Dial, Any] = {d: given[d] for d in DIALS if given.get(d) is not None}
    sections = [
        fields.get(name) or {} for fields in (recipe, changes) for name in ("model", "train")
    ]
    if not dials or not all(isinstance(section, dict) for section in sections):
        return recipe, changes, []
    if outside:
        limits = settings_of(recipe) | settings_of(changes)
        unknown = any(limits.get(f"train.{name}") for name in ("max_seconds", "epochs"))
        kept = OF_TOKENS if unknown else ()
        recipe = _without(recipe, [key for key in (*_REPLACED, *DIALS) if key not in kept])
    if len(dials) > 1:
        raise UserError(
            f"size={dials['size']} and depth={dials['depth']}: each gives the shape; keep one"
        )
    stated = {**settings_of(recipe), **settings_of(changes)}
    if start := stated.get("train.init_from"):
        dial, value = next(iter(dials.items()))
        raise UserError(
            f"{dial}={value} and train.init_from={start}: the shape comes with the weights; remove "
            f"{dial}, or set train.init_from=null to train from the seed"
        )
    derived, model = _derive(dials, stated)
    for key, (value, _) in derived.items():
        section, name = key.split(".")
        recipe[section] = {**(recipe.get(section) or {}), name: value}
    recipe |= {n: str(v) if n == "size" else parse_depth(v) for n, v in dials.items()}
    changes = {key: value for key, value in changes.items() if key not in DIALS}
    head = _head(dials, model, outside) if model else []
    return recipe, changes, head + _origins(derived, settings_of(recipe), settings_of(changes))


def settings_of(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 2}} → {"train.epochs": 2}."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= settings_of(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _without(fields: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Nested fields without some dotted keys."""
    kept = dict(fields)
    for key in keys:
        section, _, name = key.rpartition(".")
        if not section:
            kept.pop(name, None)
        elif isinstance(part := kept.get(section), dict):
            kept[section] = {n: value for n, value in part.items() if n != name}
    return kept


Derived = dict[str, tuple[Any, str]]  # dotted key → value, and the rule that it is by


def _derive(
    dials: Mapping[Dial, Any], stated: Mapping[str, Any]
) -> tuple[Derived, ModelConfig | None]:
    """What is not stated, by the rules, and the model; nothing where what is stated is not valid.

    That is for the check of the whole config, which names it.
    """
    names = {f"model.{name}": name for name in ModelConfig.model_fields}
    given = {names[key]: value for key, value in stated.items() if key in names}
    try:
        model, why = _shape(dials, given)
    except ValidationError:
        return {}, None
    parameters = non_embedding(model)
    tokens, optimizer = tokens_for(parameters), stated.get("train.optimizer", "muon")
    batch, trained = _batch(stated, tokens, model.seq_len)
    rates = rates_for(parameters, trained, str(optimizer))
    of_tokens = f"for {count(trained)} tokens of training{_extrapolated(trained, MEASURED)}"
    of_size = f"for {count(parameters)} parameters"
    derived: Derived = {f"model.{name}": (getattr(model, name), why[name]) for name in SHAPE}
    derived |= {
        "train.tokens_per_step": (batch, of_tokens),
        "train.optimizer": ("muon", "the rates are those for it"),
        "train.learning_rate": (rates.adamw, of_size if optimizer == "adamw" else of_tokens),
        "train.muon_learning_rate": (rates.muon, "the same for any size"),
        "train.schedule": ("linear", "the rates are those for it"),
        "train.final_lr": (0.0, "the rates are those for it"),
    }
    if not any(stated.get(f"train.{name}") is not None for name in LIMITS):
        whole = batch * math.ceil(tokens / batch)
        each = (
            f"{TOKENS_PER_PARAMETER:g} tokens for each parameter{_extrapolated(parameters, FITTED)}"
        )
        derived["train.max_tokens"] = (whole, each)
        derived["train.max_passes"] = (MAX_PASSES, "repeated data is worth little beyond")
    return {key: choice for key, choice in derived.items() if key not in stated}, model


def _batch(stated: Mapping[str, Any], tokens: int, seq_len: int) -> tuple[int, int]:
    """The tokens of a step and of the training: as stated, else by the rules.

    Args:
        tokens: of a training without a limit in steps or tokens.
    """
    steps, limit = stated.get("train.max_steps"), stated.get("train.max_tokens")
    given = stated.get("train.tokens_per_step")
    if isinstance(steps, int) and steps > 0:
        batch = given if isinstance(given, int) else batch_of_steps(steps, seq_len)
        return batch, max(1, steps * batch)
    trained = limit if isinstance(limit, int) and limit > 0 else tokens
    return batch_for(trained, seq_len), trained


def _extrapolated(value: int, known: tuple[int, int]) -> str:
    """The end of a reason, where a rule is used beyond what it rests on."""
    if known[0] <= value <= known[1]:
        return ""
    return f", extrapolated from {count(known[0])} to {count(known[1])}"


def _shape(
    dials: Mapping[Dial, Any], given: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, str]]:
    """The model of a dial with what is stated of it, and why it has its layers, width and heads.

    Raises UserError where no shape has what is stated, ValidationError where that is not valid.
    """
    if "depth" in dials:
        depth = parse_depth(dials["depth"])
        shape = {"n_layer": depth, "n_embd": ASPECT * depth, **given}
        model = _with_heads(shape)
        if model is None:
            raise UserError(_no_shape(dials, given))
        wide = f"{ASPECT} for each block"
        return model, {"n_layer": f"depth={depth}", "n_embd": wide, "n_head": _why_heads(model)}
    size = parse_size(dials["size"])
    models = list(_models(size, given))
    if not models:
        raise UserError(_no_shape(dials, given))
    model = min(models, key=lambda each: _distance(each, size))
    why = f"size={dials['size']}"
    return model, {"n_layer": why, "n_embd": why, "n_head": _why_heads(model)}


def _models(size: int, given: Mapping[str, Any]) -> Iterator[ModelConfig]:
    """The models that come near to a size, with what is stated of them.

    Of each width the two numbers of blocks between which the size is: any other is farther off by
    more than its proportions are better.
    """
    free = "n_layer" in given or "n_embd" in given  # then any proportions will do
    for width in _widths(given):
        usual = not free and "n_inner" not in given
        if usual and not size / 3 < 12 * width**3 / ASPECT < 3 * size:
            continue  # no proportions that are allowed are near the size
        one = _with_heads({"n_layer": 1, **given, "n_embd": width})
        if one is None:
            continue
        few = max(1, size // sum(block_matrices(one)))
        for layers in [one.n_layer] if "n_layer" in given else (few, few + 1):
            if free or MIN_ASPECT <= width / layers <= MAX_ASPECT:
                yield one.model_copy(update={"n_layer": layers})


def _widths(given: Mapping[str, Any]) -> Iterable[int]:
    if "n_embd" in given:
        return [given["n_embd"]]
    if "n_head" not in given:
        return widths()
    ModelConfig(n_head=given["n_head"], n_embd=given["n_head"])  # raises where it is no number
    return [given["n_head"] * head for head in range(8, 264, 8)]


def _with_heads(shape: Mapping[str, Any]) -> ModelConfig | None:
    """The model of a shape, its heads by the rule where they are not stated; None without any.

    Raises ValidationError.
    """
    if "n_head" in shape:
        return ModelConfig(**shape)
    ModelConfig(**{**shape, "n_head": 1, "n_kv_head": None, "architecture": "gpt2"})
    heads = heads_for(shape["n_embd"], shape.get("n_kv_head") or 1)
    return ModelConfig(**shape, n_head=heads) if heads else None


def _distance(model: ModelConfig, size: int) -> float:
    """How far a shape is from a size and from the usual proportions."""
    proportions = math.log2(model.n_embd / model.n_layer / ASPECT)
    return abs(math.log(non_embedding(model) / size)) + ASPECT_COST * proportions**2


def _why_heads(model: ModelConfig) -> str:
    return f"heads {model.n_embd // model.n_head} wide, the even width nearest to {HEAD_WIDTH}"


def _no_shape(dials: Mapping[Dial, Any], given: Mapping[str, Any]) -> str:
    name, value = next(iter(dials.items()))
    shape = ("n_layer", "n_embd", "n_head", "n_kv_head", "n_inner")
    stated = " and ".join(f"model.{key}={given[key]}" for key in shape if key in given)
    return (
        f"{name}={value}: no heads of an even width fit {stated}: leave one of them to {name}, or "
        "choose another"
    )


def _head(dials: Mapping[Dial, Any], model: ModelConfig, outside: bool) -> list[Origin]:
    """The dial itself, and what it came to."""
    [(name, value)] = dials.items()
    why = f"{count(non_embedding(model))} parameters inside the blocks"
    return [Origin(key=name, value=value, source="--set" if outside else "recipe", why=why)]


def _origins(
    derived: Derived, recipe: Mapping[str, Any], changes: Mapping[str, Any]
) -> list[Origin]:
    """Where the values that a dial derives, or reads, came from."""
    limits = [f"train.{name}" for name in (*LIMITS, "max_passes")]
    defaults = {
        "model.architecture": "gpt2",
        "model.seq_len": ModelConfig.model_fields["seq_len"].default,
        "data.vocab_size": GPT2_VOCAB_SIZE,
        "data.tokenizer.vocab_size": TokenizerConfig.model_fields["vocab_size"].default,
    }
    origins = []
    for key in (*READ, _vocabulary({**recipe, **changes}), *DERIVED, *limits):
        if changes.get(key) is not None:
            origins.append(Origin(key=key, value=changes[key], source="--set"))
        elif key in derived:
            value, why = derived[key]
            origins.append(Origin(key=key, value=value, source="derived", why=why))
        elif recipe.get(key) is not None:
            origins.append(Origin(key=key, value=recipe[key], source="recipe"))
        elif key in defaults:
            origins.append(Origin(key=key, value=defaults[key], source="default"))
    return origins


def _vocabulary(stated: Mapping[str, Any]) -> str:
    """The setting that has the vocabulary, which the dial does not count."""
    if stated.get("data.tokenizer.path"):
        return "data.tokenizer.path"
    return "data.tokenizer.vocab_size" if stated.get("data.tokenizer.train") else "data.vocab_size"
