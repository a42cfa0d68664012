"""Grammar, by the rules of Harper (github.com/Automattic/harper), which run in this process.

Harper checks what people write: most of its nine hundred rules are of spelling, style and names.
Only those on grammar count here. They are for English alone, and detect some of its faults, not
all: a figure has a meaning only next to the same figure of human text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from slm.extras import is_installed, remedy, require

if TYPE_CHECKING:
    from harper import Linter

LANGUAGE = "en"
LEFT_OUT = "grammar"  # in the key of a report that was made without Harper
GROUPS = ("Grammar and Agreement", "Pronouns and Possession")  # by Harper's own names
RULES = ("AnA", "RepeatedWords")  # of other groups: "a apple", "the the"

_SENTENCE = re.compile(r"[^.!?]*\w[^.!?]*")


def is_left_out(language: str) -> bool:
    """Whether the figure of a language that has one is missing here, for want of Harper."""
    return language == LANGUAGE and not is_installed("harper")


def why_left_out() -> str:
    return f"Mistakes of grammar were not counted: Harper is not installed ({remedy('harper')})."


def ungrammatical(texts: Iterable[str]) -> float:
    """The share of the texts' English sentences that have a fault of grammar.

    Raises UserError where Harper is not installed.
    """
    require("harper", "counting mistakes of grammar")
    linter = _linter()
    sentences = faulty = 0
    for text in texts:
        starts = [sentence.start() for sentence in _SENTENCE.finditer(text)]
        lints = linter.lint(text, language="plaintext")
        sentences += len(starts)
        faulty += len({bisect_right(starts, lint.span.start) for lint in lints} - {0})
    return faulty / (sentences or 1)


@cache
def _linter() -> "Linter":
    """Harper with the rules on grammar alone. Its dictionary takes half a second to load."""
    from harper import Linter

    linter = Linter()
    chosen = {*RULES, *_rules_of_groups(linter.get_structured_lint_config())}
    defaults = linter.get_default_lint_config()
    linter.set_lint_config({rule: rule in chosen and on for rule, on in defaults.items()})
    return linter


def _rules_of_groups(config: Mapping[str, Any]) -> Iterator[str]:
    for setting in config["settings"]:
        group = setting.get("Group")
        if group and group["label"] in GROUPS:
            yield from (rule["Bool"]["name"] for rule in group["child"]["settings"])
