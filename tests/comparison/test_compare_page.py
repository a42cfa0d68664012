"""The page of a comparison: one file, the same bytes for the same runs, nothing from elsewhere."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from many_runs import held_out_sizes, make_run
from test_compare_many import PIPELINES, config

import slm
from slm.comparison.charts import sorted_values
from slm.comparison.drawing import Scale, apart, line_points, scale_of, thinned
from slm.comparison.naming import brief_settings, short_names
from slm.recipes import load_recipe

WRITES = {"Once upon a time": " a cat.", "One day": " a <dog> & an owl."}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed in (1, 2):
        make_run(root, config(model__n_layer=4, train__seed=seed), 0.8 + seed / 1e3, samples=WRITES)
    make_run(root, config(model__n_layer=2), 0.95, samples={"Once upon a time": " an owl."})
    make_run(root, config(model__n_layer=2, train__warmup=0.2), 0.96)
    make_run(root, config(model__n_layer=6), 0.7, state="stopped")
    make_run(root, config(data__seed=7), 0.5, fingerprint=1.6)
    return root


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    compared = slm.compare("*", html=True, root=root)
    assert compared.html is not None
    assert compared.html.parent == (root / "comparisons").resolve()
    return compared.html.read_text("utf-8")


class Reader(HTMLParser):
    """Checks that every tag is closed, and keeps the tags with their attributes."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and tag not in ("path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(page: str) -> None:
    tags = Reader(page).tags
    assert not [
        tag for tag, _ in tags if tag in ("script", "link", "img", "iframe", "style:import")
    ]
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import| on\w+=", page)
    assert {a["href"][0] for tag, a in tags if tag == "a"} == {"#"}
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_same_runs_give_the_same_bytes(page: str, root: Path, tmp_path: Path) -> None:
    again = slm.compare("*", html=tmp_path / "again.html", root=root).html
    assert again is not None
    assert again.read_text("utf-8") == page


def test_charts_have_texts_for_who_does_not_see_them(page: str) -> None:
    tags = Reader(page).tags
    charts = [a for tag, a in tags if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in charts)
    assert "over tokens: 5 runs, down to 0.7" in page  # the one that stopped is among them
    radios = [a for tag, a in tags if tag == "input"]
    assert [a["class"] for a in radios[:3]] == ["pick-tokens", "pick-seconds", "pick-FLOPs"]
    assert ["checked" in a for a in radios[:3]] == [True, False, False]
    assert all(a.get("tabindex") == "0" for _, a in tags if a.get("class") == "scroll")


def test_runs_are_ranked_where_they_are_comparable(page: str) -> None:
    heading = "Ranked apart: scored on other held-out text: data.seed=7 instead of 1337"
    first, second = page.split(heading)
    assert "Ranking</h2>" in first
    assert "n_layer=4" in re.findall("<h1>(.+?)</h1>", page)[0]
    assert "1 group scored on other held-out text" in re.findall("<h1>(.+?)</h1>", page)[0]
    assert "stopped at step 30: slm train" in second
    assert "Each compared with each" in first


def test_samples_of_the_same_prompt_are_side_by_side_and_escaped(page: str) -> None:
    assert page.count('<article class="sample">') == 2  # of the one prompt that two groups have
    assert "</span> a cat.</p>" in page
    assert "</span> an owl.</p>" in page
    assert "<dog>" not in page


def test_a_page_of_a_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(slm.UserError, match=r"is a folder: give a file, such as .*comparison.html"):
        slm.compare("*", html=tmp_path, root=root)


# ---- drawing ----------------------------------------------------------------------------------


def test_a_line_keeps_its_ends_and_its_lowest_point() -> None:
    points = [(float(i), abs(i - 313) + 1.0) for i in range(1000)]
    few = thinned(points, 20)
    assert len(few) <= 20
    assert {points[0], points[313], points[-1]} <= set(few)
    assert list(few) == sorted(few)
    assert thinned(points[:20], 20) == points[:20]
    assert line_points(1) == 400
    assert line_points(200) == 60
    assert line_points(10_000) == 12


def test_axes_have_round_numbers() -> None:
    assert Scale(0.0, 2.1e6).ticks(5) == [0, 5e5, 1e6, 1.5e6, 2e6]
    assert Scale(0.231, 0.258).ticks(3) == pytest.approx([0.24, 0.25])
    log = scale_of([1e-3, 2e-2])
    assert log.is_log
    assert log.ticks(5) == pytest.approx([1e-3, 2e-3, 5e-3, 1e-2, 2e-2])
    assert log.place(1e-3) == 0
    assert log.place(2e-2) == 1
    same = scale_of([3.0, 3.0])
    assert same.place(3.0) == pytest.approx(0.5)
    assert same.ticks(4)


def test_labels_do_not_cover_each_other() -> None:
    assert apart([0.5, 0.5, 0.9]) == pytest.approx([0.5, 0.555, 0.9])
    low = apart([0.98, 0.99, 1.0])
    assert low[-1] == 1
    assert min(b - a for a, b in pairwise(low)) == pytest.approx(0.055)


def test_values_are_sorted_as_what_they_are() -> None:
    assert sorted_values([10, 2, 2.5, 10]) == [2, 2.5, 10]
    assert sorted_values(["b", None, "a", True]) == [None, True, "a", "b"]


def test_of_many_settings_those_within_a_recipe_are_shown(tmp_path: Path) -> None:
    sizes = held_out_sizes(40)
    for recipe, changed in (
        ("quickstart", {}),
        ("quickstart", {"train.warmup": 0.3}),
        ("gpt2-124m", {}),
    ):
        make_run(tmp_path, load_recipe(recipe, changed, path=PIPELINES), 0.8, sizes=sizes)
    compared = slm.compare("*", html=tmp_path / "page.html", root=tmp_path)
    assert len(compared.settings) > 20
    assert brief_settings(compared) == ["recipe", "train.warmup"]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "They differ in" in page
    assert "<summary>All settings in which they differ</summary>" in page
    assert short_names(["model.n_layer", "data.seed"]) == {
        "model.n_layer": "n_layer",
        "data.seed": "data.seed",
    }
