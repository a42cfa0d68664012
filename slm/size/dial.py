"""From the dial to plain settings: what is derived, and where each value came from."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from slm.config import GPT2_VOCAB_SIZE, LIMITS, ModelConfig, TokenizerConfig
from slm.errors import UserError
from slm.figures import count
from slm.records import Frozen
from slm.size.rules import (
    ASPECT,
    ASPECT_COST,
    FITTED,
    HEAD_WIDTH,
    MAX_ASPECT,
    MAX_PASSES,
    MEASURED,
    MIN_ASPECT,
    TOKENS_PER_PARAMETER,
    batch_for,
    batch_of_steps,
    heads_for,
    parse_depth,
    parse_size,
    rates_for,
    tokens_for,
    widths,
)
from slm.size.shape import block_matrices, non_embedding

Dial = Literal["size", "depth"]
DIALS: tuple[Dial, ...] = ("size", "depth")


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
