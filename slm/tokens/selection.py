"""Which split each document goes to, if any: held out, trained on, or dropped as a duplicate."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from slm.config import DataConfig
from slm.records import Source
from slm.tokens import holdout
from slm.tokens.cleaning import EXAMPLE_CHARS, Duplicates, Hashes, Mask, Tally, shorten
from slm.tokens.holdout import Draw
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tokens.units import ByteTokenizer, Drop, Encoded

Choice = dict[str, Mask]  # split → which documents of a unit go there


class Selection:
    """Decides of each document, in order, which split it goes to, if any."""

    def __init__(
        self,
        data: DataConfig,
        source: Source,
        tokenizer: Tokenizer | ByteTokenizer,
        exclude: Callable[[list[Drop]], None] | None = None,
    ) -> None:
        """`exclude`: takes the documents of each unit that are dropped, in the units' order."""
        self._draw = None if "val" in source.splits else Draw(data.val_fraction)
        self._rule = holdout.small_set_rule(data, source)
        expected = holdout.expected(data, source)
        self.is_small = expected is not None and expected < holdout.CERTAIN_DRAWS
        self.has_minimum = False
        self._tokenizer, self._exclude = tokenizer, exclude
        self._duplicates = Duplicates(data.clean)
        self.tally = Tally()

    def hold_out_minimum(self, draws: Iterable[Hashes]) -> None:
        """Let a small set hold out its minimum. `draws`: of all documents, by unit."""
        assert self._draw is not None
        before, self._draw = self._draw, self._draw.at_least(np.concatenate([*draws]), self._rule)
        self.has_minimum = self._draw != before

    def choose(self, split: str, encoded: Encoded) -> Choice:
        """A mask over the documents of the source's split for each split of the shards.

        A document's raw text draws its split, so it never changes sides: not when the dataset
        grows, and not when other settings clean it; but where a small set holds out its minimum,
        and grows. If of three documents that are drawn to val, train and val the last is dropped
        as a duplicate, the masks are train [F, T, F] and val [T, F, F].
        """
        self.tally.add(encoded.tally)
        if self._draw is None:
            val = np.full(len(encoded.hashes), split == "val")
        else:
            val = self._draw.val(encoded.draws)  # (N,)
        reasons, originals = self._duplicates.decide(
            encoded.hashes, encoded.signatures, val, encoded.places
        )
        starts = np.cumsum(encoded.lengths) - encoded.lengths  # (N,), of end-of-text
        drops = list[Drop]()
        for i, reason in enumerate(reasons):
            if reason:
                start = int(starts[i]) + 1
                stop = min(start + EXAMPLE_CHARS, int(starts[i] + encoded.lengths[i]))
                text = self._tokenizer.decode(encoded.tokens[start:stop].tolist())
                self.tally.drop(reason, text)
                drops.append(
                    Drop(
                        place=int(encoded.places[i]),
                        reason=reason,
                        bytes=int(encoded.sizes[i]),
                        text=shorten(text),
                        is_val=bool(val[i]),
                        original=originals[i],
                    )
                )
        if self._exclude:
            self._exclude(self._by_cleaning(split, encoded) + drops)
        keep = np.array([not reason for reason in reasons], bool)
        return {"train": keep & ~val, "val": keep & val}

    def _by_cleaning(self, split: str, encoded: Encoded) -> list[Drop]:
        """What cleaning dropped of a unit, each with the split that it would have been in."""
        drops = encoded.dropped
        if self._draw is None:
            return [replace(drop, is_val=split == "val") for drop in drops]
        val = self._draw.val(np.array([drop.draw for drop in drops], np.uint64))
        return [replace(drop, is_val=bool(is_val)) for drop, is_val in zip(drops, val, strict=True)]
