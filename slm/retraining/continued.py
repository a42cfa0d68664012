"""The config by which a champion is trained on."""

from slm.config import LIMITS, PipelineConfig


def continued(config: PipelineConfig) -> PipelineConfig:
    """The config with `retrain.continue_fraction` of its training limit.

    The schedule starts again with its warmup, at the same peak, over the fewer steps. The weights
    are those of the champion, whatever that had started from.
    """
    limit = next(name for name in LIMITS if getattr(config.train, name) is not None)
    whole = getattr(config.train, limit)
    part = whole * config.retrain.continue_fraction
    scaled = max(1, round(part)) if isinstance(whole, int) else part
    passes = config.train.max_passes and config.train.max_passes * config.retrain.continue_fraction
    changes = {limit: scaled, "max_passes": passes, "init_from": None}
    train = config.train.model_copy(update=changes)
    return config.model_copy(update={"train": train})
