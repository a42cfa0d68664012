"""The plan while it is made: what is known of each stage so far, and how a stage is explained."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.planning.results import Changed, Result, Results, differences, nearest
from slm.planning.stage import OWN, UNEXPLAINED, Stage
from slm.planning.versions import version_change
from slm.recipes import store_address
from slm.records import Record, Shards, Source, Vocabulary
from slm.run_folder import RunFolder
from slm.storage import R

if TYPE_CHECKING:
    from slm.registry.initial import Start
    from slm.store.entries import Entry, Kind
    from slm.store.sharing import SharedStore


def _store() -> "SharedStore | None":
    if store_address() is None:
        return None
    from slm.store.sharing import shared_store

    return shared_store()


class Lines:
    """The stages of a config in order, as far as the results that are here show them.

    Args:
        verify: whether files are hashed and servers asked, as a run does.
        against: a run that all stages are compared with, instead of the nearest results.
        explain: whether what has to run is compared with the nearest result, which takes longer.
    """

    def __init__(
        self,
        config: PipelineConfig,
        results: Results,
        *,
        verify: bool = False,
        against: RunFolder | None = None,
        explain: bool = True,
    ) -> None:
        self.config, self.results, self.verify, self.against = config, results, verify, against
        self.explain = explain
        self.flat = keys.with_sources(config.flat())
        self.stages: list[Stage] = []
        self.source: Source | None = None  # that is reused, as are the shards
        self.vocabulary: Vocabulary | None = None
        self.shards: Shards | None = None
        self.reference = against  # the run that is reused, or the nearest one
        self.cadence_counts = True  # whether another cadence chooses another checkpoint
        self.benchmarked = True  # whether the scores on tasks are complete, or there are none
        self.best_known = True  # whether no checkpoint has to be scored to choose the best
        self.store = _store()  # of the project, which a run asks before it computes
        self.pulled: Entry | None = None  # the run that would be pulled from it
        self.start: Start | None = None  # what the training starts from; None: the seed
        self.start_known = True  # whether its weights are, which the keys have the hash of
        self.of_sources: dict[str, Lines] = {}  # of a mixture, by the name of the source

    # ---- what is here ----

    def complete(self, folder: Path, kind: type[R], key: str) -> tuple[R | None, str]:
        """The complete result of a key, if any, and what is wrong with a damaged one."""
        try:
            record = storage.read_record(folder, kind, verify=self.verify)
        except CorruptionError as error:
            return None, str(error)
        if record is None or record.key != key:
            return None, ""
        damage = self.damage(record)
        return (None, damage) if damage else (record, "")

    def damage(self, record: Record) -> str:
        """What is wrong with the files of a record, by size; with `verify` by their hashes too."""
        return "; ".join(storage.mismatches(record.path, record.files, hashes=self.verify))

    def stored(self, kind: "Kind", key: str, run: str | None = None) -> "Entry | None":
        """What the project's store has of a result; None where it has none, or is down."""
        return self.store.entry(kind, key, run) if self.store else None

    def pinned(self, candidates: Iterable[Result]) -> list[Result]:
        """Of these results, those that led to the run that is compared with, if one is.

        Of sources and shards those of mixtures for a mixture, and the others for any other.
        """
        mixed = bool(self.config.data.sources)
        candidates = [
            result
            for result in candidates
            if not isinstance(result.record, Source | Shards) or bool(result.record.parts) == mixed
        ]
        if self.against is None:
            return candidates
        settings = self.against.settings
        shards = self.against.shards
        vocabulary = self.results.root.vocabulary_of(shards) if shards else None
        own = {
            settings.key,
            settings.shards_key,
            shards.source_key if shards else None,
            vocabulary.key if vocabulary else None,
        }
        for part in shards.parts.values() if shards else ():
            own |= {part.key, part.source_key}
        return [result for result in candidates if result.record.key in own]

    # ---- the lines of the plan ----

    def reuse(self, stage: str, record: Record, candidates: Iterable[Result], **facts: Any) -> None:
        """Add a stage that is reused; compared with that of `against` where it is another."""
        if self.against is not None:
            other = [r for r in candidates if r.path != record.path]
            if best := nearest(other, self.flat, self.flat):
                facts.setdefault("nearest", str(best.path))
                own = OWN[stage](self.config)
                facts.setdefault("changed", differences(best.settings, self.flat, own))
        facts.setdefault("result", str(record.path))
        self.stages.append(Stage(stage=stage, action="reused", key=record.key, **facts))

    def pull(self, stage: str, entry: "Entry", folder: Path, kind: type[R]) -> R | None:
        """Add a stage whose result the store has; returns its record.

        None where that cannot be read: then nothing is added.
        """
        assert self.store is not None, "an entry is of a store"
        record = self.store.record_of(entry)
        if not isinstance(record, kind):
            return None
        line = Stage(
            stage=stage,
            action="to pull",
            key=entry.key,
            result=str(folder),
            reasons=(f"in the store {self.store.store}",),
            disk_bytes=entry.size,
        )
        self.stages.append(line)
        return record.model_copy(update={"path": folder})

    def complete_shards(
        self, stage: str, key: str, candidates: Iterable[Result]
    ) -> tuple[Shards | None, Path, list[str]]:
        """The shards of a key, reused or from the store; else where they belong, and why not."""
        folder = self.results.root.folder("shards", self.config.folder_name, key)
        shards, damage = self.complete(folder, Shards, key)
        if shards:
            self.reuse(stage, shards, candidates)
        elif entry := self.stored("shards", key):
            shards = self.pull(stage, entry, folder, Shards)
        return shards, folder, [f"damaged: {damage}"] if damage else []

    def make(
        self,
        stage: str,
        key: str | None,
        candidates: Sequence[Result],
        *,
        upstream: Sequence[str] = (),
        inputs: str | None = None,
        reasons: Iterable[str] = (),
        **facts: Any,
    ) -> Result | None:
        """Add a stage that has to run, explained by the nearest result; returns that.

        Args:
            upstream: settings of the stages before it, which explain other inputs.
            inputs: what it is made from; None: not known yet, and explained there.
        """
        own = OWN[stage](self.config)
        best = nearest(candidates, self.flat, (*own, *upstream)) if self.explain else None
        reasons, version, changed = list(reasons), None, facts.pop("changed", Changed())
        if best is None and self.explain:
            reasons = reasons or ["there is no result of this stage yet"]
        elif best is not None:
            if best.recipe not in (self.config.recipe, self.config.folder_name):
                changed["recipe"] = (best.recipe, self.config.recipe)
            changed |= differences(best.settings, self.flat, own)
            if inputs and best.inputs != inputs:
                changed |= differences(best.settings, self.flat, upstream)
            version = version_change(stage, best, self.config, self.results.root)
            if not (changed or version or reasons) and (inputs is None or best.inputs == inputs):
                reasons.append(UNEXPLAINED)
        facts.setdefault("action", "to run")
        line = Stage(
            stage=stage,
            key=key,
            nearest=str(best.path) if best else None,
            changed=changed,
            version=version,
            reasons=tuple(reasons),
            **facts,
        )
        self.stages.append(line)
        return best

    def add_reason(self, reason: str) -> None:
        line = self.stages.pop()
        self.stages.append(line.model_copy(update={"reasons": (*line.reasons, reason)}))
