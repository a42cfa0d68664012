"""The winner of a sweep: which trial is the best, how sure that is, and what each setting does."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from slm import storage
from slm.errors import CorruptionError, UserError, listing
from slm.evaluation.identity import DETAILS, text_fingerprint
from slm.evaluation.ranking import (
    Floats,
    Verdict,
    by_held_out_text,
    known,
    rank,
    rank_by_mean,
    too_few,
)
from slm.figures import counted, duration
from slm.records import Evaluation, Frozen
from slm.run_folder import EVALUATION, DataRoot
from slm.sweeps.definition import Sweep
from slm.sweeps.effects import Effect, Tried, effects
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, Trial

MAX_NAMED = 10  # trials in a sentence
MORE_SEEDS = 3  # that are proposed where there is one


class Place(Frozen):
    """A trial among those that were scored on the same documents, in bits per byte.

    Its intervals are of 95 % together with those of all others, so they hold for the best of them
    too. None: not known.
    """

    trial: int
    seeds: int
    val_bpb: float  # mean over its seeds
    low: float | None
    high: float | None
    difference: float  # minus the best trial's
    difference_low: float | None
    difference_high: float | None

    @property
    def close(self) -> bool:
        """Whether the difference from the best trial is within what chance gives."""
        return self.difference_low is None or self.difference_low <= 0


class Standing(Frozen):
    """Trials that were scored on the same held-out documents, the best first."""

    places: tuple[Place, ...]
    documents: int
    bytes: int
    seed_sd: float | None  # bits per byte between the seeds of a trial; None: of one seed each
    doubt: str = ""  # why nothing is known of chance; empty where something is

    @property
    def best(self) -> Place:
        return self.places[0]

    @property
    def close(self) -> tuple[Place, ...]:
        """The other trials that are not distinguishable from the best.

        Where no trial has a second seed, those that the documents alone do not distinguish.
        """
        return tuple(place for place in self.places[1:] if place.close)

    @property
    def verdict(self) -> Verdict:
        """How sure it is that the best is better than every other."""
        return Verdict(len(self.places) - 1, len(self.close), self.seed_sd is not None, self.doubt)

    @property
    def distinguishable(self) -> bool:
        """Whether the best is shown to be better than every other; never by one seed each."""
        return self.verdict.distinguishable

    @property
    def sentence(self) -> str:
        """Such as `trial 7: 0.8312 bits per byte (95 %: 0.8260 to 0.8364), as settings not
        distinguishable from 4 others: 3, 5, 11, 12`.
        """
        best = self.best
        close = listing((place.trial for place in self.close), MAX_NAMED)
        return self.verdict.sentence(
            f"trial {best.trial}", best.val_bpb, best.low, best.high, close
        )


class Winner(Frozen):
    """The best trial of a sweep, as far as its trials show.

    Trials that were scored on other held-out documents are in a standing of their own: between two
    of these there is no best.
    """

    sweep: str  # name of its folder
    standings: tuple[Standing, ...]  # of the most trials first
    effects: tuple[Effect, ...] = ()  # of each setting of the space, where there is one standing
    failed: tuple[int, ...] = ()  # trials without a score
    shorter: tuple[int, ...] = ()  # trials of a shorter limit of halving, which are not compared
    advice: str = ""  # what would show more, and its cost

    @property
    def standing(self) -> Standing | None:
        """The one standing; None where there are none, or several."""
        return self.standings[0] if len(self.standings) == 1 else None

    @property
    def best(self) -> int | None:
        """Number of the best trial; None where none was scored, or not on the same documents."""
        return self.standing.best.trial if self.standing else None

    @property
    def distinguishable(self) -> bool:
        """Whether the best trial is shown to be better than every other."""
        return self.standing is not None and self.standing.distinguishable

    @property
    def sentence(self) -> str:
        """Which trial is the best and how sure that is."""
        if not self.standings:
            return "no trial has a score"
        if self.standing:
            return self.standing.sentence
        parts = "; ".join(
            f"of {counted(len(each.places), 'trial')} on {each.bytes:,} bytes, {each.sentence}"
            for each in self.standings
        )
        return (
            f"trials were scored on {len(self.standings)} sets of held-out documents, whose bits "
            f"per byte cannot be compared: {parts}"
        )


def choose(folder: SweepFolder) -> Winner:
    """The winner among the trials that a sweep has so far, with intervals.

    Of halving, among those of the longest limit that any has reached.
    """
    sweep, every = folder.sweep, folder.trials
    scored = [trial for trial in every if trial.val_bpb is not None]
    longest = max((trial.rung for trial in scored), default=0)
    chosen = [trial for trial in scored if trial.rung == longest]
    standings, together = _standings(chosen, folder.root)
    return Winner(
        sweep=folder.name,
        standings=standings,
        effects=_effects(sweep, chosen) if together else (),
        failed=tuple(trial.number for trial in every if trial.val_bpb is None),
        shorter=tuple(trial.number for trial in scored if trial.rung != longest),
        advice=_advice(sweep, chosen, standings),
    )


def choose_winner(reference: str) -> Winner:
    """The winner of a sweep of the data folder, by its name, its folder or its key's beginning.

    >>> slm.choose_winner("rates").sentence
    "trial 7: 0.8312 bits per byte (95 %: 0.8260 to 0.8364), as settings better than all 11 others"

    Raises UserError with the nearest name.
    """
    return choose(SweepFolder.open(reference))


def winning_run(folder: SweepFolder, winner: Winner) -> tuple[Trial, SeedRun]:
    """The best trial, and of its seeds the one with the fewest bits per byte.

    Raises UserError where there is no best trial.
    """
    if winner.best is None:
        remedy = "" if not winner.standings else ": promote one of them with `slm promote RUN`"
        raise UserError(f"{folder.name} has no best trial: {winner.sentence}{remedy}")
    trial = next(trial for trial in folder.trials if trial.number == winner.best)
    return trial, min(trial.seeds, key=lambda seed: (seed.val_bpb or np.inf, seed.seed))


# ---- scores of documents ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """Of one trial, on the same documents for each of its seeds."""

    bits: Floats  # (S, D)
    sizes: npt.NDArray[np.int64]  # UTF-8 bytes of each document, (D,)
    fingerprint: float | None


def _standings(trials: Sequence[Trial], root: DataRoot) -> tuple[tuple[Standing, ...], bool]:
    """The trials by what they were scored on, and whether that is the same for all."""
    every = [_scores(trial, root) for trial in trials]
    scores = [each for each in every if each is not None]
    standings: list[Standing] = []
    if len(scores) == len(trials):
        for same in by_held_out_text([(each.sizes, each.fingerprint) for each in scores]):
            standings.append(_standing([trials[i] for i in same], [scores[i] for i in same]))
    else:
        groups: dict[tuple[int, int], list[Trial]] = defaultdict(list)
        for trial in trials:
            groups[trial.seeds[0].documents, trial.seeds[0].bytes].append(trial)
        standings = [_standing(same, None) for same in groups.values()]
    ordered = sorted(standings, key=lambda s: (-len(s.places), s.best.trial))
    return tuple(ordered), len(ordered) == 1


def _scores(trial: Trial, root: DataRoot) -> _Scores | None:
    """What its seeds spend on every document; None where the evaluation of one is gone."""
    seeds = [_scores_of_seed(seed, root) for seed in trial.seeds]
    known = [each for each in seeds if each is not None]
    if (
        len(known) < len(seeds)
        or len(by_held_out_text([(s.sizes, s.fingerprint) for s in known])) > 1
    ):
        return None
    return replace(known[0], bits=np.concatenate([each.bits for each in known]))


def _scores_of_seed(seed: SeedRun, root: DataRoot) -> _Scores | None:
    """The evaluation that a seed's score is of, by document."""
    run = root.named_run(seed.run)
    for path in sorted(run.path.glob(f"{EVALUATION}*")):
        with suppress(CorruptionError, OSError, ValueError, KeyError):
            record = storage.read_record(path, Evaluation, verify=False)
            if record and (record.weights_sha256, record.documents, record.val_bpb) == (
                seed.weights_sha256, seed.documents, seed.val_bpb,
            ):  # fmt: skip
                rows = json.loads((path / DETAILS).read_bytes())["documents"]
                table = np.array(rows, np.float64)  # nats, tokens, bytes
                sizes = table[:, 2].astype(np.int64)
                return _Scores(table[None, :, 0] / np.log(2), sizes, text_fingerprint(record))
    return None


