"""What is wider than a page is scrolled by keyboard too, on every page that the templates give."""

import re
from pathlib import Path

import pytest

TEMPLATES = sorted((Path(__file__).parents[1] / "slm").rglob("*.html.j2"))
WIDE = re.compile(r'<div class="(?:wide|scroll)[ "][^>]*>')


def test_there_are_wide_parts() -> None:
    assert sum(bool(WIDE.search(path.read_text("utf-8"))) for path in TEMPLATES) >= 4


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_wide_part_is_a_named_region_that_takes_the_focus(template: Path) -> None:
    for part in WIDE.findall(template.read_text("utf-8")):
        assert 'role="region"' in part
        assert 'tabindex="0"' in part
        assert "aria-label=" in part
