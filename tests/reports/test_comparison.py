"""A comparison's numbers and its files."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trueward.reports.comparison import Cell, Comparison, Quality
from trueward.reports.comparison_page import told_apart
from trueward.reports.pictures import tiles

FRECHET = Quality("frechet", "Fréchet distance", "lower")
RECALL = Quality("recall", "recall", "higher")


def comparison(about: dict[str, object] | None = None) -> Comparison:
    values = {"ddim": (3.0, 2.0, 2.5), "edm": (1.0, 1.2, 1.1), "bad": (math.nan, math.nan, math.nan)}
    cells = [
        Cell(name, budget, budget - (name == "edm"), seed, 0.01 * budget, {"frechet": value / budget, "recall": 0.5})
        for name, row in values.items()
        for budget in (5, 10)
        for seed, value in enumerate(row)
    ]
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    pictures = {(name, budget): images for name in ("ddim", "edm") for budget in (5, 10)}
    return Comparison(cells, [FRECHET, RECALL], pictures, images, {"frechet": 0.05}, about or {"model": "tiny"})


def test_rows_are_means_with_the_standard_deviation_between_seeds() -> None:
    row = next(r for r in comparison().rows if (r.sampler, r.budget) == ("ddim", 5))
    assert row.metrics["frechet"] == pytest.approx(2.5 / 5)
    assert row.spread["frechet"] == pytest.approx(0.5 / 5)
    assert row.seconds == pytest.approx(0.05), "the fastest seed"
    assert row.seeds == 3


def test_the_best_is_the_lowest_or_highest_by_its_metric_and_never_nan() -> None:
    c = comparison()
    best = c.best(5)
    assert best is not None
    assert best.sampler == "edm"
    assert FRECHET.best([3.0, math.nan, 1.0]) == 1.0
    assert RECALL.best([0.3, math.nan, 0.1]) == 0.3


def test_samplers_closer_than_their_error_are_not_told_apart() -> None:
    def cells(name: str, values: tuple[float, ...]) -> list[Cell]:
        return [Cell(name, 5, 5, seed, 0.1, {"frechet": v}) for seed, v in enumerate(values)]

    near = Comparison(cells("a", (1.0, 1.2, 1.4)) + cells("b", (1.1, 1.3, 1.5)), [FRECHET]).rows
    far = Comparison(cells("a", (1.0, 1.2, 1.4)) + cells("b", (5.1, 5.3, 5.5)), [FRECHET]).rows
    assert not told_apart(near[0], near[1], "frechet")
    assert told_apart(far[0], far[1], "frechet")


def test_csv_and_json_hold_every_row(tmp_path: Path) -> None:
    c = comparison()
    c.write(tmp_path / "r.html")
    with (tmp_path / "r.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert table[0]["sampler"] == "ddim"
    assert float(table[0]["frechet"]) == pytest.approx(0.5)
    assert float(table[0]["frechet_sd"]) == pytest.approx(0.1)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert len(stored["cells"]) == 18
    assert stored["rows"][4]["metrics"]["frechet"] is None, "NaN has no word in JSON"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.html", "r.json"]


class _Balance(HTMLParser):
    """Checks that every tag is closed, and collects what a browser would fetch."""

    void = frozenset({"meta", "img", "br", "wbr", "circle", "rect", "path", "polygon"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [str(values[key]) for key in ("src", "href") if key in values]
        if tag == "img":
            self.images.append(str(values["alt"]))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(tmp_path: Path) -> None:
    text = comparison().to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    page = _Balance()
    page.feed(text)
    assert page.open == []
    assert page.fetched
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(page.images) == 5, "four cells and the data"
    assert "no finite samples" in text
    assert "prefers-color-scheme:dark" in text
    assert "viewport" in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    text = comparison({"model": "<img src=x>", "note": "<b>&"}).to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img src=x>" not in text
    assert "<b>&" not in text


def test_points_of_the_plane_are_drawn_as_a_scatter(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(50, 2))
    cells = [Cell("ddim", 5, 5, 0, 0.1, {"frechet": 1.0})]
    text = Comparison(cells, [FRECHET], {("ddim", 5): points}, points, {}, {"model": "plane"}).to_html(
        tmp_path / "r.html"
    )
    assert text.read_text(encoding="utf-8").count('class="scatter"') == 2


def test_tiles_keep_every_pixel_and_are_transparent_between() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    sheet = tiles(images, columns=3, gap=2)
    assert sheet.shape == (4 * 2 + 2, 3 * 3 + 2 * 2, 4)
    assert np.array_equal(sheet[6:10, 5:8, :3], images[4])
    assert (sheet[4:6] == 0).all()
    assert (sheet[6:10, 10:] == 0).all(), "the sixth place is empty"


def test_what_spent_more_than_its_budget_does_not_win_at_it(tmp_path: Path) -> None:
    cells = [Cell("ddim", 5, 5, 0, 0.1, {"frechet": 2.0}), Cell("ddim+diffrs", 5, 8.3, 0, 0.3, {"frechet": 1.0})]
    c = Comparison(cells, [FRECHET], {}, None, {}, {"model": "tiny"})
    best = c.best(5)
    assert best is not None
    assert best.sampler == "ddim"
    assert "at equal cost" not in c.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "at equal cost" in comparison().to_html(tmp_path / "s.html").read_text(encoding="utf-8")
