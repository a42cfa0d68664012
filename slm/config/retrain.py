"""Settings of the scheduled training on data that grow."""

from slm.config.setting import Fraction, PositiveFloat, PositiveInt, Section, setting


class RetrainConfig(Section):
    """When the scheduled flow trains anew, and how: see slm/retraining/decide.py.

    The thresholds are a first choice, to be set by what a dataset's drift looks like: the decision
    of every flow run reports the figures.
    """

    min_new_fraction: Fraction = setting(
        0.01, "Fraction of new documents below which nothing is trained."
    )
    max_gone_fraction: Fraction = setting(
        0.1,
        "Fraction of the champion's documents that may be gone; beyond it, training starts from "
        "the seed.",
    )
    drift_threshold: PositiveFloat = setting(
        0.03,
        "Drift in bits, beyond that of held-out documents, from which training starts from the "
        "seed.",
    )
    bpb_rise: PositiveFloat = setting(
        0.3,
        "Bits per byte by which new documents may cost the champion more than held-out ones; "
        "beyond it, training starts from the seed.",
    )
    sample_documents: PositiveInt = setting(
        500, "New documents that are measured, and as many held-out ones."
    )
    continue_fraction: Fraction = setting(
        0.3, "Fraction of the recipe's training limit when the champion is continued."
    )
    approval: bool = setting(False, "Whether a person must approve before the champion changes.")
    approval_hours: PositiveFloat = setting(
        72.0, "Hours after which an unanswered run fails, and nothing changes.", le=24 * 365
    )