def _standing(trials: Sequence[Trial], scores: Sequence[_Scores] | None) -> Standing:
    """Trials of the same documents compared; without the documents' scores by the means alone."""
    documents, size = trials[0].seeds[0].documents, trials[0].seeds[0].bytes
    doubt = too_few(documents)
    if scores is None:
        doubt = "the scores of the documents are gone from the runs' folders"
    if doubt or scores is None:
        ranked = rank_by_mean([trial.val_bpb or 0.0 for trial in trials])
    else:
        ranked = rank([each.bits for each in scores], scores[0].sizes)
    places = [
        Place(
            trial=trial.number,
            seeds=len(trial.seeds),
            val_bpb=float(ranked.mean[i]),
            low=known(ranked.low[i]),
            high=known(ranked.high[i]),
            difference=float(ranked.difference[i]),
            difference_low=known(ranked.difference_low[i]),
            difference_high=known(ranked.difference_high[i]),
        )
        for i, trial in enumerate(trials)
    ]
    return Standing(
        places=tuple(sorted(places, key=lambda place: (place.difference, place.trial))),
        documents=documents,
        bytes=size,
        seed_sd=ranked.seed_sd,
        doubt=doubt,
    )


# ---- settings ---------------------------------------------------------------------------------


def _effects(sweep: Sweep, trials: Sequence[Trial]) -> tuple[Effect, ...]:
    """The effects of the settings of a sweep on its trials."""
    tried = []
    for key, dimension in sweep.space.items():
        present = np.array([key in trial.values for trial in trials])
        values = [trial.values.get(key) for trial in trials]
        is_range = not dimension.choices
        tried.append(Tried(key, values, present, is_range, dimension.log))
    return effects(tried, np.array([trial.val_bpb for trial in trials]))


def _advice(sweep: Sweep, trials: Sequence[Trial], standings: Sequence[Standing]) -> str:
    """What more seeds would take, where every trial has one."""
    if sweep.seeds > 1 or len(trials) < 2:
        return ""
    more = MORE_SEEDS - 1
    named = {p.trial for s in standings for p in (s.best, *s.close)}
    close = [trial for trial in trials if trial.number in named]
    seconds = more * sum(trial.seconds for trial in trials)
    text = (
        f"--seeds {MORE_SEEDS} shows it: {counted(more, 'training')} more of each trial, about "
        f"{duration(seconds)} in all; those that are done are reused"
    )
    if 1 < len(close) < len(trials):
        part = more * sum(trial.seconds for trial in close)
        text += f" (of the best and those next to it alone: {duration(part)})"
    return text
